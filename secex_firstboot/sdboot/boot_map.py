"""The boot map: where the firmware finds the images of a disk, block by block; reading and writing it.

In a guest zipl(8) makes it. A builder of images has no s390x to run zipl on, and no block device, which zipl
insists on; so this writes, around zipl's own loader, what zipl writes. The form is that of SCSI disks, which
virtio disks have, too: the boot record (the disk's first block) names the program table; of its programs,
number 0 starts if nobody chooses. A program is a table of components: each is loaded to an address, from
extents that a chain of segment tables lists, and the last says where to begin. All integers are big-endian.

Sources: s390-tools, zipl/src/bootmap.c, zipl/src/envblk.c, zipl/boot/stage3.h, include/boot/boot_defs.h,
include/boot/loaders_layout.h.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from secex_firstboot.basic.errors import FirstbootError

IMAGE_ADDRESS = 0x10000  # where an image is loaded; stage3 moves it to 0

_MAGIC = b"zIPL"
_VERSION = 1
_POINTER = struct.Struct(">QHH4x")  # first block, size of a block, number of blocks - 1
_RECORD_POINTER_AT, _RECORD = 16, struct.Struct(">4sI8x")
_TABLE_SIZE = 512  # bytes; of the program table
_COMPONENT = struct.Struct(">16s7xBQ")  # pointer to the segment table, type, address or PSW
_EXECUTE, _LOAD = 1, 2
_MOST_BLOCKS = 1 << 16  # of an extent

# boot/loaders_layout.h. Firmware keeps off heap and stack, as zeros are loaded there.
_HEAP_ADDRESS, _HEAP_SIZE = 0x2000, 0x4000
_STACK_ADDRESS, _STACK_SIZE = 0xF000, 0x1000
_STAGE3_ADDRESS, _STAGE3_LIMIT = 0xA000, 0x4000
_PARAMETERS_ADDRESS = 0x9000
_PSW = 0x0008000080000000  # 31-bit mode
# stage3.h, struct stage3_parms: addresses of command line and initrd, length of that, PSW of the kernel,
# whether there is another command line, flags, length and address of the image, address and length of the
# environment.
_PARAMETERS = struct.Struct(">10Q")
_NOWHERE = (1 << 64) - 1
_FLAG_SCSI = 1 << 48
# zipl-editenv(8): variables for the command line, none; and the file's header, which says where it is.
_ENVIRONMENT = b"# zIPL Environment Block\n".ljust(4096, b"\0")
_HEADER = struct.Struct(">48sQQ448x")
_HEADER_TEXT, _HEADER_VERSION = b"zSeries bootmap file\ncreated by zIPL\n", 1

_LIMIT = 1 << 18
_READ_AHEAD = 1 << 20

Read = Callable[[int, int], bytes]  # (offset in bytes, bytes) of the disk


class UnsoundBootMap(FirstbootError):
    """Nothing starts from it."""

    def __init__(self, what: str) -> None:
        super().__init__("SX-SDBOOT-31", f"the disk does not start: {what}", "make the image again")


@dataclass(frozen=True)
class Extent:
    """``count`` blocks of the disk from number ``block``."""

    block: int
    count: int


@dataclass(frozen=True)
class Component:
    """Content that is loaded to an ``address``."""

    address: int
    extents: tuple[Extent, ...]


@dataclass(frozen=True)
class Program:
    """``psw``: where it begins."""

    components: tuple[Component, ...]
    psw: int

    @property
    def image(self) -> Component:
        """The boot image. Raises UnsoundBootMap if there is none, or more."""
        found = [each for each in self.components if each.address == IMAGE_ADDRESS]
        if len(found) != 1:
            raise UnsoundBootMap(f"a program of the boot map has {len(found)} images instead of one")
        return found[0]


def read(disk: Read, *, blocks: int, block_size: int) -> dict[int, Program]:
    """The programs by their number in the boot map of a disk of so many ``blocks``. Raises UnsoundBootMap."""
    return _Reader(disk, blocks, block_size).programs()


@dataclass(frozen=True)
class _Reader:
    disk: Read
    blocks: int
    block_size: int
    budget: Iterator[int] = field(default_factory=lambda: iter(range(_LIMIT)))
    """Tables and extents that may still come: they may name each other, so the disk's size is no bound."""

    def programs(self) -> dict[int, Program]:
        record = self.disk(0, self.block_size)
        magic, version = _RECORD.unpack_from(record)
        if magic != _MAGIC:
            raise UnsoundBootMap("there is no boot record")
        if version != _VERSION:
            raise UnsoundBootMap(f"its boot record is of version {version}, not {_VERSION}")
        table = self._block(record[_RECORD_POINTER_AT:], "boot record")
        pointers = [table[at : at + _POINTER.size] for at in range(0, _TABLE_SIZE, _POINTER.size)]
        if not pointers[0].startswith(_MAGIC):
            raise UnsoundBootMap("its boot record names something else than a boot map")
        return {number: self._program(each) for number, each in enumerate(pointers[1:]) if any(each)}

    def _program(self, pointer: bytes) -> Program:
        table = self._block(pointer, "program table")
        if not table.startswith(_MAGIC):
            raise UnsoundBootMap("a program of the boot map is none")
        components: list[Component] = []
        for at in range(_COMPONENT.size, self.block_size, _COMPONENT.size):
            segments, kind, value = _COMPONENT.unpack_from(table, at)
            if kind == _EXECUTE:
                return Program(tuple(components), value)
            if kind != _LOAD:
                raise UnsoundBootMap(f"a program of the boot map has a component of type {kind}")
            components.append(Component(value, tuple(self._extents(segments))))
        raise UnsoundBootMap("a program of the boot map has no end")

    def _extents(self, pointer: bytes) -> Iterator[Extent]:
        while any(pointer):
            table = self._block(pointer, "component")
            *listed, pointer = (
                table[at : at + _POINTER.size] for at in range(0, self.block_size, _POINTER.size)
            )
            for each in listed:
                if any(each):
                    yield self._extent(each, "segment table")

    def _extent(self, pointer: bytes, whose: str) -> Extent:
        if next(self.budget, None) is None:
            raise UnsoundBootMap(f"its boot map has more than {_LIMIT} tables and extents")
        block, size, more = _POINTER.unpack_from(pointer)
        found = Extent(block, more + 1)
        if size != self.block_size or not 0 < block <= self.blocks - found.count:
            raise UnsoundBootMap(f"a {whose} names blocks that the disk does not have")
        return found

    def _block(self, pointer: bytes, whose: str) -> bytes:
        return self.disk(self._extent(pointer, whose).block * self.block_size, self.block_size)


