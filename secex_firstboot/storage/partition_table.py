"""Changing the GPT of the provisioned disk, with sfdisk.

Each change is one rewrite of the table and safe to repeat. Partitions of the disk may be in use: the kernel
is told of each changed partition by itself (BLKPG, partx), never asked to read the whole table again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secex_firstboot.process import run

_OFFLINE = ["--no-reread", "--no-tell-kernel", "--wipe=never", "--wipe-partitions=never", "--quiet"]


def delete(disk: Path, numbers: Sequence[int]) -> None:
    run(["sfdisk", *_OFFLINE, "--delete", disk, *map(str, numbers)])
    for number in numbers:
        run(["partx", "--delete", "--nr", str(number), disk])


def resize(disk: Path, number: int, blocks: int) -> None:
    """Give a partition a new size in logical blocks of the disk; its start stays."""
    run(["sfdisk", *_OFFLINE, f"--partno={number}", disk], stdin=f",{blocks}\n")
    run(["partx", "--update", "--nr", str(number), disk])
    run(["udevadm", "settle", "--timeout=30"])
