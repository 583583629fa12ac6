"""device-mapper mappings: pieces of block devices put together, and what a mapping is known by.

That is what the kernel says of it: number, name and UUID (Linux: Documentation/ABI/testing/sysfs-block-dm). A
path below /dev is made by udev, after rules that other programs bring with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from secex_firstboot.errors import FirstbootError
from secex_firstboot.process import run
from secex_firstboot.storage.disk import SECTOR

MAPPER = Path("/dev/mapper")
BLOCK = Path("/sys/class/block")


@dataclass(frozen=True)
class Mapping:
    """``number`` is the st_rdev of its device, and the st_dev of what lies on it as a file system."""

    number: int
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
            lines.append(f"{at} {piece.size // SECTOR} linear {piece.device} {piece.offset // SECTOR}")
            at += piece.size // SECTOR
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
            major, _, minor = (device / "dev").read_text(encoding="ascii").strip().partition(":")
            name, uuid = (
                (device / "dm" / key).read_text(encoding="utf-8").strip() for key in ("name", "uuid")
            )
        except FileNotFoundError:  # closed meanwhile
            continue
        yield Mapping(os.makedev(int(major), int(minor)), name, uuid)


def uuid_of(kind: str, uuid: str, name: str) -> str:
    """The UUID that libcryptsetup gives a mapping of ``kind`` (LUKS2, VERITY), for that of the header.

    lib/libdevmapper.c, dm_prepare_uuid.
    """
    return f"CRYPT-{kind}-{uuid.replace('-', '')}-{name}"


def remove(name: str) -> None:
    """Remove a mapping if it exists; udev probes it now and then, so dmsetup may retry for a second."""
    if exists(name):
        run(["dmsetup", "remove", "--retry", name])


def target_types(name: str) -> list[str]:
    """The targets of a mapping, e.g. ['crypt'] (dmsetup never prints keys here)."""
    table = run(["dmsetup", "table", name])
    return [line.split()[2] for line in table.splitlines() if len(line.split()) > 2]


def crypt_mode(name: str) -> str:
    """Which volume a dm-crypt mapping is, and how it reads its device, as check-volume sees it again.

    Its UUID, the cipher, and options.
    """
    uuid = run(["dmsetup", "info", "--columns", "--noheadings", "-o", "uuid", name]).strip()
    fields = run(["dmsetup", "table", name]).split()
    if fields[2:3] != ["crypt"]:
        raise FirstbootError(f"/dev/mapper/{name} is not an encrypted volume", "start again from the image")
    options = [field for field in fields[9:] if field.startswith(("integrity:", "sector_size:"))]
    return " ".join([uuid, fields[3], *options])
