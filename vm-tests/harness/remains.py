"""What a provisioned disk still shows of the image it was made from."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness import raw_disk
from secex_firstboot.contract.partitions import HASH_TREES, VOLUMES

SECTOR = 512
_CHUNK = 4 << 20
_LEAST_VALUES = 24  # of the 64 bytes looked at; fewer may stand anywhere: zeros, padding, tables

Span = tuple[int, int]
_PUBLISHED = (*VOLUMES, *HASH_TREES.values())


def of_image(disk: Path, image: Path, work: Path) -> list[int]:
    """Where on a powered-off disk a sector of the image's plain content lies, but for partition ``se``.

    There it has the boot loaders that are in the image's root as well. ``work`` is a directory.
    """
    before, after = raw_disk.convert(image, work / "image.raw"), raw_disk.convert(disk, work / "disk.raw")
    published = Published(read(before, *raw_disk.partition(before, name)) for name in _PUBLISHED)
    found = published.found_in(after, without=[raw_disk.partition(after, "se")])
    before.unlink()
    after.unlink()
    return found


class Published:
    """Every distinctive sector of the image's plain content, known by its hash."""

    def __init__(self, contents: Iterable[bytes]) -> None:
        sectors = (sector for content in contents for _, sector in _sectors(content))
        self._known = {hash(sector) for sector in sectors if len(set(sector[::8])) >= _LEAST_VALUES}

    def found_in(self, disk: Path, without: Iterable[Span] = ()) -> list[int]:
        """Where on the raw ``disk`` such a sector lies; ``without``: spans (offset, size) not to look at."""
        skipped = [range(start, start + size) for start, size in without]
        return [
            start + at
            for start, content in _data(disk)
            for at, sector in _sectors(content)
            if hash(sector) in self._known and not any(start + at in span for span in skipped)
        ]


def read(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def _sectors(content: bytes) -> Iterator[tuple[int, bytes]]:
    for at in range(0, len(content), SECTOR):
        yield at, content[at : at + SECTOR]


def _data(disk: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, content) of what is no hole, a chunk at a time; the last chunk may reach into a hole."""
    end, at = disk.stat().st_size, 0
    with disk.open("rb") as stream:
        while at < end:
            try:
                at = os.lseek(stream.fileno(), at, os.SEEK_DATA) // SECTOR * SECTOR
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole follows (lseek(2))
                    return
                raise
            yield at, os.pread(stream.fileno(), min(_CHUNK, end - at), at)
            at += _CHUNK
