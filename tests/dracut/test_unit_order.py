"""What systemd makes of our units beside those of Fedora CoreOS that stay: docs/coreos.md, "The order".

There is no Fedora CoreOS here, but an order is a matter of unit files alone. Ours are as the Makefile and the
dracut module install them; the others are stand-ins with the order and the requirements of the originals.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest
from support import REPOSITORY, needs

pytestmark = needs.programs("make", "systemd-analyze")

DOCUMENT = (REPOSITORY / "docs/coreos.md").read_text(encoding="utf-8")
UNITS = "usr/lib/systemd/system"
GOAL = "all.target"
"""Starts at once what systemd starts in several transactions: it looks for a cycle in each alone. That is why
the stand-ins have no Conflicts=."""
LINKS = {"WantedBy": "wants", "RequiredBy": "requires"}

# What the originals have, semicolons between; "alone" is DefaultDependencies=no. WantedBy= and RequiredBy=
# are links, made by [Install] or by the dracut module that brings the unit. Sources: repository and path.
FIRST_BOOT = {
    GOAL: "Requires=initrd.target initrd-cleanup.service initrd-switch-root.target",
    # systemd/systemd units; dracut-ng/dracut-ng modules.d/11systemd-*
    "initrd.target": "Requires=basic.target; "
    "Wants=initrd-root-fs.target initrd-root-device.target initrd-fs.target initrd-usr-fs.target; "
    "Wants=initrd-parse-etc.service; "
    "After=initrd-root-fs.target initrd-root-device.target initrd-fs.target initrd-usr-fs.target; "
    "After=basic.target",
    "basic.target": "Requires=sysinit.target; Wants=sockets.target timers.target paths.target slices.target; "
    "After=sysinit.target sockets.target paths.target slices.target",
    "sysinit.target": "Wants=local-fs.target swap.target; After=local-fs.target swap.target",
    "sockets.target": "",
    "timers.target": "alone",
    "paths.target": "",
    "slices.target": "",
    "swap.target": "",
    "local-fs-pre.target": "",
    "local-fs.target": "alone; After=local-fs-pre.target",
    "remote-fs-pre.target": "",
    "remote-fs.target": "alone; After=remote-fs-pre.target",
    "cryptsetup.target": "WantedBy=sysinit.target",
    "remote-cryptsetup.target": "alone; After=remote-fs-pre.target cryptsetup-pre.target; "
    "WantedBy=initrd-root-device.target",
    "network.target": "After=network-pre.target",
    "network-online.target": "After=network.target",
    "systemd-journald.service": "alone; Before=sysinit.target; WantedBy=sysinit.target",
    "systemd-modules-load.service": "alone; Before=sysinit.target; WantedBy=sysinit.target",
    "systemd-sysctl.service": "alone; After=systemd-modules-load.service; Before=sysinit.target; "
    "WantedBy=sysinit.target",
    "systemd-tmpfiles-setup-dev.service": "alone; Wants=local-fs-pre.target; "
    "Before=sysinit.target local-fs-pre.target systemd-udevd.service initrd-switch-root.target; "
    "WantedBy=sysinit.target",
    "systemd-udevd.service": "alone; Before=sysinit.target; WantedBy=sysinit.target",
    "systemd-udev-trigger.service": "alone; Wants=systemd-udevd.service; Before=sysinit.target; "
    "WantedBy=sysinit.target",
    "initrd-root-fs.target": "alone",
    "initrd-usr-fs.target": "alone",
    "initrd-fs.target": "alone; After=initrd-parse-etc.service",
    "initrd-parse-etc.service": "alone; Requires=initrd-root-fs.target; After=initrd-root-fs.target",
    "initrd-cleanup.service": "alone; After=initrd-root-fs.target initrd-fs.target initrd.target",
    "initrd-udevadm-cleanup-db.service": "alone; After=systemd-udevd.service systemd-udev-trigger.service; "
    "Before=initrd-switch-root.target",
    "initrd-switch-root.target": "alone; Wants=initrd-switch-root.service initrd-udevadm-cleanup-db.service; "
    "Wants=initrd-root-fs.target initrd-fs.target systemd-journald.service initrd-cleanup.service; "
    "Before=initrd-switch-root.service; After=initrd-udevadm-cleanup-db.service; "
    "After=initrd-root-fs.target initrd-fs.target initrd-cleanup.service",
    "initrd-switch-root.service": "alone; Wants=initrd-switch-root.target",
    # systemd/systemd src/fstab-generator, src/shared/generator.c: of root=/dev/mapper/root
    "initrd-root-device.target": "alone; Requires=dev-mapper-root.device; After=dev-mapper-root.device",
    "systemd-fsck-root.service": "alone; BindsTo=dev-mapper-root.device; "
    "After=initrd-root-device.target local-fs-pre.target dev-mapper-root.device",
    "sysroot.mount": "What=/dev/mapper/root; Requires=systemd-fsck-root.service; "
    "After=systemd-fsck-root.service blockdev@dev-mapper-root.target; Before=initrd-root-fs.target; "
    "RequiredBy=initrd-root-fs.target initrd-usr-fs.target",
    # dracut-ng/dracut-ng modules.d/77dracut-systemd, modules.d/77initqueue
    "dracut-cmdline.service": "alone; Before=dracut-pre-udev.service; WantedBy=initrd.target",
    "dracut-cmdline-ask.service": "alone; Before=dracut-cmdline.service; WantedBy=initrd.target",
    "dracut-pre-udev.service": "alone; Wants=dracut-cmdline.service; After=dracut-cmdline.service; "
    "Before=systemd-udevd.service dracut-pre-trigger.service; WantedBy=initrd.target",
    "dracut-pre-trigger.service": "alone; Wants=dracut-pre-udev.service systemd-udevd.service; "
    "After=dracut-pre-udev.service systemd-udevd.service systemd-tmpfiles-setup-dev.service; "
    "Before=systemd-udev-trigger.service dracut-initqueue.service; WantedBy=initrd.target",
    "dracut-initqueue.service": "alone; Wants=remote-fs-pre.target systemd-udev-trigger.service; "
    "After=systemd-udev-trigger.service; Before=remote-fs-pre.target; WantedBy=initrd.target",
    "dracut-pre-mount.service": "alone; After=dracut-initqueue.service cryptsetup.target; "
    "Before=initrd-root-fs.target sysroot.mount systemd-fsck-root.service; WantedBy=initrd.target",
    "dracut-mount.service": "alone; After=initrd-root-fs.target initrd-parse-etc.service; "
    "After=dracut-initqueue.service dracut-pre-mount.service; WantedBy=initrd.target",
    "dracut-pre-pivot.service": "alone; Wants=remote-fs.target; "
    "After=initrd.target initrd-parse-etc.service sysroot.mount remote-fs.target; "
    "After=dracut-initqueue.service dracut-pre-mount.service dracut-mount.service; "
    "Before=initrd-cleanup.service; WantedBy=initrd.target",
    # dracut-ng/dracut-ng modules.d/35network-manager
    "nm-initrd.service": "alone; Wants=systemd-udev-trigger.service network.target; "
    "After=systemd-udev-trigger.service dracut-cmdline.service dbus.service; Before=network.target; "
    "WantedBy=initrd.target",
    "nm-wait-online-initrd.service": "alone; Requires=nm-initrd.service; After=nm-initrd.service; "
    "Before=network-online.target dracut-initqueue.service; WantedBy=initrd.target network-online.target",
    # coreos/ignition dracut/30ignition
    "ignition-complete.target": "Before=initrd.target; RequiredBy=initrd.target",
    "ignition-diskful.target": "Before=ignition-complete.target; RequiredBy=ignition-complete.target",
    "ignition-remount-sysroot.service": "alone; After=sysroot.mount; Before=ignition-diskful.target; "
    "RequiredBy=ignition-diskful.target",
    "ignition-fetch-offline.service": "alone; After=basic.target; "
    "Before=ignition-complete.target ignition-fetch.service; RequiredBy=ignition-complete.target",
    "ignition-fetch.service": "alone; After=basic.target ignition-fetch-offline.service network.target; "
    "Before=ignition-complete.target ignition-disks.service; RequiredBy=ignition-complete.target",
    "ignition-kargs.service": "alone; After=ignition-fetch.service; "
    "Before=ignition-complete.target ignition-disks.service; RequiredBy=ignition-complete.target",
    "ignition-disks.service": "alone; Requires=systemd-udevd.service; "
    "After=ignition-fetch.service systemd-udevd.service; Before=ignition-complete.target; "
    "Before=ignition-mount.service initrd-root-device.target sysroot.mount; "
    "RequiredBy=ignition-complete.target",
    "ignition-mount.service": "alone; Requires=initrd-root-fs.target; "
    "After=ignition-disks.service network.target initrd-root-fs.target ignition-remount-sysroot.service; "
    "Before=ignition-complete.target ignition-files.service initrd-switch-root.target; "
    "RequiredBy=ignition-complete.target",
    "ignition-files.service": "alone; After=ignition-mount.service; "
    "Before=ignition-complete.target initrd-parse-etc.service; RequiredBy=ignition-complete.target",
    # ostreedev/ostree src/boot
    "ostree-prepare-root.service": "alone; Requires=sysroot.mount; After=sysroot.mount; "
    "Before=initrd-root-fs.target; WantedBy=initrd-root-fs.target",
    # coreos/fedora-coreos-config overlay.d/05core/usr/lib/dracut/modules.d; the last two are of modules that
    # are out, and may stay in one of the image's own
    "coreos-check-kernel.service": "alone; Before=sysinit.target systemd-modules-load.service; "
    "RequiredBy=sysinit.target",
    "coreos-touch-run-agetty.service": "alone; Before=initrd.target; RequiredBy=initrd.target",
    "coreos-teardown-initramfs.service": "alone; Before=ignition-mount.service ignition-complete.target; "
    "Before=nm-initrd.service initrd-switch-root.target; RequiredBy=ignition-complete.target",
    "ignition-ostree-populate-var.service": "alone; After=ignition-mount.service; "
    "Before=ignition-files.service; RequiredBy=ignition-complete.target",
    # coreos/rhel-coreos-config overlay.d/05rhcos/usr/lib/dracut/modules.d/41rhcos-check-luks-syntax
    "rhcos-fail-boot-for-legacy-luks-config.service": "After=ignition-fetch.service; "
    "Before=ignition-disks.service; RequiredBy=ignition-complete.target",
}
SYSTEM = {
    GOAL: "Requires=multi-user.target",
    # systemd/systemd units
    "multi-user.target": "Requires=basic.target; After=basic.target",
    "boot-complete.target": "Requires=sysinit.target; After=sysinit.target",
    "systemd-remount-fs.service": "alone; Wants=local-fs-pre.target; "
    "Before=local-fs-pre.target local-fs.target; WantedBy=local-fs.target",
    "systemd-journal-flush.service": "alone; After=systemd-remount-fs.service; WantedBy=sysinit.target",
    **{
        name: FIRST_BOOT[name]
        for name in (
            "basic.target",
            "sysinit.target",
            "sockets.target",
            "timers.target",
            "paths.target",
            "slices.target",
            "swap.target",
            "local-fs-pre.target",
            "local-fs.target",
            "systemd-sysctl.service",
            "systemd-modules-load.service",
        )
    },
    # systemd/systemd src/fstab-generator
    "boot.mount": "What=/dev/mapper/boot; Before=local-fs.target; RequiredBy=local-fs.target",
    # ostreedev/ostree src/libostree/ostree-impl-system-generator.c, src/boot; a path unit starts the last
    "var.mount": "What=/dev/mapper/root; Before=local-fs.target; RequiredBy=local-fs.target",
    "ostree-remount.service": "alone; After=-.mount var.mount systemd-remount-fs.service; "
    "Before=local-fs.target systemd-journal-flush.service; RequiredBy=local-fs.target",
    "ostree-boot-complete.service": "alone; After=sysinit.target; RequiresMountsFor=/boot; "
    "Before=ostree-finalize-staged.service; WantedBy=multi-user.target",
    "ostree-finalize-staged-hold.service": "alone; RequiresMountsFor=/sysroot /boot; After=local-fs.target; "
    "Before=basic.target",
    "ostree-finalize-staged.service": "alone; RequiresMountsFor=/sysroot /boot /etc; "
    "Wants=ostree-finalize-staged-hold.service; "
    "After=local-fs.target systemd-journal-flush.service ostree-finalize-staged-hold.service; "
    "Before=basic.target; WantedBy=multi-user.target",
    # coreos/fedora-coreos-config overlay.d/05core/usr/lib/systemd/system
    "coreos-printk-quiet.service": "alone; Before=sysinit.target systemd-sysctl.service; "
    "WantedBy=sysinit.target",
    "coreos-update-ca-trust.service": "alone; Requires=local-fs.target; After=local-fs.target; "
    "Before=first-boot-complete.target systemd-machine-id-commit.service; WantedBy=basic.target",
    "coreos-ignition-write-issues.service": "Before=systemd-user-sessions.service; "
    "WantedBy=multi-user.target",
}
LATER_BOOT = {
    **FIRST_BOOT,
    # nothing requires it, as ignition-generator sees to
    "ignition-complete.target": "Before=initrd.target",
    # systemd/systemd src/cryptsetup/cryptsetup-generator.c
    **{
        f"systemd-cryptsetup@{name}.service": f"alone; Wants=blockdev@dev-mapper-{name}.target; "
        "After=cryptsetup-pre.target systemd-udevd-kernel.socket; "
        f"Before=cryptsetup.target blockdev@dev-mapper-{name}.target; "
        f"RequiredBy=cryptsetup.target dev-mapper-{name}.device"
        for name in ("boot", "root")
    },
    # systemd/systemd units
    "blockdev@.target": "alone",
}
_BOOT = r"dev-disk-by\x2dlabel-boot.device"
LEFT_OUT = {
    # coreos/fedora-coreos-config overlay.d/05core/usr/lib/dracut/modules.d/35coreos-ignition
    "coreos-ignition-setup-user.service": (
        f"alone; Requires={_BOOT}; After={_BOOT}; "
        "Before=ignition-fetch-offline.service ignition-fetch.service; RequiredBy=ignition-complete.target",
        "secex-firstboot-config.service",
    ),
    "coreos-gpt-setup.service": (
        f"Requires={_BOOT}; After={_BOOT} coreos-copy-firstboot-network.service coreos-unique-boot.service; "
        "Before=systemd-fsck-root.service ignition-diskful.target ignition-ostree-uuid-boot.service; "
        "Before=ignition-kargs.service; RequiredBy=ignition-diskful.target",
        "secex-firstboot.service",
    ),
    "coreos-boot-edit.service": (
        f"Requires={_BOOT}; After={_BOOT} ignition-files.service coreos-multipath-wait.target; "
        "Before=initrd.target initrd-parse-etc.service; RequiredBy=ignition-diskful.target",
        "secex-firstboot-seal.service",
    ),
    # coreos/fedora-coreos-config overlay.d/05core/usr/lib/dracut/modules.d/40ignition-ostree
    "ignition-ostree-mount-var.service": (
        "alone; Requires=initrd-root-fs.target; After=initrd-root-fs.target; "
        "Before=initrd-switch-root.target ignition-mount.service; RequiredBy=ignition-complete.target",
        "secex-firstboot-mount.service",
    ),
    "ignition-ostree-check-rootfs-size.service": (
        "alone; Requires=ostree-prepare-root.service; "
        "After=ostree-prepare-root.service ignition-ostree-growfs.service; "
        "Before=ignition-files.service; RequiredBy=ignition-complete.target",
        "secex-firstboot-mount.service",
    ),
}
"""What each has, and which of ours it has no order to."""

# dracut's functions, of which only those that install a unit do something.
MODULE = """\
inst_multiple() { :; }
inst_script() { :; }
inst_hook() { :; }
inst_simple() { mkdir -p "${initdir}${2%/*}" && cp "$1" "$initdir$2"; }
. "$moddir/module-setup.sh"
install_python() { :; }
install
"""


@dataclass(frozen=True)
class System:
    """Its units, in a directory, and what systemd says of them."""

    units: Path
    initramfs: bool

    def add(self, name: str, directives: str) -> None:
        unit, kind = ["[Unit]"], []
        if name.endswith(".mount"):
            kind = ["[Mount]", f"Where=/{name.removesuffix('.mount')}"]
        elif name.endswith(".service"):
            kind = ["[Service]", "Type=oneshot", "ExecStart=/bin/true"]
        for directive in filter(None, directives.split("; ")):
            key, _, value = directive.partition("=")
            if key in LINKS:
                self.link(name, key, value)
            elif key == "What":
                kind.append(directive)
            else:
                unit.append("DefaultDependencies=no" if key == "alone" else directive)
        (self.units / name).write_text("\n".join([*unit, *kind, ""]))

    def link(self, name: str, key: str, targets: str) -> None:
        for target in targets.split():
            directory = self.units / f"{target}.{LINKS[key]}"
            directory.mkdir(exist_ok=True)
            (directory / name).symlink_to(f"../{name}")

    def verify(self, *names: str, debug: bool = False) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "SYSTEMD_UNIT_PATH": str(self.units),  # and nothing of the machine that the test runs on
            "SYSTEMD_IN_INITRD": str(int(self.initramfs)),
            "SYSTEMD_LOG_LEVEL": "debug" if debug else "info",
            "SYSTEMD_UTF8": "0",  # no other arrows than in a plain locale
        }
        argv = ["systemd-analyze", "verify", "--man=no", *names]
        return subprocess.run(argv, env=environment, capture_output=True, text=True)

    def names(self) -> list[str]:
        """GOAL first. A template is no unit."""
        files = (path.name for path in self.units.iterdir() if path.is_file() and "@." not in path.name)
        return sorted(files, key=lambda name: (name != GOAL, name))

    def complaints(self) -> str:
        """Nothing, if what GOAL starts has an order, and each unit can be loaded and started."""
        done = self.verify(*self.names())
        return done.stdout + done.stderr + (f"exit code {done.returncode}" if done.returncode else "")

    def order(self) -> dict[str, set[str]]:
        """Of each unit that is started, all that are started before it: systemd waits for no others.

        From systemd's own list of what it loaded, which also has the dependencies that no file names.
        """
        needed: dict[str, set[str]] = {}
        after: dict[str, set[str]] = {}
        listed = self.verify(*self.names(), debug=True).stdout
        for dump in re.split(r"^\t-> Unit ", listed, flags=re.MULTILINE)[1:]:
            unit = dump.split(":\n")[0]
            assert "\tUnit Load State: loaded\n" in dump, unit
            needed[unit] = set(re.findall(r"^\t\t(?:Wants|Requires|BindsTo): (\S+)", dump, re.MULTILINE))
            after[unit] = set(re.findall(r"^\t\tAfter: (\S+)", dump, re.MULTILINE))
        started = reached(needed, GOAL)
        return {unit: reached(after, unit, started) for unit in started}


def reached(edges: Mapping[str, set[str]], start: str, within: set[str] | None = None) -> set[str]:
    """By any number of edges; with ``start`` itself only if they lead back to it."""
    found: set[str] = set()
    todo = [start]
    while todo:
        step = edges.get(todo.pop(), set()) - found
        new = step if within is None else step & within
        found |= new
        todo += new
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an image has: the package, and in ``initramfs`` what the dracut module brings of units."""
    root = tmp_path_factory.mktemp("root")
    where = [f"DESTDIR={root}", "PYTHONDIR=/usr/lib/python3/dist-packages"]
    subprocess.run(["make", "--silent", "-C", REPOSITORY, "install", *where], check=True)
    environment = os.environ | {
        "initdir": str(root / "initramfs"),
        "moddir": str(root / "usr/lib/dracut/modules.d/50secex-firstboot"),
        "systemdsystemunitdir": f"/{UNITS}",
    }
    subprocess.run(["bash", "-euc", MODULE], env=environment, check=True)
    return root