class Content(io.RawIOBase):
    """What a component loads, as a file that can be read and sought."""

    def __init__(self, disk: Read, component: Component, block_size: int) -> None:
        self._disk, self._extents, self._block_size = disk, component.extents, block_size
        self._at = 0
        self.size = sum(each.count for each in component.extents) * block_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        place, room = self._place(self._at)
        content = self._disk(place, min(room, len(buffer), _READ_AHEAD)) if room else b""
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def _place(self, at: int) -> tuple[int, int]:
        """Where on the disk byte ``at`` is, and how many bytes follow there."""
        for extent in self._extents:
            size = extent.count * self._block_size
            if at < size:
                return extent.block * self._block_size + at, size - at
            at -= size
        return 0, 0


# --- writing -----------------------------------------------------------------------------------------------


def size(stage3: bytes, image: Sequence[Extent], block_size: int) -> int:
    """Bytes of the file that ``write`` makes for an image in these extents, or as many others."""
    return len(_Writer(stage3, [Extent(1, 1 << 30)], block_size).write(image, 0)[0])


def write(
    stage3: bytes, image: Sequence[Extent], image_size: int, *, boot_map: Sequence[Extent], block_size: int
) -> tuple[bytes, bytes]:
    """The content of the file that lies in the extents ``boot_map``, and the start of the boot record.

    ``stage3`` is zipl's loader (stage3.bin of s390-tools); ``image_size`` bytes in the extents ``image`` are
    what it starts. Raises FirstbootError if the first is no loader.
    """
    if not 0 < len(stage3) <= _STAGE3_LIMIT:
        raise FirstbootError(
            "SX-SDBOOT-32",
            f"stage3.bin has {len(stage3)} bytes and is no boot loader",
            "install s390-tools in the image again",
        )
    return _Writer(stage3, boot_map, block_size).write(image, image_size)


