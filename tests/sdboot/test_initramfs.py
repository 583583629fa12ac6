"""The initramfs writer, checked with cpio."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from support import needs

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.sdboot.initramfs import Directory, File, joined, joined_size, write_archive


def cpio(directory: Path, archive: bytes, *options: str) -> str:
    needs.require("cpio")
    done = subprocess.run(
        ["cpio", "--quiet", "--no-absolute-filenames", *options],
        input=archive,
        cwd=directory,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def extract(directory: Path, archive: bytes) -> Path:
    directory.mkdir()
    cpio(directory, archive, "--extract", "--make-directories")
    return directory


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_cpio_finds_the_files_with_their_content_and_modes(tmp_path: Path) -> None:
    large = os.urandom((3 << 20) + 1)
    (tmp_path / "large").write_bytes(large)
    write_archive(
        tmp_path / "archive",
        {
            "/etc/luks/root": File(b"secret"),
            "/etc/luks": Directory(0o700),
            "/usr/lib/hook.sh": File(b"#!/bin/sh\n", mode=0o755),
            "/usr/lib/large": File(tmp_path / "large", mode=0o644),
            "/etc/empty": File(b""),
        },
    )
    root = extract(tmp_path / "root", (tmp_path / "archive").read_bytes())
    found = {str(path.relative_to(root)): mode(path) for path in root.rglob("*")}
    assert found == {
        "etc": 0o755,
        "etc/empty": 0o600,
        "etc/luks": 0o700,
        "etc/luks/root": 0o600,
        "usr": 0o755,
        "usr/lib": 0o755,
        "usr/lib/hook.sh": 0o755,
        "usr/lib/large": 0o644,
    }
    assert (root / "etc/luks/root").read_bytes() == b"secret"
    assert (root / "usr/lib/hook.sh").read_bytes() == b"#!/bin/sh\n"
    assert (root / "usr/lib/large").read_bytes() == large
    assert (root / "etc/empty").read_bytes() == b""


def test_a_directory_stands_before_what_is_in_it(tmp_path: Path) -> None:
    """The kernel makes no parents: a file before its directory is lost."""
    write_archive(tmp_path / "archive", {"a/b/c": File(b""), "a-b": File(b""), "a/a": Directory()})
    listed = cpio(tmp_path, (tmp_path / "archive").read_bytes(), "--list").split()
    assert listed == ["a", "a-b", "a/a", "a/b", "a/b/c"]


def test_everything_belongs_to_root_and_has_no_date(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", {"a/b": File(b"")})
    listed = cpio(tmp_path, (tmp_path / "archive").read_bytes(), "--list", "--verbose", "--numeric-uid-gid")
    assert [(line.split()[2:4], line.split()[7]) for line in listed.splitlines()] == [
        (["0", "0"], "1970")
    ] * 2


def test_the_same_entries_make_the_same_archive(tmp_path: Path) -> None:
    entries = {"etc/b": File(b"1"), "etc/a": File(b"22")}
    write_archive(tmp_path / "one", entries)
    write_archive(tmp_path / "two", dict(reversed(entries.items())))
    write_archive(tmp_path / "three", {**entries, "etc/a": File(b"23")})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one").read_bytes() != (tmp_path / "three").read_bytes()


def test_the_archive_is_for_its_owner_alone_even_where_a_public_file_was(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(b"old" * 1000)
    archive.chmod(0o644)
    with archive.open("rb") as old:
        write_archive(archive, {"secret": File(b"new")})
        assert mode(archive) == 0o600
        assert old.read() == b"old" * 1000  # who had it open sees nothing of the new one


def test_joined_archives_are_one_initramfs(tmp_path: Path) -> None:
    parts = [tmp_path / "first", tmp_path / "second"]
    write_archive(parts[0], {"one": File(b"1")})
    write_archive(parts[1], {"two": File(b"2")})
    parts[0].write_bytes(parts[0].read_bytes() + b"\0")  # as a compressed archive, of any length
    whole = b"".join(joined(parts))
    assert len(whole) == joined_size(parts)
    second = whole.index(parts[1].read_bytes())
    assert second == parts[0].stat().st_size + 3
    assert (extract(tmp_path / "root", whole[second:]) / "two").read_bytes() == b"2"
    assert (extract(tmp_path / "root1", whole) / "one").read_bytes() == b"1"


def test_an_archive_ends_at_a_block_of_cpio(tmp_path: Path) -> None:
    for size in range(0, 600, 50):
        write_archive(tmp_path / "archive", {"a": File(bytes(size))})
        assert (tmp_path / "archive").stat().st_size % 512 == 0


@pytest.mark.parametrize("name", ["", "/", "..", "etc/../../x", "a\0b", "TRAILER!!!", "a" * 4096])
def test_a_name_that_is_no_file_of_an_initramfs_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FirstbootError):
        write_archive(tmp_path / "archive", {name: File(b"")})


@pytest.mark.parametrize("name", ["a..", "/etc/TRAILER!!!", "a b", "é", "//etc//x", "a" * 200])
def test_an_unusual_name_is_accepted(tmp_path: Path, name: str) -> None:
    write_archive(tmp_path / "archive", {name: File(b"content")})
    root = extract(tmp_path / "root", (tmp_path / "archive").read_bytes())
    assert (root / name.lstrip("/")).read_bytes() == b"content"


def test_a_file_cannot_be_the_directory_of_another(tmp_path: Path) -> None:
    with pytest.raises(FirstbootError, match="file and a directory"):
        write_archive(tmp_path / "archive", {"a": File(b""), "a/b": File(b"")})


def test_the_same_file_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FirstbootError, match="twice"):
        write_archive(tmp_path / "archive", {"/a": File(b"1"), "a": File(b"2")})


def test_a_file_beyond_four_gigabytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(FirstbootError, match="4294967295"):
        write_archive(tmp_path / "archive", {"large": File(tmp_path / "large")})