def system(units: Path, installed: Path, stand_ins: Mapping[str, str], *, initramfs: bool) -> System:
    made = System(units, initramfs)
    subprocess.run(["cp", "-r", installed / ("initramfs" if initramfs else "") / UNITS, units], check=True)
    for path in [*units.glob("*.*"), *units.glob("*.d/*")]:
        if path.is_file():
            text = path.read_text()  # the programs that it runs are not here
            path.write_text(re.sub(r"^(Exec\w+)=.+$", r"\1=/bin/true", text, flags=re.MULTILINE))
            for key, targets in re.findall(r"^(WantedBy|RequiredBy)=(.+)$", text, re.MULTILINE):
                made.link(path.name, key, targets)
    for name, directives in stand_ins.items():
        made.add(name, directives)
    return made


@pytest.fixture
def first_boot(tmp_path: Path, installed: Path) -> System:
    return system(tmp_path / "first", installed, FIRST_BOOT, initramfs=True)


@pytest.fixture
def later_boot(tmp_path: Path, installed: Path) -> System:
    return system(tmp_path / "later", installed, LATER_BOOT, initramfs=True)


@pytest.fixture
def running(tmp_path: Path, installed: Path) -> System:
    return system(tmp_path / "running", installed, SYSTEM, initramfs=False)


