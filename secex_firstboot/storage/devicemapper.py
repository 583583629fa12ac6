"""device-mapper mappings that need no secret: pieces of block devices put together with dm-linear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from secex_firstboot.errors import FirstbootError
from secex_firstboot.process import run
from secex_firstboot.storage.disk import SECTOR

MAPPER = Path("/dev/mapper")


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


def exists(name: str) -> bool:
    return (MAPPER / name).exists()


def remove(name: str) -> None:
    """Remove a mapping if it exists; udev probes it now and then, so dmsetup may retry for a second."""
    if exists(name):
        run(["dmsetup", "remove", "--retry", name])


def target_types(name: str) -> list[str]:
    """The targets of a mapping, e.g. ['crypt'] (dmsetup never prints keys here)."""
    table = run(["dmsetup", "table", name])
    return [line.split()[2] for line in table.splitlines() if len(line.split()) > 2]


def crypt_mode(name: str) -> str:
    """How a dm-crypt mapping reads its device: cipher and options, as check-volume sees them again."""
    fields = run(["dmsetup", "table", name]).split()
    if fields[2:3] != ["crypt"]:
        raise FirstbootError(f"/dev/mapper/{name} is not an encrypted volume", "start again from the image")
    options = [field for field in fields[9:] if field.startswith(("integrity:", "sector_size:"))]
    return " ".join([fields[3], *options])
