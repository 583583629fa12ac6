"""What of an encrypted volume runs without device-mapper; the rest runs in the guest."""

from __future__ import annotations

import inspect
import os
import struct
import zlib
from pathlib import Path

import pytest
from support import needs

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.storage import cryptsetup, encrypted
from secex_firstboot.storage.backward_copy import copy_backwards
from secex_firstboot.storage.cryptsetup import DATA_OFFSET
from secex_firstboot.storage.encrypted import JOURNAL_SIZE, TAIL_SIZE, Secrets
from secex_firstboot.storage.integrity import SUPERBLOCK_BYTES, Layout

MIB = 1 << 20
SECTORS = pytest.mark.parametrize("sector_size", [512, 4096])

without_device_mapper = pytest.mark.skipif(
    "device-mapper" in Path("/proc/devices").read_text(), reason="device-mapper would do it here"
)


def layout(sector_size: int) -> Layout:
    return Layout.planned(sector_size=sector_size, journal_bytes=JOURNAL_SIZE, data_offset=DATA_OFFSET)


@pytest.fixture
def files(tmp_path: Path) -> Secrets:
    """Stand-ins for what ``prepare`` makes: placing only copies them."""
    files = Secrets.below(tmp_path / "secrets")
    files.key.parent.mkdir()
    files.key.write_bytes(os.urandom(64))
    files.header.write_bytes(os.urandom(MIB))
    files.metadata.write_bytes(zlib.compress(b"M" * (2 * MIB)))
    return files


@SECTORS
def test_the_head_covers_header_superblock_and_journal_in_whole_mib(sector_size: int) -> None:
    written = layout(sector_size).areas_start
    assert written <= encrypted.head_size(sector_size) < written + MIB
    assert encrypted.head_size(sector_size) % MIB == 0


@SECTORS
def test_a_device_of_the_required_size_holds_source_and_tail(sector_size: int) -> None:
    size = encrypted.required_device_size(300 * MIB, sector_size)
    assert layout(sector_size).data_address(300 * MIB + TAIL_SIZE - 1) == size - 1


@SECTORS
@pytest.mark.parametrize("written", [4096, 16 * MIB - 4096, 16 * MIB, 16 * MIB + 4096, 40 * MIB])
@pytest.mark.parametrize("end", [90 * MIB, 30 * MIB])
def test_every_byte_is_the_volumes_or_of_its_surroundings(
    files: Secrets, sector_size: int, written: int, end: int
) -> None:
    """Sector by sector: its data, and the 32 bytes of its tag."""
    chosen = layout(sector_size)
    whose = bytearray(end)
    whose[: files.header.stat().st_size] = b"V" * files.header.stat().st_size
    whose[DATA_OFFSET : chosen.areas_start] = b"V" * (chosen.areas_start - DATA_OFFSET)
    for at in range(0, written, sector_size):
        tag = chosen.tags_address(at) + at % chosen.interleave // sector_size * 32
        for start, size in ((chosen.data_address(at), sector_size), (tag, 32)):
            size = max(0, min(size, end - start))
            whose[start : start + size] = b"V" * size
    for offset, size in encrypted.surroundings(files, sector_size=sector_size, written=written, end=end):
        assert offset + size <= end
        assert whose.count(0, offset, offset + size) == size
        whose[offset : offset + size] = b"S" * size
    assert 0 not in whose


def test_copying_in_place_is_safe_with_the_journal_this_makes() -> None:
    for sector_size in (512, 4096):
        assert layout(sector_size).backward_window >= 4 * MIB  # the size of a chunk


def test_placing_writes_header_and_metadata_and_nothing_else(files: Secrets, tmp_path: Path) -> None:
    partition = tmp_path / "partition"
    before = os.urandom(40 * MIB)
    partition.write_bytes(before)
    for _ in range(2):
        encrypted.place(files, partition)
        after = partition.read_bytes()
        assert after[:MIB] == files.header.read_bytes()
        assert after[MIB:DATA_OFFSET] == before[MIB:DATA_OFFSET]
        assert after[DATA_OFFSET : DATA_OFFSET + 2 * MIB] == b"M" * (2 * MIB)
        assert after[DATA_OFFSET + 2 * MIB :] == before[DATA_OFFSET + 2 * MIB :]


def test_placing_never_makes_a_partition_that_is_not_there(files: Secrets, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        encrypted.place(files, tmp_path / "partition")
    assert not (tmp_path / "partition").exists()


def superblock(sector_size: int, sections: int, log2_interleave: int = 15) -> bytes:
    """struct superblock of drivers/md/dm-integrity.c, version 4 with fixed padding."""
    log2_block = {512: 0, 4096: 3}[sector_size]
    fields = (b"integrt\0", 4, log2_interleave, 32, sections, 1 << 20, 0x8, log2_block)
    return struct.pack("<8sBBHIQIB", *fields)


def image(path: Path, content: bytes, sector_size: int) -> Path:
    with path.open("wb") as stream:
        stream.seek(DATA_OFFSET)
        stream.write(content)
        stream.truncate(DATA_OFFSET + layout(sector_size).areas_start)
    return path


@SECTORS
def test_the_metadata_reaches_to_the_end_of_the_journal(tmp_path: Path, sector_size: int) -> None:
    content = superblock(sector_size, layout(sector_size).journal_sections)
    metadata = encrypted._read_metadata(image(tmp_path / "image", content, sector_size), sector_size)
    assert metadata.startswith(content)
    assert (
        len(metadata) == layout(sector_size).areas_start - DATA_OFFSET > SUPERBLOCK_BYTES + JOURNAL_SIZE * 0.9
    )


@SECTORS
def test_a_layout_other_than_the_planned_one_is_refused(tmp_path: Path, sector_size: int) -> None:
    sections = layout(sector_size).journal_sections
    for content in (superblock(sector_size, sections - 1), superblock(sector_size, sections, 14)):
        with pytest.raises(FirstbootError, match="dm-integrity chose the layout"):
            encrypted._read_metadata(image(tmp_path / "image", content, sector_size), sector_size)


@without_device_mapper
def test_a_failed_format_leaves_no_key_and_no_image(tmp_path: Path) -> None:
    files = Secrets.below(tmp_path / "secrets")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(FirstbootError):
        encrypted.prepare(
            files, label="crypt_bootfs", device_size=64 * MIB, sector_size=4096, scratch=scratch
        )
    assert list(scratch.iterdir()) == []
    assert list((tmp_path / "secrets").iterdir()) == []


@needs.libcryptsetup
def test_writing_zeros_touches_only_the_range(tmp_path: Path) -> None:
    device = tmp_path / "device"
    before = os.urandom(4 * MIB)
    device.write_bytes(before)
    seen: list[tuple[int, int]] = []
    encrypted.write_zeros(device, MIB, 2 * MIB, lambda *figures: seen.append(figures))
    assert device.read_bytes() == before[:MIB] + bytes(2 * MIB) + before[3 * MIB :]
    assert seen[-1] == (2 * MIB, 2 * MIB)


@pytest.mark.parametrize("size", [0, -4096])
def test_an_empty_range_opens_nothing(tmp_path: Path, size: int) -> None:
    encrypted.write_zeros(tmp_path / "missing", 0, size, lambda *_: None)


def test_closing_a_volume_that_is_not_open_does_nothing() -> None:
    cryptsetup.close("no-such-volume")


@SECTORS
def test_a_chunk_of_the_copy_fits_between_two_records(sector_size: int) -> None:
    chunk = inspect.signature(copy_backwards).parameters["chunk"].default
    assert 0 < chunk <= layout(sector_size).backward_window