def test_there_is_no_cycle(first_boot: System, later_boot: System, running: System) -> None:
    assert [each.complaints() for each in (first_boot, later_boot, running)] == ["", "", ""]


@pytest.mark.parametrize(
    ("directives", "words"),
    [
        ("After=secex-firstboot-seal.service; Before=secex-firstboot-config.service", "ordering cycle"),
        ("Requires=nowhere.service", "nowhere.service not found"),
    ],
    ids=["cycle", "not-loaded"],
)
def test_a_cycle_would_be_found_and_so_would_what_cannot_be_loaded(
    first_boot: System, directives: str, words: str
) -> None:
    first_boot.add("one-more.service", f"alone; {directives}; RequiredBy=ignition-complete.target")
    assert words in first_boot.complaints()


def test_every_stand_in_is_started(first_boot: System, running: System) -> None:
    """Or there would be no order to it. Of ours, all are that the dracut module brings."""
    started = first_boot.order().keys()
    assert FIRST_BOOT.keys() - started == SYSTEM.keys() - running.order().keys() == {GOAL}
    ours = {path.name for path in first_boot.units.glob("secex-*.service")}
    assert len(ours) == 6 and ours <= started


@dataclass(frozen=True)
class Row:
    number: int
    unit: str
    beside: range  # the numbers of rows that it has no order to


