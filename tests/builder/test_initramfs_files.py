"""What is in an initramfs is found, however it is packed; what is none is refused."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import needs

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.builder import initramfs_files
from secex_firstboot.sdboot.initramfs import File, write_archive

PACKERS = {
    "gzip": ["gzip", "-c"],
    "xz": ["xz", "--check=crc32", "-c"],
    "zstd": ["zstd", "-q", "-c"],
    "lz4": ["lz4", "-l", "-c"],
    "bzip2": ["bzip2", "-c"],
}


def archive(directory: Path, *names: str) -> bytes:
    path = directory / "archive"
    write_archive(path, {name: File(b"content of " + name.encode()) for name in names})
    return path.read_bytes()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_archives_behind_each_other_are_read(tmp_path: Path) -> None:
    content = archive(tmp_path, "/early/a") + bytes(700) + archive(tmp_path, "/b", "/usr/lib/c") + bytes(3)
    found = initramfs_files.names(write(tmp_path / "initrd", content))
    assert found == {"early", "early/a", "b", "usr", "usr/lib", "usr/lib/c"}


@pytest.mark.parametrize("packer", PACKERS)
def test_one_that_is_packed_is_read_also_behind_one_that_is_not(packer: str, tmp_path: Path) -> None:
    needs.require(packer)
    packed = subprocess.run(
        PACKERS[packer], input=archive(tmp_path, "/b"), capture_output=True, check=True
    ).stdout
    assert initramfs_files.names(write(tmp_path / "one", packed)) == {"b"}
    both = archive(tmp_path, "/a") + packed
    assert initramfs_files.names(write(tmp_path / "two", both)) == {"a", "b"}


def test_what_is_none_is_refused(tmp_path: Path) -> None:
    whole = archive(tmp_path, "/a", "/b")
    for content, says in (
        (b"what is this?", "it is packed in a way that is not known"),
        (whole[:200], "it ends too soon|it is damaged"),
        (whole[:110].replace(b"0707", b"0708"), "it is packed in a way that is not known"),
        (whole[:96] + b"zz" + whole[98:], "it ends too soon"),
        (b"\x1f\x8bdamaged", "gzip cannot unpack it"),
    ):
        with pytest.raises(Refusal, match=says):
            initramfs_files.names(write(tmp_path / "initrd", content))


@given(content=st.binary(max_size=400))
def test_whatever_it_is_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any-initrd", b"070701" + content)
    with suppress(Refusal):
        initramfs_files.names(path)
