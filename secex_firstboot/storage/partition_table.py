"""Changing the GPT of the disk, in an order that survives a power cut at any moment.

sfdisk changes a stand-in, a sparse file as large as the disk; what it wrote is then placed: first the backup
table at the end of the disk, and once that is on stable storage the primary one. So one of the two is whole
at every moment. (A kernel looks for the backup where it is told ``gpt`` on its command line: block/partitions
/efi.c, force_gpt; libblkid and sfdisk always do.)

Partitions of the disk may be in use: the kernel is told of each changed partition by itself (BLKPG, partx),
never asked to read the whole table again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from secex_firstboot.basic.files import open_private, size_of
from secex_firstboot.basic.process import run
from secex_firstboot.storage import gpt, loop
from secex_firstboot.storage.gpt import ENTRIES_SIZE, UnsoundTable

FORCE_GPT = "gpt"

_OFFLINE = ["--no-reread", "--no-tell-kernel", "--wipe=never", "--wipe-partitions=never", "--quiet"]


def change(
    disk: Path,
    block_size: int,
    *,
    delete: Sequence[int],
    places: Mapping[int, tuple[int, int]],
    scratch: Path,
) -> None:
    """Delete partitions, and give others by number, one after the other, their ``places``: start and size,
    bytes.

    All that is not the table's stays. ``scratch`` is a directory in RAM. Doing it again changes nothing.
    """
    stand_in = scratch / "partition-table"
    try:
        _copy_tables(disk, stand_in, block_size)
        with loop.attached(stand_in, block_size=block_size) as device:
            if delete:
                run(["sfdisk", *_OFFLINE, "--delete", device, *map(str, delete)])
            for number, place in places.items():
                start, blocks = (each // block_size for each in place)
                run(["sfdisk", *_OFFLINE, f"--partno={number}", device], stdin=f"{start},{blocks}\n")
        _place(stand_in, disk, block_size)
    finally:
        stand_in.unlink(missing_ok=True)
    _tell_kernel(disk, delete, places)


def is_sound(disk: Path, block_size: int) -> bool:
    """Whether the primary table and the backup at the end of the disk are both whole, and the same."""
    try:
        return gpt.whole(disk, block_size).other == size_of(disk) // block_size - 1
    except UnsoundTable:
        return False


def _spans(size: int, block_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(offset, bytes) of the backup table and of the primary one with the protective MBR, in that order."""
    backup = ENTRIES_SIZE + block_size
    return (size - backup, backup), (0, 2 * block_size + ENTRIES_SIZE)


def _copy_tables(disk: Path, stand_in: Path, block_size: int) -> None:
    size = size_of(disk)
    with open_private(stand_in) as target, disk.open("rb", buffering=0) as stream:
        target.truncate(size)
        for offset, length in _spans(size, block_size):
            target.seek(offset)
            target.write(os.pread(stream.fileno(), length, offset))


def _place(stand_in: Path, disk: Path, block_size: int) -> None:
    with stand_in.open("rb", buffering=0) as source, disk.open("r+b", buffering=0) as target:
        for offset, length in _spans(size_of(disk), block_size):
            os.pwrite(target.fileno(), os.pread(source.fileno(), length, offset), offset)
            os.fsync(target.fileno())


def _tell_kernel(disk: Path, deleted: Sequence[int], changed: Iterable[int]) -> None:
    for number in deleted:
        run(["partx", "--delete", "--nr", str(number), disk])
    for number in changed:
        run(["partx", "--update", "--nr", str(number), disk])
    run(["udevadm", "settle", "--timeout=30"])
