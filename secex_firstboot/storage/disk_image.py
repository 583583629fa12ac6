"""An image file as the disk that it becomes: the partitions that ``disk`` finds with udev in the guest."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import is_full
from secex_firstboot.basic.process import ToolError, run
from secex_firstboot.contract.metadata import Metadata
from secex_firstboot.storage import gpt
from secex_firstboot.storage.disk import Disk, Partition

# The header of a qcow2: magic, version, where the name of a backing file is, bytes of the disk, and in
# version 3 the features that a reader has to know, of which one is a file beside it with the data (QEMU:
# docs/interop/qcow2.txt).
_QCOW2 = struct.Struct(">4sIQ8xQ40xQ")
_MAGIC = b"QFI\xfb"
_DATA_FILE = 1 << 2
_HEAD = 1 << 20  # bytes of each partition that say what it is
_SIZE_LIMIT = 1 << 46
_SE_LIMIT = 4 << 30
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


def is_laid_out_as(disk: Disk, metadata: Metadata) -> bool:
    found = [(each.number, each.name, each.start, each.size) for each in disk.all]
    return found == [(each.number, each.name, each.start, each.size) for each in metadata.partitions]


def is_disk(file: Path) -> bool:
    """Whether it is a qcow2, or has a partition table."""
    if is_qcow2(file):
        return True
    try:
        return bool(gpt.block_size_of(file))
    except gpt.UnsoundTable:
        return False


def is_qcow2(file: Path) -> bool:
    """Raises Refusal if it cannot be read."""
    return _start(file).startswith(_MAGIC)


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
    if len(start) < _QCOW2.size:
        raise _damaged(image, "it has no header")
    if _names_another_file(start):
        raise Refusal(
            "SX-CHECK-12",
            f"{image} is a part of an image, and names the file with the rest",
            f"look where that leads, and make one file: qemu-img convert -O qcow2 {image} WHOLE.qcow2",
        )
    size = _QCOW2.unpack(start)[3]
    if size > _SIZE_LIMIT:
        raise Refusal("SX-CHECK-13", f"{image} says that it has {size} bytes", _CURE)
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory, "raw")
        try:
            if whole:
                run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image.absolute(), made])
            else:
                _copy_what_tells(image.absolute(), size, made)
        except ToolError as error:
            if is_full(Path(directory)):
                raise FirstbootError(
                    "SX-CHECK-28",
                    f"there is no room for what is in {image}: {error.message}",
                    f"make some in {Path(directory).parent}, or name another place: TMPDIR=",
                ) from None
            raise _damaged(image, error.message) from None
        yield made


def _damaged(image: Path, why: str) -> Refusal:
    return Refusal("SX-CHECK-14", f"{image} is damaged: {why}", "get it again from where it came")


def _start(image: Path) -> bytes:
    try:
        with image.open("rb") as stream:
            return stream.read(_QCOW2.size)
    except OSError as error:
        raise Refusal("SX-CHECK-09", f"{image} cannot be read: {error.strerror}", _CURE) from None


def _names_another_file(start: bytes) -> bool:
    _, version, backing_file, _, features = _QCOW2.unpack(start)
    return bool(backing_file or (version > 2 and features & _DATA_FILE))


def _copy_what_tells(image: Path, size: int, made: Path) -> None:
    """Into a file as large as the disk of so many bytes."""
    with made.open("wb") as stream:
        stream.truncate(size)
    _copy(image, size, made, 0, _HEAD)
    try:
        block_size = gpt.block_size_of(made)
        table = gpt.primary(made, block_size)
    except gpt.UnsoundTable:
        return  # whoever reads it says so
    end_of_copy = (table.other + 1) * block_size
    _copy(image, size, made, end_of_copy - block_size - gpt.ENTRIES_SIZE, block_size + gpt.ENTRIES_SIZE)
    for each in table.entries:
        _copy(image, size, made, each.start, min(each.size, _SE_LIMIT) if each.name == "se" else _HEAD)


def _copy(image: Path, size: int, made: Path, start: int, length: int) -> None:
    """So much of the disk to the same place in ``made``, where nothing but zeros is yet."""
    region = {"driver": "raw", "offset": start, "size": min(start + length, size) - start}
    content = {"driver": "qcow2", "file": {"driver": "file", "filename": str(image)}}
    source = json.dumps({**region, "file": content})
    options = ",".join(f"{name}={value}" for name, value in region.items())
    run(
        [
            *("qemu-img", "convert", "-n", "--target-is-zero", f"json:{source}", "--target-image-opts"),
            f"{options},file.driver=file,file.filename={made}",
        ]
    )
