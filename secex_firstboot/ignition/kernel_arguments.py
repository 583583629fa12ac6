"""kernelArguments of the config: which ones a config may set, and the command line that comes of them.

Names and effects: the kernel's Documentation/admin-guide/kernel-parameters.txt, kernel-command-line(7),
systemd(1), systemd-debug-generator(8), dracut.cmdline(7).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.command_line import comparable, join, loosely, matches, parameters
from secex_firstboot.ignition.config import KernelArguments


@dataclass(frozen=True)
class Family:
    """Arguments that a config neither adds nor removes; ``*`` at the end stands for any rest of the name."""

    names: tuple[str, ...]
    reason: str
    but: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        plain = name.replace("/", ".")  # fs/proc/proc_sysctl.c takes either in sysctl.…
        return matches(plain, self.names) and not matches(plain, self.but)


# The same table is in secex-firstboot(8), KERNEL ARGUMENTS.
FAMILIES = (
    Family(("init", "-*"), "another first program, or options for it"),
    Family(
        ("single", "s", "S", "1", "emergency", "rescue", "break"),
        "a shell on the console, which is the host's",
    ),
    Family(
        ("rd*",),
        "the initramfs has the keys: shells in it, traces of it, and what it opens and mounts",
        but=(
            "rd.neednet",
            "rd.net.*",
            "rd.peerdns",
            "rd.route",
            "rd.znet*",
            "rd.zfcp*",
            "rd.dasd*",
            "rd.zdev*",
            "rd.driver.*",
        ),
    ),
    Family(
        ("systemd*", "SYSTEMD_*"),
        "shells, other units, commands and credentials that systemd takes from here, logs on the console",
        but=(
            "systemd.cpu_affinity",
            "systemd.default_timeout_start_sec",
            "systemd.hostname",
            "systemd.machine_id",
            "systemd.show_status",
            "systemd.unified_cgroup_hierarchy",
            "systemd.watchdog_*",
        ),
    ),
    Family(
        ("root*", "netroot", "nfsroot", "overlayroot", "usrhash", "mount.*", "fstab", "resume*"),
        "what is mounted is first boot's, and nothing that the host can write",
        but=("rootwait", "rootdelay"),
    ),
    Family(
        ("fsck.*", "forcefsck", "fastboot"),
        "a file system check that repairs removes what the host makes unreadable",
    ),
    Family(
        ("luks", "luks.*", "veritytab", "integritytab", "dm-mod.create"),
        "which volumes are opened, and how, first boot writes to crypttab",
    ),
    Family(("secex.*", "ignition.*", "bootfs.*"), "the image's own, and first boot's"),
    Family(("ostree*", "composefs*"), "which deployment is the system, and how, libostree says"),
    Family(
        ("kgdb*", "kdb*", "ekgdboc", "sysrq_always_enabled", "sysctl.kernel.sysrq"),
        "a debugger for whoever is at the console",
    ),
)

# systemd also takes single quotes and backslashes for quoting, the kernel does not.
_PLAIN = re.compile(r"[ !-&(-\[\]-~]*")


def _in_config(kind: str, index: int) -> str:
    return f"the Ignition config's kernelArguments.{kind}[{index}]"


def check(arguments: KernelArguments, place_of: Callable[[str, int], str] = _in_config) -> None:
    """Raises Refusal with the place of the first argument that is not for a config to set."""
    items = {"shouldExist": arguments.should_exist, "shouldNotExist": arguments.should_not_exist}
    for kind, texts in items.items():
        for index, text in enumerate(texts):
            place = place_of(kind, index)
            if not _PLAIN.fullmatch(text) or text.count('"') % 2 or not text.strip():
                raise Refusal(
                    "SX-CONFIG-05",
                    f"{place} is no kernel argument",
                    "use printable ASCII, double quotes in pairs, no single quote and no backslash",
                )
            _refuse(place, text, FAMILIES)


def refuse(arguments: KernelArguments, family: Family) -> None:
    """Raises Refusal with the place of the first argument of this family that the config adds."""
    for index, text in enumerate(arguments.should_exist):
        _refuse(_in_config("shouldExist", index), text, [family])


def apply(options: str, arguments: KernelArguments) -> str:
    """``options`` without what should not exist, and with what should at the end, unless it is there.

    An argument with a value is another one than the same with another value, or without.
    Raises Refusal for what ``check`` refuses, and for options that cannot be told apart.
    """
    check(arguments)
    unwanted = {_exact(each) for text in arguments.should_not_exist for each in parameters(text)}
    kept = [each for each in parameters(options) if _exact(each) not in unwanted]
    wanted = {_exact(each): each for text in arguments.should_exist for each in parameters(text)}
    present = {_exact(each) for each in kept}
    return join(kept, [each for exact, each in wanted.items() if exact not in present])


def _refuse(place: str, text: str, families: Iterable[Family]) -> None:
    # Not all readers heed quotes: dracut takes each word in them for an argument of its own.
    for word in loosely(text):
        for family in families:
            if family.has(word.partition("=")[0]):
                raise Refusal(
                    "SX-CONFIG-06",
                    f"{place} is one of {' '.join(family.names)} ({family.reason})",
                    "leave it out: secex-firstboot(8), KERNEL ARGUMENTS, lists what first boot keeps",
                )


def _exact(parameter: str) -> str:
    name, equals, value = parameter.replace('"', "").partition("=")
    return comparable(name) + equals + value
