"""device-mapper mappings: pieces of block devices put together, and what a mapping is known by.

That is what the kernel says of it: number, name and UUID (Linux: Documentation/ABI/testing/sysfs-block-dm). A
path below /dev is made by udev, after rules that other programs bring with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.process import run

MAPPER = Path("/dev/mapper")
BLOCK = Path("/sys/class/block")
DEVICES = Path("/sys/dev/block")
_SECTOR = 512  # bytes; the unit of tables


@dataclass(frozen=True)
class Mapping:
    """``number`` ("MAJOR:MINOR") is that of its device, and of the file system that lies on it."""

    number: str
    name: str
    uuid: str


@dataclass(frozen=True)
class Piece:
    """``size`` bytes of ``device`` from byte ``offset``; both multiples of 512."""

    device: Path
    offset: int
    size: int


def linear_table(pieces: Sequence[Piece]) -> str:
    """The dmsetup table that shows ``pieces`` one after the other as one device."""
    lines, at = [], 0
    for piece in pieces:
        if piece.size:
            lines.append(f"{at} {piece.size // _SECTOR} linear {piece.device} {piece.offset // _SECTOR}")
            at += piece.size // _SECTOR
    return "\n".join(lines)


def create_linear(name: str, pieces: Sequence[Piece], *, read_only: bool = False) -> Path:
    """Map ``pieces`` under ``name`` and return the device."""
    options = ["--readonly"] if read_only else []
    run(["dmsetup", "create", name, "--verifyudev", *options], stdin=linear_table(pieces))
    return MAPPER / name


def find(name: str) -> Mapping | None:
    """The mapping of this name; the kernel has one at most."""
    return next((mapping for mapping in _mappings() if mapping.name == name), None)


def exists(name: str) -> bool:
    return find(name) is not None


def _mappings() -> Iterator[Mapping]:
    for device in sorted(BLOCK.glob("dm-*")):
        try:
            texts = [(device / each).read_text(encoding="utf-8") for each in ("dev", "dm/name", "dm/uuid")]
        except FileNotFoundError:  # closed meanwhile
            continue
        yield Mapping(*(text.strip() for text in texts))


def uuid_of(kind: str, uuid: str, name: str) -> str:
    """The UUID that libcryptsetup gives a mapping of ``kind`` (LUKS2, VERITY), for that of the header.

    lib/libdevmapper.c, dm_prepare_uuid.
    """
    return f"CRYPT-{kind}-{uuid.replace('-', '')}-{name}"


def remove(name: str) -> None:
    """Remove a mapping if it exists; udev probes it now and then, so dmsetup may retry for a second."""
    if exists(name):
        run(["dmsetup", "remove", "--retry", name])


@dataclass(frozen=True)
class Target:
    """One line of a mapping's table; ``arguments`` are what follows its type."""

    type: str
    arguments: list[str]


def table(name: str) -> list[Target]:
    """The targets of a mapping (dmsetup never prints keys here)."""
    lines = (line.split() for line in run(["dmsetup", "table", name]).splitlines())
    return [Target(type, arguments) for _, _, type, *arguments in lines]


def device(number: str) -> Path:
    """The node of a block device, from its number as tables have it: the kernel's own name in devtmpfs.

    Raises FirstbootError if the node is not that device.
    """
    uevent = (DEVICES / number / "uevent").read_text(encoding="utf-8")
    name = next(line.removeprefix("DEVNAME=") for line in uevent.splitlines() if line.startswith("DEVNAME="))
    node = Path("/dev") / name
    if number_of(node) != number:
        raise FirstbootError("SX-DISK-05", f"{node} is not the block device {number}", "start again")
    return node


def number_of(device: Path) -> str:
    """A block device's number, as tables have it."""
    found = device.stat().st_rdev
    return f"{os.major(found)}:{os.minor(found)}"


def crypt_mode(name: str) -> str:
    """Which volume a dm-crypt mapping is, and how it reads its device, as check-volume sees it again.

    Its UUID, the cipher, and options.
    """
    uuid = run(["dmsetup", "info", "--columns", "--noheadings", "-o", "uuid", name]).strip()
    targets = table(name)
    if [target.type for target in targets] != ["crypt"]:
        raise FirstbootError(
            "SX-DISK-06", f"/dev/mapper/{name} is not an encrypted volume", "start again from the image"
        )
    cipher, *arguments = targets[0].arguments
    options = [option for option in arguments[5:] if option.startswith(("integrity:", "sector_size:"))]
    return " ".join([uuid, cipher, *options])
