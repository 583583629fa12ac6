"""Small files that must not be readable by anyone else, or not half written."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from secex_firstboot.basic.errors import FirstbootError

_LEFT_OF_A_FULL_DISK = 8 << 20  # bytes, at most
_MEMORY = Path("/dev/shm")  # noqa: S108 - shm_overview(7)


def exists(path: Path, *, follow_symlinks: bool = True) -> bool:
    """Whether something is there, at the end of all links, or a link itself. Only ENOENT is absence: any
    other error is none.

    Path.exists() and its like take other errors for absence, more of them with each version of Python: a host
    that makes a block unreadable must not make a file absent. Raises FirstbootError.
    """
    return _mode(path, follow_symlinks=follow_symlinks) is not None


def is_directory(path: Path, *, follow_symlinks: bool = True) -> bool:
    """Like ``exists``, of a directory."""
    mode = _mode(path, follow_symlinks=follow_symlinks)
    return mode is not None and stat.S_ISDIR(mode)


def is_regular(path: Path, *, follow_symlinks: bool = True) -> bool:
    """Like ``exists``, of a regular file."""
    mode = _mode(path, follow_symlinks=follow_symlinks)
    return mode is not None and stat.S_ISREG(mode)


def _mode(path: Path, *, follow_symlinks: bool = True) -> int | None:
    try:
        return path.stat(follow_symlinks=follow_symlinks).st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FirstbootError(
            "SX-TOOL-01",
            f"cannot tell whether there is a file {path}: {error.strerror}",
            "look at the disk's health",
        ) from error


def in_memory(name: str) -> BinaryIO:
    """An anonymous file in RAM."""
    return os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "w+b", buffering=0)


def open_private(path: Path) -> BinaryIO:
    """A new file for writing that only its owner can ever open; replaces what was there."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def write_private(path: Path, content: bytes | bytearray) -> None:
    """Write ``content`` to ``path``, mode 0600; a new directory above has 0700.

    Never half written; on stable storage, name and all, when this returns.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    with open_private(new) as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(path)
    sync(path.parent)


@contextmanager
def secret_directory() -> Iterator[Path]:
    """For secrets, for a moment: in memory, where the system has a place for that."""
    memory = _MEMORY if is_directory(_MEMORY) else None
    with tempfile.TemporaryDirectory(prefix="secex-", dir=memory) as directory:  # mode 0700
        yield Path(directory)


def sync(path: Path) -> None:
    """Wait until a file, a directory's names, or a block device is on stable storage."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_full(directory: Path) -> bool:
    """Whether a program that failed there may have done so for want of room: it writes large pieces."""
    return shutil.disk_usage(directory).free <= _LEFT_OF_A_FULL_DISK


def size_of(path: Path) -> int:
    """Bytes of a file or a block device."""
    with path.open("rb", buffering=0) as stream:
        return stream.seek(0, os.SEEK_END)