def rows() -> Iterator[Row]:
    """The document's table, each unit by itself."""
    table = DOCUMENT.split("\n## The order\n")[1]
    for number, units, remark in re.findall(r"^\| (\d+) \| (.+?) \| .+? \| (.*)\|$", table, re.MULTILINE):
        found = re.search(r"(?:`(\S+)` )?(beside|between) (\d+) (?:and|to) (\d+)", remark)
        for name in re.findall(r"`(\S+\.(?:service|mount))`", units):
            unit = f"secex-firstboot{name}" if name.startswith("-") else name
            beside = range(0)
            if found and found[1] in (None, unit):
                inner = found[2] == "between"
                beside = range(int(found[3]) + inner, int(found[4]) + 1 - inner)
            yield Row(int(number), unit, beside)


SWITCH = next(row.number for row in rows() if row.unit == "initrd-switch-root.service")


def differing(order: Mapping[str, set[str]], of: list[Row]) -> list[str]:
    """Where systemd sees another order than the table."""
    return [
        f"{one.number} {one.unit}, {other.number} {other.unit}"
        for one, other in combinations(of, 2)
        if one.number != other.number
        and (one.unit in order[other.unit], other.unit in order[one.unit])
        != (one.number not in other.beside and other.number not in one.beside, False)
    ]


