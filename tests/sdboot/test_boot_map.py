"""The boot map that is written is read as the firmware reads it; a hostile one is refused.

That zipl(8) writes the same is shown in vm-tests/test_boot_map.py.
"""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.sdboot import boot_map
from secex_firstboot.sdboot.boot_map import Content, Extent, UnsoundBootMap

BLOCK = 512
BLOCKS = 1 << 18
STAGE3 = bytes(range(256)) * 60
BOOT_MAP = [Extent(5000, 90), Extent(9000, 200)]
IMAGE = [Extent(20_000, 70_000), Extent(100_008, 16)]
IMAGE_SIZE = 70_016 * BLOCK - 100


@dataclass
class Disk:
    """Written block by block; anything else reads as zeros."""

    blocks: dict[int, bytes]

    def read(self, at: int, size: int) -> bytes:
        first, skipped = divmod(at, BLOCK)
        blocks = range(first, first - (-(skipped + size) // BLOCK))
        return b"".join(self.blocks.get(each, bytes(BLOCK)) for each in blocks)[skipped:][:size]

    def put(self, content: bytes, places: Sequence[Extent]) -> None:
        numbers = (extent.block + at for extent in places for at in range(extent.count))
        for at in range(0, len(content), BLOCK):
            self.blocks[next(numbers)] = content[at : at + BLOCK].ljust(BLOCK, b"\0")


def made(
    image: Sequence[Extent] = IMAGE, boot_map_at: Sequence[Extent] = BOOT_MAP, stage3: bytes = STAGE3
) -> Disk:
    disk = Disk({})
    file, record = boot_map.write(stage3, image, IMAGE_SIZE, boot_map=boot_map_at, block_size=BLOCK)
    assert len(file) == boot_map.size(stage3, image, BLOCK)
    disk.put(file, boot_map_at)
    disk.put(record, [Extent(0, 1)])
    return disk


def programs(disk: Disk) -> dict[int, boot_map.Program]:
    return boot_map.read(disk.read, blocks=BLOCKS, block_size=BLOCK)


def content(disk: Disk, component: boot_map.Component) -> bytes:
    return io.BufferedReader(Content(disk.read, component, BLOCK)).read()


def test_what_is_written_starts_zipls_loader_and_that_the_image() -> None:
    disk = made()
    (program,) = programs(disk).values()
    assert program.psw == 0x000800008000A000
    loaded = {each.address: each for each in program.components}
    assert content(disk, loaded[0xA000]).rstrip(b"\0") == STAGE3.rstrip(b"\0")
    parameters = struct.unpack(">10Q", content(disk, loaded[0x9000])[:80])
    end = 0x10000 + -(-IMAGE_SIZE // 4096) * 4096
    assert parameters == (2**64 - 1, 0, 0, 0x0008000080010000, 0, 1 << 48, IMAGE_SIZE, 0x10000, end, 4096)
    assert content(disk, loaded[end]).startswith(b"# zIPL Environment Block\n\0")
    assert not any(content(disk, loaded[0x2000]) + content(disk, loaded[0xF000]))


def test_an_image_in_many_pieces_is_loaded_from_all_of_them_in_order() -> None:
    pieces = [Extent(20_000 + 16 * number, 8) for number in range(100)]
    (program,) = programs(made(pieces)).values()
    assert list(program.image.extents) == pieces


def test_a_piece_that_is_too_long_for_a_pointer_takes_two() -> None:
    (program,) = programs(made()).values()
    assert list(program.image.extents) == [Extent(20_000, 65_536), Extent(85_536, 4464), Extent(100_008, 16)]


def test_content_is_read_from_any_place() -> None:
    disk = Disk({})
    pieces = [Extent(30, 2), Extent(10, 1), Extent(40, 3)]
    whole = random.Random(1).randbytes(6 * BLOCK)  # noqa: S311
    disk.put(whole, pieces)
    stream = io.BufferedReader(Content(disk.read, boot_map.Component(0, tuple(pieces)), BLOCK))
    assert stream.read() == whole
    assert stream.seek(2 * BLOCK) == 2 * BLOCK
    assert stream.read(700) == whole[2 * BLOCK :][:700]
    stream.seek(-10, io.SEEK_END)
    assert stream.read() == whole[-10:]


@pytest.mark.parametrize("size", [0, (16 << 10) + 1])
def test_what_is_no_loader_is_refused(size: int) -> None:
    with pytest.raises(FirstbootError, match=rf"stage3\.bin has {size} bytes and is no boot loader"):
        made(stage3=bytes(size))


def pointer(block: int, size: int = BLOCK, more: int = 0) -> bytes:
    return struct.pack(">QHH4x", block, size, more)


def first_component(disk: Disk) -> int:
    """The block of the first component's segment table."""
    program = struct.unpack_from(">Q", disk.read(program_table(disk) * BLOCK, BLOCK), 16)[0]
    return int(struct.unpack_from(">Q", disk.read(program * BLOCK, BLOCK), 32)[0])


def program_table(disk: Disk) -> int:
    return int(struct.unpack_from(">Q", disk.read(0, BLOCK), 16)[0])


def change(disk: Disk, block: int, at: int, new: bytes) -> None:
    old = disk.read(block * BLOCK, BLOCK)
    disk.blocks[block] = old[:at] + new + old[at + len(new) :]


CHANGES: dict[str, tuple[Callable[[Disk], None], str]] = {
    "no boot record": (lambda disk: change(disk, 0, 0, b"none"), "there is no boot record"),
    "another version": (lambda disk: change(disk, 0, 4, b"\0\0\0\2"), "of version 2, not 1"),
    "a record to nowhere": (lambda disk: change(disk, 0, 16, pointer(BLOCKS)), "that the disk does not have"),
    "a record to itself": (lambda disk: change(disk, 0, 16, pointer(0)), "that the disk does not have"),
    "a record to something": (
        lambda disk: change(disk, 0, 16, pointer(77)),
        "something else than a boot map",
    ),
    "blocks of another size": (
        lambda disk: change(disk, 0, 16, pointer(program_table(disk), 4096)),
        "that the disk does not have",
    ),
    "no program": (
        lambda disk: change(disk, program_table(disk), 16, pointer(77)),
        "a program of the boot map is none",
    ),
    "tables in a circle": (
        lambda disk: change(disk, first_component(disk), BLOCK - 16, pointer(first_component(disk))),
        "its boot map has more than 262144 tables and extents",
    ),
    "beyond the end": (
        lambda disk: change(disk, first_component(disk), 0, pointer(BLOCKS - 1, more=1)),
        "a segment table names blocks that the disk does not have",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_boot_map_that_leads_nowhere_is_refused(what: str) -> None:
    disk = made()
    change_it, says = CHANGES[what]
    change_it(disk)
    with pytest.raises(UnsoundBootMap, match=says):
        programs(disk)


def test_a_program_without_an_image_is_refused() -> None:
    with pytest.raises(UnsoundBootMap, match="0 images instead of one"):
        _ = boot_map.Program((), 0).image


@given(st.data())
def test_whatever_a_block_says_it_is_read_or_refused(data: st.DataObject) -> None:
    disk = made()
    block = data.draw(st.sampled_from([0, program_table(disk), first_component(disk)]))
    at = data.draw(st.integers(0, BLOCK - 16))
    change(disk, block, at, data.draw(st.binary(min_size=1, max_size=16)))
    try:
        found = programs(disk)
    except UnsoundBootMap:
        return
    assert all(
        each.block + each.count <= BLOCKS
        for program in found.values()
        for part in program.components
        for each in part.extents
    )
