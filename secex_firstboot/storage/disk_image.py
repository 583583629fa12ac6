"""An image file as the disk that it becomes: the partitions that ``disk`` finds with udev in the guest."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.process import ToolError, run
from secex_firstboot.storage import gpt
from secex_firstboot.storage.disk import Disk, Partition

# The header of a qcow2: magic, version, where the name of a backing file is, and in version 3 the features
# that a reader has to know, of which one is a file beside it with the data (QEMU: docs/interop/qcow2.txt).
_QCOW2 = struct.Struct(">4sIQ56xQ")
_MAGIC = b"QFI\xfb"
_DATA_FILE = 1 << 2
_HEAD = 1 << 20  # bytes of each partition that say what it is
_SIZE_LIMIT = 1 << 46
_CURE = "name a disk image, raw or qcow2"


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


def is_disk(file: Path) -> bool:
    """Whether it is a qcow2, or has a partition table."""
    if _start(file).startswith(_MAGIC):
        return True
    try:
        return bool(gpt.block_size_of(file))
    except gpt.UnsoundTable:
        return False


@contextmanager
def raw(image: Path, *, whole: bool = False) -> Iterator[Path]:
    """A raw image for the length of a ``with`` block: the file itself, or what a qcow2 has in it.

    Unless it has to be ``whole``, of that only what says what is where: partition table, partition ``se``,
    and the start of the others; the rest is a hole. Raises Refusal for what cannot be read, and for a part of
    an image that names the file with the rest: whoever made it would choose what is read here.
    """
    start = _start(image)
    if not start.startswith(_MAGIC):
        yield image
        return
    if _names_another_file(start):
        raise Refusal(
            "SX-CHECK-12",
            f"{image} is a part of an image, and names the file with the rest",
            f"look where that leads, and make one file: qemu-img convert -O qcow2 {image} WHOLE.qcow2",
        )
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory, "raw")
        try:
            pieces = None if whole else _Pieces.of(image)
            if pieces:
                pieces.copy_what_tells(made)
            else:
                run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, made])
        except ToolError as error:
            raise Refusal(
                "SX-CHECK-14", f"{image} is damaged: {error.message}", "get it again from where it came"
            ) from None
        yield made


def _start(image: Path) -> bytes:
    try:
        with image.open("rb") as stream:
            return stream.read(_QCOW2.size)
    except OSError as error:
        raise Refusal("SX-CHECK-09", f"{image} cannot be read: {error.strerror}", _CURE) from None


def _names_another_file(start: bytes) -> bool:
    if len(start) < _QCOW2.size:
        return False  # and qemu-img says what is wrong with it
    _, version, backing_file, features = _QCOW2.unpack(start)
    return bool(backing_file or (version > 2 and features & _DATA_FILE))


@dataclass(frozen=True)
class _Pieces:
    """Where in the file of a qcow2 the content of the disk lies: (start, bytes, place in the file)."""

    image: Path
    size: int
    places: Sequence[tuple[int, int, int]]

    @classmethod
    def of(cls, image: Path) -> _Pieces | None:
        """None if some of it is compressed or encrypted, and has no place of its own."""
        answer = json.loads(run(["qemu-img", "map", "--output=json", "-f", "qcow2", image]))
        places = []
        for each in answer:
            if each["data"] and not each["zero"]:
                if "offset" not in each or each.get("compressed"):
                    return None
                places.append((each["start"], each["length"], each["offset"]))
        return cls(image, max(each["start"] + each["length"] for each in answer) if answer else 0, places)

    def copy_what_tells(self, target: Path) -> None:
        if self.size > _SIZE_LIMIT:
            raise FirstbootError("SX-CHECK-13", f"{self.image} says that it has {self.size} bytes", _CURE)
        with target.open("wb") as stream:
            stream.truncate(self.size)
        self._copy(target, 0, _HEAD)
        self._copy(target, self.size - _HEAD, _HEAD)
        try:
            entries = gpt.primary(target, gpt.block_size_of(target)).entries
        except gpt.UnsoundTable:
            return  # whoever reads it says so
        for each in entries:
            self._copy(target, each.start, each.size if each.name == "se" else _HEAD)

    def _copy(self, target: Path, start: int, size: int) -> None:
        end = min(start + size, self.size)
        with self.image.open("rb") as source, target.open("r+b") as stream:
            for at, length, place in self.places:
                begin, stop = max(at, start), min(at + length, end)
                while begin < stop:
                    piece = os.pread(source.fileno(), min(stop - begin, _HEAD), place + begin - at)
                    if not piece:
                        break  # cut short: what is missing reads as zeros, and is no image
                    os.pwrite(stream.fileno(), piece, begin)
                    begin += len(piece)
