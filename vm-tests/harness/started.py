"""Guests that sdboot has just started, kept so that others go on from there.

Nothing is missed by it: a disk on which firmware and guest would have read anything else starts as usual.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from harness import firstboot, raw_disk
from harness.guest import Guest, Saved
from harness.raw_disk import BLOCK
from secex_firstboot.sdboot import boot_record
from secex_firstboot.storage import gpt

BEFORE_UDEV = "Starting .*dracut-pre-udev"  # the guest has no driver for its disks until then
# Of its disks it may know sizes, serials and partitions by then, but nothing of what the agent goes by.
BEFORE_AGENT = r"Starting .*secex-firstboot-config"

Span = tuple[int, int]


@dataclass(frozen=True)
class Started:
    """``read``: the spans of the raw disk that it knows; ``digest`` of what was there."""

    saved: Saved
    read: tuple[Span, ...]
    digest: str


def keep(
    disk: Path,
    starting: AbstractContextManager[Guest],
    directory: Path,
    until: str = BEFORE_AGENT,
) -> Started:
    """Start a guest on the raw file ``disk``, or a server over it, and keep it in ``directory``.

    ``until``: what it says then.
    """
    directory.mkdir()
    read = (*_read_by_firmware(disk), *_partition_tables(disk))
    digest = _digest(disk, read)
    with starting as guest:
        guest.wait_for(until, firstboot.BOOT_TIMEOUT)
        return Started(guest.save(directory), read, digest)


def find(disk: Path, kept: Iterable[Started]) -> Saved | None:
    """The kept guest that would have come to the same point on this disk, if there is one."""
    return next((each.saved for each in kept if _digest(disk, each.read) == each.digest), None)


def find_or_keep(
    disk: Path, kept: list[Started], starting: AbstractContextManager[Guest], directory: Path
) -> Saved:
    """The kept guest that would have come to the same point on this disk; the first time it is made."""
    if not (saved := find(disk, kept)):
        kept.append(keep(disk, starting, directory / f"kept-{len(kept)}"))
        saved = kept[-1].saved
    return saved


def _read_by_firmware(disk: Path) -> tuple[Span, ...]:
    """Boot record, boot map and sdboot, in bytes."""
    start = raw_disk.partition_start(disk, "se")
    files = (boot_record.BOOT_MAP, boot_record.IMAGE)
    blocks = [block for name in files for block in raw_disk.blocks(disk, "se", f"/{name}")]
    return (0, boot_record.PROGRAM), *((start + block * BLOCK, BLOCK) for block in blocks if block)


def _partition_tables(disk: Path) -> tuple[Span, ...]:
    """The primary one, behind the boot record, and the backup."""
    size = 512 + gpt.ENTRIES_SIZE
    return (0, 512 + size), (disk.stat().st_size - size, size)


def _digest(disk: Path, spans: Iterable[Span]) -> str:
    digest = hashlib.sha256()
    with disk.open("rb") as stream:
        for position, size in spans:
            digest.update(os.pread(stream.fileno(), size, position))
    return digest.hexdigest()