def test_first_boot_runs_in_the_order_of_the_table(first_boot: System) -> None:
    """And what the table has beside each other has no order."""
    of = [row for row in rows() if row.number <= SWITCH]
    assert {row.number for row in of} == set(range(2, SWITCH + 1))
    assert not differing(first_boot.order(), of)


def test_later_boots_run_in_the_order_of_the_document(later_boot: System) -> None:
    order = later_boot.order()
    said = re.search(r"^At later boots: (.+), then\s+from (\d+) on", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert said
    theirs = {unit for unit in order if unit.startswith(("coreos-", "ignition-", "rhcos-"))}
    assert theirs == set(re.findall(r"`(\S+)`", DOCUMENT[said.end() :].split("are there")[0]))
    boot, root, *others = re.findall(r"`(\S+)`", said[1])
    boot, root = f"{boot}.service", f"{boot.removesuffix('@boot')}{root}.service"
    of = [Row(number, unit, range(0)) for number, unit in enumerate([root, *others], start=-len(others))]
    rest = [row for row in rows() if int(said[2]) <= row.number <= SWITCH]
    assert not differing(order, [Row(of[0].number, boot, range(0)), *of, *rest])


def test_the_running_system_starts_in_the_order_of_the_table(running: System) -> None:
    of = [row for row in rows() if row.number > SWITCH]
    order = running.order()
    assert len(of) == 5 and not differing(order, of)
    assert of[-2].unit in order[of[-1].unit], "the last row is from one to the other"


@pytest.mark.parametrize("unit", LEFT_OUT)
def test_what_is_left_out_would_run_at_any_moment_beside_ours(first_boot: System, unit: str) -> None:
    directives, ours = LEFT_OUT[unit]
    first_boot.add(unit, directives)
    order = first_boot.order()
    assert unit not in order[ours] and ours not in order[unit]
    (said,) = re.findall(rf"^- `{unit}`:.*?(?=^- |^#|^$)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert "in no order to" in " ".join(said.split())
