from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.storage.integrity import IntegritySuperblock, Layout, read_integrity_superblock

MIB = 1 << 20
OFFSET = 16 * MIB

# (device, sector size, journal asked for, journal sections, volume): what Linux 6.12 made of it, in bytes
SEEN = [
    (64 * MIB, 4096, 8 * MIB, 62, 41553920),
    (100 * MIB, 4096, 8 * MIB, 62, 79040512),
    (257 * MIB, 4096, 8 * MIB, 62, 242356224),
    (300 * MIB, 4096, 1 * MIB, 7, 294486016),
    (2048 * MIB, 4096, 32 * MIB, 248, 2080796672),
    (33000 * MIB, 4096, 8 * MIB, 62, 34309672960),
    (64 * MIB, 512, 8 * MIB, 186, 38801408),
    (257 * MIB, 512, 8 * MIB, 186, 229642240),
    (300 * MIB, 512, 1 * MIB, 23, 278929408),
    (33000 * MIB, 512, 8 * MIB, 186, 32543608832),
]


@pytest.mark.parametrize(("device", "sector", "journal", "sections", "volume"), SEEN)
def test_planned_layout_and_size_are_those_of_the_kernel(
    device: int, sector: int, journal: int, sections: int, volume: int
) -> None:
    layout = Layout.planned(sector_size=sector, journal_bytes=journal, data_offset=OFFSET)
    assert layout.journal_sections == sections
    assert layout.device_bytes_for(volume) <= device < layout.device_bytes_for(volume + 4096)


def test_areas_start_where_the_kernel_stopped_formatting() -> None:
    for sector, sections in ((4096, 62), (512, 186)):
        assert Layout(sector, sections, OFFSET).areas_start == 25161728


layouts = st.builds(
    Layout,
    sector_size=st.sampled_from([512, 4096]),
    journal_sections=st.integers(1, 300),
    data_offset=st.integers(0, 1 << 14).map(lambda pages: pages * 4096),
    interleave=st.integers(12, 26).map(lambda log2: 1 << log2),
)
offsets = st.integers(0, 1 << 40)


@given(layouts, offsets)
def test_a_write_reaches_no_byte_below_its_offset_plus_the_window(layout: Layout, offset: int) -> None:
    assert min(layout.tags_address(offset), layout.data_address(offset)) >= offset + layout.backward_window


@given(layouts, offsets)
def test_the_window_is_not_larger_than_it_must_be(layout: Layout, area: int) -> None:
    last = (area % 1024 + 1) * layout.interleave - 1
    excess = layout.tags_address(last) - last - layout.backward_window
    assert excess == area % 1024 * layout.tag_run + 1


@given(layouts, offsets)
def test_tags_lie_between_journal_and_data_and_never_in_another_area(layout: Layout, offset: int) -> None:
    tags = layout.tags_address(offset)
    first = offset // layout.interleave * layout.interleave
    assert tags >= layout.areas_start
    assert tags + layout.tag_run == layout.data_address(first)
    assert layout.data_address(first + layout.interleave - 1) + 1 == layout.tags_address(
        first + layout.interleave
    )
    assert layout.tag_run >= layout.interleave // layout.sector_size * layout.tag_size


@given(layouts, offsets)
def test_a_larger_volume_never_needs_a_smaller_device(layout: Layout, volume: int) -> None:
    assert layout.device_bytes_for(volume + 1) < layout.device_bytes_for(volume + 1 + 4096)


def superblock(**change: object) -> bytes:
    fields = {
        "magic": b"integrt\0",
        "version": 4,
        "interleave": 15,
        "tag": 32,
        "sections": 62,
        "sectors": 471304,
        "flags": 8,
        "block": 3,
    } | change
    return struct.pack("<8sBBHIQIB", *fields.values()).ljust(512, b"\0")


def test_a_superblock_tells_its_layout() -> None:
    read = read_integrity_superblock(superblock())
    assert read == IntegritySuperblock(4, 16 * MIB, 32, 62, 471304 * 512, 4096)
    assert read.layout(OFFSET) == Layout.planned(sector_size=4096, journal_bytes=8 * MIB, data_offset=OFFSET)


def test_a_superblock_of_512_byte_sectors_is_read() -> None:
    assert read_integrity_superblock(superblock(block=0)).sector_size == 512


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"magic": b"integrt!"}, "magic"),
        ({"version": 3}, "version"),
        ({"version": 6}, "version"),
        ({"interleave": 2}, "interleave"),
        ({"interleave": 32}, "interleave"),
        ({"tag": 16}, "tag size"),
        ({"sections": 0}, "journal"),
        ({"sections": (1 << 20) + 1}, "journal"),
        ({"sectors": 0}, "size"),
        ({"sectors": 1 << 54}, "size"),
        ({"flags": 8 | 1}, "flags"),  # journal MAC
        ({"flags": 8 | 2}, "flags"),  # recalculating
        ({"flags": 0}, "flags"),  # not the fixed padding
        ({"block": 1}, "sector size"),
    ],
)
def test_an_unexpected_superblock_field_is_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(FirstbootError, match=word):
        read_integrity_superblock(superblock(**change))


def test_a_short_superblock_is_refused() -> None:
    assert read_integrity_superblock(superblock()[:29])
    with pytest.raises(FirstbootError, match="short"):
        read_integrity_superblock(superblock()[:28])


def test_a_layout_too_close_to_the_start_has_no_window() -> None:
    assert replace(Layout(4096, 62, OFFSET), data_offset=0).backward_window < 0
    assert Layout(4096, 62, OFFSET).backward_window > 0
