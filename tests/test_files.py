import os
import resource
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from secex_firstboot.files import open_private, sync, write_private


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
def test_only_the_owner_can_open_a_private_file(tmp_path):
    path = tmp_path / "state" / "key"
    write_private(path, b"secret")
    assert path.read_bytes() == b"secret"
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)


@pytest.mark.usefixtures("careless_umask")
def test_replacing_a_readable_file_makes_it_private(tmp_path):
    path = tmp_path / "key"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)


def test_a_directory_that_exists_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    write_private(tmp_path / "key", b"")
    assert mode(tmp_path) == 0o755


def test_nothing_but_the_file_is_left(tmp_path):
    (tmp_path / "key.new").write_bytes(b"left by a crash")
    write_private(tmp_path / "key", b"secret")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_full_disk_leaves_the_old_content(tmp_path):
    path = tmp_path / "key"
    write_private(path, b"old")
    with little_room():
        with pytest.raises(OSError, match="large"):
            write_private(path, b"n" * 101)
        assert path.read_bytes() == b"old"
        write_private(path, b"n" * 100)
    assert path.read_bytes() == b"n" * 100


def test_a_link_is_replaced_and_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    for name in ("key", "key.new"):
        (tmp_path / name).symlink_to(elsewhere)
    with open_private(tmp_path / "key") as stream:
        stream.write(b"secret")
    write_private(tmp_path / "key", b"secret")
    assert elsewhere.read_text() == "untouched"
    assert not (tmp_path / "key").is_symlink()


def test_files_and_directories_can_be_synced(tmp_path):
    (tmp_path / "file").touch()
    sync(tmp_path / "file")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "missing")
