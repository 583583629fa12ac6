"""The kernel parameters of an SE-ready image, a row each: whoever reads, refuses or documents one asks here.

docs/manual.py writes the same rows into the manual page. Some programs read the command line in another way
than the kernel (``command_line.loosely``), so an image has to write these plainly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.command_line import before_init, loosely, name, value_of

T = TypeVar("T")
S = TypeVar("S", bound=str)

_PREFIX = "secex."
_HEXADECIMAL = frozenset("0123456789abcdef")
# libostree: src/libostree/ostree-sysroot-deploy.c, install_deployment_kernel()
_DEPLOYMENT = re.compile(r"/ostree/boot\.[01](?:\.[01])?/[\w.+-]{1,64}/[0-9a-f]{64}/\d{1,4}", re.ASCII)


class Grow(StrEnum):
    """When the root file system grows beyond the headroom."""

    BACKGROUND = "background"  # in the running system
    FIRSTBOOT = "firstboot"  # before it starts for the first time
    OFF = "off"


@dataclass(frozen=True)
class Parameter(Generic[T]):
    """``values``: what may stand behind the equals sign, capitals for what varies; empty for a mere name.

    ``read`` makes a value of that (None: no equals sign), or raises ValueError.
    ``default``: where the command line does not have it; None: it has to.
    ``meaning``: for the manual page, with `parameter`, [SECTION] and <file>.
    ``is_not``: what a wrong value is not, where ``values`` do not tell.
    ``danger``: what comes of a command line without it; there may be several then, each of them right.
    ``alias``: another name, which alone is not enough, but has to have the right value, too.
    """

    name: str
    values: tuple[str, ...]
    read: Callable[[str | None], T]
    meaning: str
    default: T | None = None
    is_not: str = ""
    danger: str = ""
    alias: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """As command_line.name has them."""
        return (self.name, self.alias) if self.alias else (self.name,)

    def __str__(self) -> str:
        """As the refusals have it: ``secex.network=always``."""
        *others, last = [f"{self.name}={value}" for value in self.values] or [self.name]
        return f"{', '.join(others)} or {last}" if others else last


def _one_of(words: Iterable[S]) -> Callable[[str | None], S]:
    known: dict[str | None, S] = {word: word for word in words}

    def read(text: str | None) -> S:
        if text not in known:
            raise ValueError
        return known[text]

    return read


def _number(text: str | None) -> int:
    if not text or not set(text) <= set("0123456789") or len(text) > 9:
        raise ValueError
    return int(text)


def _deployment(text: str | None) -> str:
    if not _DEPLOYMENT.fullmatch(text or ""):
        raise ValueError
    return text or ""


def _sha256(text: str | None) -> str:
    if text is None or len(text) != 64 or not _HEXADECIMAL.issuperset(text):
        raise ValueError
    return text


def _switch(name: str, word: str, meaning: str) -> Parameter[bool]:
    only = _one_of([word])
    return Parameter(name, (word,), lambda text: bool(only(text)), meaning, default=False)


def _needed(name: str, word: str, meaning: str, danger: str, alias: str = "") -> Parameter[str]:
    return Parameter(name, (word,), _one_of([word]), meaning, danger=danger, alias=alias)


def _root_hash(volume: str) -> Parameter[str]:
    return Parameter(
        f"{volume}fs.roothash",
        ("SHA256",),
        _sha256,
        f"The dm-verity root hash of {volume}, 64 lower-case hexadecimal digits.",
        is_not="64 lower-case hexadecimal digits",
    )


# The format's, in the command line of the image's sdboot alone.
FIRSTBOOT = Parameter(
    "ignition.firstboot",
    (),
    lambda text: True,
    "This is a first boot. The image's <sdboot> has it, the final one does not.",
    default=False,
)
ROOT_HASHES = {volume: _root_hash(volume) for volume in ("boot", "root")}

# Ignition's. It is not looked at: what another platform has for Ignition is the builder's to know.
PLATFORM = Parameter(
    "ignition.platform.id",
    ("metal",),
    lambda text: text or "",
    "Where Ignition would look for a config: nowhere, as it comes from the config disk alone.",
    default="",
)

# libostree's, where it has made the system: ostree-prepare-root(1).
OSTREE = Parameter(
    "ostree",
    ("LINK",),
    _deployment,
    "The deployment that is the system, by its link on the root file system. libostree writes it to the boot "
    "entry.",
    default="",
    is_not="a link to a deployment",
)

# Whoever's config it is, is root in the same memory soon. Sources: kernel-parameters.txt in Linux's
# Documentation/admin-guide; systemd-gpt-auto-generator(8); systemd-fsck@.service(8).
ROOT = _needed(
    "root",
    "/dev/mapper/root",
    "The encrypted volume is mounted as root: a label or UUID could be that of a disk of the host's.",
    "a disk of the host's may be mounted",
)
ZEROED = _needed(
    "init_on_free",
    "1",
    "Memory is wiped when it is freed, and with it the image's private key.",
    "the image's private key would stay in memory that was freed",
)
NO_GPT_AUTO = _needed(
    "systemd.gpt_auto",
    "0",
    "No partition is mounted or swapped to because the host adds it.",
    "systemd would use partitions that the host adds",
    alias="rd.systemd.gpt_auto",
)
NO_FSCK = _needed(
    "fsck.mode",
    "skip",
    "No check repairs a file system: it would remove what the host makes unreadable.",
    "a file system check would remove what the host makes unreadable",
)
NEEDED = (ROOT, ZEROED, NO_GPT_AUTO, NO_FSCK)

# Ours.
HEADROOM = Parameter(
    f"{_PREFIX}headroom",
    ("MiB",),
    _number,
    "By how much the root file system grows at first boot, at most to the end of the disk.",
    default=256,
    is_not="a number of MiB",
)
HOSTKEY_VERIFY: Parameter[Literal["strict", "no"]] = Parameter(
    f"{_PREFIX}hostkey_verify",
    ("strict", "no"),
    _one_of(("strict", "no")),
    "Whether host-key documents must be proven genuine, see [HOST KEYS]; `no` is for tests.",
    default="strict",
)
GROW = Parameter(
    f"{_PREFIX}grow",
    tuple(Grow),
    _one_of(Grow),
    "When the root file system grows to the end of its volume, see [GROWING].",
    default=Grow.BACKGROUND,
)
NETWORK = _switch(
    f"{_PREFIX}network",
    "always",
    "The network options of the boot entry stay in the command line of later boots, and their initramfs has "
    "a network. Without it those leave it that [KERNEL ARGUMENTS] names at its end.",
)
IDENTITY = _switch(
    f"{_PREFIX}identity",
    "replace",
    "First boot removes what identifies one machine from the image's root file system, such as SSH host "
    "keys, instead of refusing it.",
)
EMERGENCY = _switch(
    f"{_PREFIX}emergency",
    "shell",
    "For development: open a shell after a failure in the initramfs, see [EMERGENCY].",
)
LOGIN = _switch(
    f"{_PREFIX}login",
    "allowed",
    "For development: leave logins on consoles as the image has them, see [LOGINS].",
)
# In the command line of the final sdboot and its updates alone.
GENERATION = Parameter(
    f"{_PREFIX}generation",
    ("NUMBER",),
    _number,
    "The number of the boot image, in those that the system makes: its root file system knows which may "
    "start. No image has it.",
    default=0,
    is_not="a number",
)
OURS: tuple[Parameter[Any], ...] = (HEADROOM, HOSTKEY_VERIFY, GROW, NETWORK, IDENTITY, EMERGENCY, LOGIN)

ALL: tuple[Parameter[Any], ...] = (FIRSTBOOT, *ROOT_HASHES.values(), PLATFORM, OSTREE, *NEEDED, *OURS)
ALL += (GENERATION,)
_NAMES = frozenset(each for row in ALL for each in row.names)


def value(command_line: str, row: Parameter[T]) -> T:
    """What the command line says. Raises Refusal."""
    words = [word for word in before_init(command_line) if name(word) in row.names]
    if not any(name(word) == row.name for word in words):
        if row.default is not None:
            return row.default
        raise Refusal(
            "SX-PLATFORM-06", f"the kernel command line has no {row}{_so(row)}", "build the image with it"
        )
    found = [_read(word, row) for word in words]
    if len(found) > 1 and not row.danger:
        raise Refusal(
            "SX-PLATFORM-07",
            f"the kernel command line has {row.name} more than once",
            "build the image with one of them",
        )
    return found[0]


def check(command_line: str, rows: Iterable[Parameter[Any]]) -> None:
    """Raises Refusal if one of these rows is not as it should be.

    And for any parameter that is ours by its name alone, or that only some of those who read it would find.
    """
    plain = [word for word in loosely(command_line) if _concerns(word)]
    for word in plain:
        if _is_ours(word) and name(word) not in _NAMES:
            raise Refusal(
                "SX-PLATFORM-08",
                f"secex-firstboot has no kernel parameter {word.partition('=')[0]}",
                f"build the image with none but {', '.join(row.name for row in OURS)}",
            )
    heeded = [word for word in before_init(command_line) if _concerns(word)]
    for word in plain:
        if heeded.count(word) != plain.count(word):
            raise Refusal(
                "SX-PLATFORM-09",
                f"{name(word)} is in quotes or behind -- on the kernel command line, where not all find it",
                "build the image with it in plain words, before the --",
            )
    for row in rows:
        value(command_line, row)


def is_there(command_line: str, row: Parameter[Any]) -> bool:
    """Whether systemd would say so: ConditionKernelCommandLine= with the name alone. Refuses nothing."""
    return any(name(word) == row.name for word in loosely(command_line))


def of_ours(command_line: str) -> set[tuple[str, str | None]]:
    """Name and value of each parameter that is ours."""
    return {(name(word), value_of(word)) for word in before_init(command_line) if _is_ours(word)}


def _is_ours(word: str) -> bool:
    return name(word).startswith(_PREFIX)


def _concerns(word: str) -> bool:
    return _is_ours(word) or name(word) in _NAMES


def _read(word: str, row: Parameter[T]) -> T:
    try:
        return row.read(value_of(word))
    except ValueError:
        pass  # the refusal below is all there is to say
    cure = f"build the image with {'that' if len(row.values) == 1 else 'one of them'}"
    if row.default is not None:
        cure += ", or without it"
    raise Refusal("SX-PLATFORM-10", f"{word} is not {row.is_not or row}{_so(row)}", cure)


def _so(row: Parameter[Any]) -> str:
    return f", so {row.danger}" if row.danger else ""
