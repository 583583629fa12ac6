"""Raw disk images, looked at and changed from outside: partitions by name, ext4 file systems in them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from secex_firstboot.builder import volumes
from secex_firstboot.storage import gpt

BLOCK = 4096  # bytes, of every ext4 file system that is looked at


def make(image: Path, disk: Path, size: int) -> None:
    """A raw copy of an image, made larger; ``size`` in bytes."""
    os.truncate(convert(image, disk), size)


def convert(image: Path, raw: Path) -> Path:
    """A raw copy of an image, sparse; returns ``raw``."""
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    return raw


def partition_start(disk: Path, name: str) -> int:
    """Where the partition with this GPT name begins, in bytes."""
    return partition(disk, name)[0]


def partition(disk: Path, name: str) -> tuple[int, int]:
    """Where the partition with this GPT name begins, and its size, in bytes."""
    table = gpt.in_use(disk, gpt.block_size_of(disk))
    found = next(entry for entry in table.entries if entry.name == name)
    return found.start, found.size


def debugfs(disk: Path, partition: str, *commands: str, write: bool = False) -> str:
    """What debugfs(8) answers, each command after its prompt."""
    return subprocess.run(
        ["debugfs", *(["-w"] if write else []), "-f", "-", _place(disk, partition)],
        input="\n".join(commands),
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def replay_journal(disk: Path, partition: str) -> None:
    """So that the kernel does not undo, from the journal, what is then changed from outside."""
    command = ["e2fsck", "-y", "-E", "journal_only", _place(disk, partition)]
    subprocess.run(command, check=False, capture_output=True)


def blocks(disk: Path, partition: str, path: str) -> list[int]:
    """The blocks of a file, in order; 0 is a hole."""
    found: list[int] = []
    for number, first, last in volumes.extents_of(Path(_place(disk, partition)), path):
        found += [0] * (number - len(found)) + list(range(first, last + 1))
    return found


def address(disk: Path, partition: str, path: str, offset: int) -> int:
    """Where byte ``offset`` of a file lies on the disk."""
    block = blocks(disk, partition, path)[offset // BLOCK]
    return partition_start(disk, partition) + block * BLOCK + offset % BLOCK


def flip(disk: Path, position: int, bit: int = 1) -> None:
    """Invert these bits of the byte there."""
    with disk.open("r+b") as stream:
        stream.seek(position)
        (value,) = stream.read(1)
        stream.seek(position)
        stream.write(bytes([value ^ bit]))


def _place(disk: Path, partition: str) -> str:
    return f"{disk}?offset={partition_start(disk, partition)}"
