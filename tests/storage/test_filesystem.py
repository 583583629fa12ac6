"""Superblocks as mkfs makes them, and as an attacker would."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import needs

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import sync
from secex_firstboot.storage import filesystem
from secex_firstboot.storage.filesystem import FileSystem, identify

MIB = 1 << 20

needs_ext4 = needs.programs("mkfs.ext4")
needs_xfs = needs.programs("mkfs.xfs")


def made(path: Path, mib: int, *argv: str) -> Path:
    path.touch()
    os.truncate(path, mib * MIB)
    subprocess.run([*argv, str(path)], check=True, capture_output=True)
    return path


@needs_ext4
@pytest.mark.parametrize("block", [1024, 2048, 4096])
@pytest.mark.parametrize("features", ["64bit", "^64bit"])
def test_ext4_is_identified(tmp_path: Path, block: int, features: str) -> None:
    device = made(tmp_path / "fs", 64, "mkfs.ext4", "-q", "-b", str(block), "-O", features)
    assert identify(device, "boot") == FileSystem("ext4", 64 * MIB, block)


@needs_ext4
def test_an_ext4_smaller_than_its_device_has_its_own_size(tmp_path: Path) -> None:
    device = tmp_path / "fs"
    made(device, 64, "mkfs.ext4", "-q", "-b", "4096")
    os.truncate(device, 100 * MIB)
    assert identify(device, "boot").size == 64 * MIB


@needs_ext4
def test_an_ext4_of_more_than_2_to_the_32_blocks_has_its_full_size(tmp_path: Path) -> None:
    """Only the superblock: the upper half of the size is set by hand."""
    device = made(tmp_path / "fs", 64, "mkfs.ext4", "-q", "-b", "4096", "-O", "64bit")
    with device.open("r+b") as stream:
        stream.seek(1024 + 0x150)
        stream.write((3).to_bytes(4, "little"))
    assert identify(device, "boot").size == 64 * MIB + (3 << 32) * 4096


@needs_xfs
@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("block", [1024, 4096])
def test_xfs_is_identified(tmp_path: Path, sector: int, block: int) -> None:
    if block < sector:
        pytest.skip("mkfs.xfs has no blocks smaller than a sector")
    device = made(
        tmp_path / "fs", 320, "mkfs.xfs", "-q", "-s", f"size={sector}", "-b", f"size={block}", "-m", "crc=1"
    )
    assert identify(device, "root") == FileSystem("xfs", 320 * MIB, sector)


def test_btrfs_is_refused(tmp_path: Path) -> None:
    device = tmp_path / "fs"
    device.write_bytes(bytes(0x10040) + b"_BHRfS_M" + bytes(4096))  # btrfs's magic and its place
    with pytest.raises(Refusal, match="file system of root is neither ext4 nor xfs"):
        identify(device, "root")


@pytest.mark.parametrize("content", [b"", b"XFS", bytes(1 << 16), b"\xff" * 5000, b"LUKS\xba\xbe" * 1000])
def test_what_is_no_file_system_is_refused(tmp_path: Path, content: bytes) -> None:
    device = tmp_path / "fs"
    device.write_bytes(content)
    with pytest.raises(Refusal, match="file system of boot is neither ext4 nor xfs"):
        identify(device, "boot")


@pytest.mark.parametrize("content", [b"XFSB", bytes(1024 + 0x38) + b"\x53\xef"])
def test_a_superblock_that_is_cut_short_is_refused(tmp_path: Path, content: bytes) -> None:
    device = tmp_path / "fs"
    device.write_bytes(content)
    with pytest.raises(Refusal, match="makes no sense"):
        identify(device, "boot")


@st.composite
def hostile_superblocks(draw: st.DrawFn) -> bytes:
    content = bytearray(
        draw(st.binary(min_size=0, max_size=64)).ljust(4096, draw(st.binary(min_size=1, max_size=1)))
    )
    extreme = st.sampled_from(
        [bytes(8), b"\xff" * 8, b"\x80" + bytes(7), bytes(7) + b"\x80", b"\0\0\x10\0" * 2]
    )
    if draw(st.booleans()):
        content[:4] = b"XFSB"
        fields = [4, 8, 102]
    else:
        content[1024 + 0x38 : 1024 + 0x3A] = b"\x53\xef"
        fields = [1024 + 0x4, 1024 + 0x18, 1024 + 0x60, 1024 + 0x150]
    for field in fields:
        value = draw(extreme | st.binary(min_size=8, max_size=8))[: draw(st.sampled_from([2, 4, 8]))]
        content[field : field + len(value)] = value
    return bytes(content[: draw(st.sampled_from([4096, 4096, 1200, 110, 9]))])


@given(hostile_superblocks())
def test_a_hostile_superblock_is_refused_or_has_possible_figures(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as device:
        device.write(content)
        device.flush()
        try:
            found = identify(Path(device.name), "root")
        except Refusal:
            return
    assert found.sector_size in (512, 1024, 2048, 4096)
    assert 0 < found.size < 1 << 60


@needs.loop_devices
@needs_ext4
@needs_xfs
@pytest.mark.parametrize("type", ["ext4", "xfs"])
def test_mounting_read_only_does_not_even_replay_the_journal(tmp_path: Path, type: str) -> None:
    device, where = made(tmp_path / "fs", 320, f"mkfs.{type}", "-q"), tmp_path / "mounted"
    crashed = tmp_path / "crashed"
    with filesystem.mounted(device, where, type=type):
        (where / "file").touch()
        sync(where)
        subprocess.run(["cp", "--sparse=always", device, crashed], check=True)
    before = crashed.read_bytes()
    with filesystem.mounted(crashed, where, type=type, read_only=True):
        assert filesystem.mount_sources(where)
        with pytest.raises(OSError, match=r"[Rr]ead-only"):
            (where / "other").touch()
    assert filesystem.mount_sources(where) == []
    assert crashed.read_bytes() == before
    with filesystem.mounted(crashed, where, type=type):
        assert (where / "file").exists()
    assert crashed.read_bytes() != before


@needs.loop_devices
@needs_ext4
def test_a_mount_ends_also_after_an_error(tmp_path: Path) -> None:
    device, where = made(tmp_path / "fs", 64, "mkfs.ext4", "-q"), tmp_path / "mounted"
    with pytest.raises(RuntimeError), filesystem.mounted(device, where, type="ext4"):
        raise RuntimeError
    assert filesystem.mount_sources(where) == []


def test_a_mount_point_has_a_source_and_another_directory_none(tmp_path: Path) -> None:
    assert filesystem.mount_sources(Path("/proc")) == ["proc"]
    number = Path("/proc").stat().st_dev
    assert filesystem.mounted_numbers(Path("/proc")) == [f"{os.major(number)}:{os.minor(number)}"]
    assert filesystem.mounted_numbers(tmp_path) == []
    assert filesystem.mount_sources(tmp_path) == []
