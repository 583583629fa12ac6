"""A raw image file as the disk that it becomes: the partitions that ``disk`` finds with udev in the guest."""

from __future__ import annotations

from pathlib import Path

from secex_firstboot.storage import gpt
from secex_firstboot.storage.disk import Disk, Partition


def read(image: Path, shown_as: Path) -> Disk:
    """The disk, called ``shown_as`` in messages; each partition's ``device`` is the file, where it starts.

    Raises UnsoundTable if the table or its backup is not whole: an image that was published had both.
    """
    block_size = gpt.block_size_of(image)
    gpt.check_protective_mbr(image)
    found = [
        Partition(each.number, each.name, image, each.uuid, each.start, each.size)
        for each in gpt.whole(image, block_size).entries
    ]
    return Disk.of(shown_as, image.stat().st_size // block_size * block_size, block_size, found)
