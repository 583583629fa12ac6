from __future__ import annotations

import ast
import errno
import os
import resource
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import REPOSITORY

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import exists, is_directory, is_regular, open_private, sync, write_private

PACKAGE = REPOSITORY / "secex_firstboot"
# Of pathlib and os.path: what takes an error for absence.
CREDULOUS = {
    "exists",
    "lexists",
    "is_file",
    "is_dir",
    "is_symlink",
    "is_mount",
    "is_block_device",
    "isfile",
    "isdir",
}


@pytest.fixture
def careless_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@contextmanager
def little_room() -> Iterator[None]:
    """No file may grow beyond 100 bytes; no fixture, since pytest writes between the phases of a test."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        signal.signal(signal.SIGXFSZ, handler)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("careless_umask")
def test_only_the_owner_can_open_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "state" / "key"
    write_private(path, b"secret")
    assert path.read_bytes() == b"secret"
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)


@pytest.mark.usefixtures("careless_umask")
def test_replacing_a_readable_file_makes_it_private(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)


def test_a_directory_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    write_private(tmp_path / "key", b"")
    assert mode(tmp_path) == 0o755


def test_nothing_but_the_file_is_left(tmp_path: Path) -> None:
    (tmp_path / "key.new").write_bytes(b"left by a crash")
    write_private(tmp_path / "key", b"secret")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_full_disk_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_private(path, b"old")
    with little_room():
        with pytest.raises(OSError, match="large"):
            write_private(path, b"n" * 101)
        assert path.read_bytes() == b"old"
        write_private(path, b"n" * 100)
    assert path.read_bytes() == b"n" * 100


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    for name in ("key", "key.new"):
        (tmp_path / name).symlink_to(elsewhere)
    with open_private(tmp_path / "key") as stream:
        stream.write(b"secret")
    write_private(tmp_path / "key", b"secret")
    assert elsewhere.read_text() == "untouched"
    assert not (tmp_path / "key").is_symlink()


def test_files_and_directories_can_be_synced(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sync(tmp_path / "file")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "missing")


# --- absence ---


def test_what_is_there_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(".")
    (tmp_path / "dangling").symlink_to("nowhere")
    names = ("file", ".", "link", "dangling", "absent")
    assert [exists(tmp_path / name) for name in names] == [True, True, True, False, False]
    assert [is_directory(tmp_path / name) for name in names] == [False, True, True, False, False]
    assert [is_regular(tmp_path / name) for name in names] == [True, False, False, False, False]
    assert not is_directory(tmp_path / "link", follow_symlinks=False)


@pytest.mark.parametrize("error", [errno.EIO, errno.EBADMSG, errno.EACCES, errno.ELOOP, errno.ENOTDIR])
def test_only_enoent_is_absence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """The host makes blocks unreadable: pathlib is a stand-in for such a disk."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(Path, "stat", fails)
    for ask in (exists, is_directory, is_regular):
        with pytest.raises(FirstbootError, match="cannot tell whether there is a file"):
            ask(tmp_path / "sealed")


def test_the_package_asks_for_absence_in_one_way_only() -> None:
    asked = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in CREDULOUS
        and ast.unparse(node.value) != "devicemapper"
    ]
    assert asked == []