class _Writer:
    """Appends to the boot map's file, and tells where on the disk that is."""

    def __init__(self, stage3: bytes, boot_map: Sequence[Extent], block_size: int) -> None:
        self._stage3, self._block_size = stage3, block_size
        self._blocks = (extent.block + at for extent in boot_map for at in range(extent.count))
        self._file = bytearray()

    def write(self, image: Sequence[Extent], image_size: int) -> tuple[bytes, bytes]:
        end = IMAGE_ADDRESS + -(-image_size // len(_ENVIRONMENT)) * len(_ENVIRONMENT)
        parameters = _PARAMETERS.pack(
            *(_NOWHERE, 0, 0, _PSW | IMAGE_ADDRESS, 0, _FLAG_SCSI),
            *(image_size, IMAGE_ADDRESS, end, len(_ENVIRONMENT)),
        )
        self._append(bytes(_HEADER.size))
        self._append(bytes(-len(self._file) % len(_ENVIRONMENT)))
        environment_at = len(self._file)
        environment = self._append(_ENVIRONMENT)
        loaded = (
            (_HEAP_ADDRESS, self._append(bytes(_HEAP_SIZE))),
            (_STACK_ADDRESS, self._append(bytes(_STACK_SIZE))),
            (_STAGE3_ADDRESS, self._append(self._stage3)),
            (_PARAMETERS_ADDRESS, self._append(parameters)),
            (IMAGE_ADDRESS, image),
            (end, environment),
        )
        table = bytearray(_MAGIC.ljust(_COMPONENT.size, b"\0"))
        for address, extents in loaded:
            table += _COMPONENT.pack(self._segments(extents), _LOAD, address)
        table += _COMPONENT.pack(b"", _EXECUTE, _PSW | _STAGE3_ADDRESS)
        program = self._append_block(table)
        programs = self._append_block(_MAGIC.ljust(_POINTER.size, b"\0") + program)
        self._file[: _HEADER.size] = _HEADER.pack(_HEADER_TEXT, _HEADER_VERSION, environment_at)
        return bytes(self._file), _RECORD.pack(_MAGIC, _VERSION) + programs

    def _segments(self, extents: Sequence[Extent]) -> bytes:
        """The pointer to the first of their segment tables, each of which ends in one to the next."""
        pointers = [self._pointer(part) for extent in extents for part in _of_a_pointer(extent)]
        room = self._block_size // _POINTER.size - 1
        following = bytes(_POINTER.size)
        for at in reversed(range(0, len(pointers), room)):
            listed = b"".join(pointers[at : at + room]).ljust(room * _POINTER.size, b"\0")
            following = self._append_block(listed + following)
        return following

    def _append_block(self, content: bytes | bytearray) -> bytes:
        (extent,) = self._append(content.ljust(self._block_size, b"\0"))
        return self._pointer(extent)

    def _append(self, content: bytes | bytearray) -> list[Extent]:
        """In whole blocks; those of the disk."""
        count = -(-len(content) // self._block_size)
        self._file += content.ljust(count * self._block_size, b"\0")
        return joined(islice(self._blocks, count))

    def _pointer(self, extent: Extent) -> bytes:
        return _POINTER.pack(extent.block, self._block_size, extent.count - 1)


def joined(blocks: Iterable[int]) -> list[Extent]:
    """These blocks of a disk, in this order, in as few extents as it takes."""
    found: list[Extent] = []
    for block in blocks:
        if found and block == found[-1].block + found[-1].count:
            found[-1] = Extent(found[-1].block, found[-1].count + 1)
        else:
            found.append(Extent(block, 1))
    return found


def _of_a_pointer(extent: Extent) -> Iterator[Extent]:
    for at in range(0, extent.count, _MOST_BLOCKS):
        yield Extent(extent.block + at, min(_MOST_BLOCKS, extent.count - at))
