"""The files of a build: where they are made, and how they come into place."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from secex_firstboot.basic import signals
from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import is_directory, sync, write_private
from secex_firstboot.builder.metadata import Metadata
from secex_firstboot.builder.programs import run_counted

_PIECE = 1 << 20  # bytes
_TOOLS = {
    "e2fsprogs": ("mkfs.ext4", "-V"),
    "xfsprogs": ("mkfs.xfs", "-V"),
    "cryptsetup": ("veritysetup", "--version"),
    "qemu-img": ("qemu-img", "--version"),
    "util-linux": ("sfdisk", "--version"),
    "gnupg": ("gpg", "--version"),
}


@dataclass(frozen=True)
class Outputs:
    """``name``: the path of all of them, without what tells them apart."""

    name: Path

    @property
    def image(self) -> Path:
        return self.named(".qcow2")

    @property
    def public_key(self) -> Path:
        return self.named(".pub.asc")

    @property
    def metadata(self) -> Path:
        return self.named(".json")

    @property
    def work(self) -> Path:
        return self.named(".unfinished")

    def named(self, suffix: str) -> Path:
        return self.name.with_name(self.name.name + suffix)


@contextmanager
def working(outputs: Outputs) -> Iterator[Path]:
    """A private directory beside the outputs; what a killed build has left there is removed first.

    Raises Refusal if another build is at work there. Told to end, it leaves in order.
    """
    work = outputs.work
    if not is_directory(work.parent):
        raise Refusal("SX-BUILD-37", f"there is no directory {work.parent}", "make it, or name another")
    work.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refusal("SX-BUILD-38", f"another build is at work in {work}", "wait for it") from None
        with signals.unwinding():
            _empty(work)
            try:
                yield work
            except OSError as error:
                raise FirstbootError(
                    "SX-BUILD-39",
                    f"the image cannot be made: {error.strerror or error}",
                    f"make sure that there is room in {work.parent}",
                ) from error
            finally:
                _empty(work)
                work.rmdir()
    finally:
        os.close(lock)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if is_directory(path, follow_symlinks=False):
            shutil.rmtree(path)
        else:
            path.unlink()


def write(
    context: Context,
    disk: Path,
    metadata: Metadata,
    outputs: Outputs,
    work: Path,
    *,
    public_key: bytes = b"",
    private: Mapping[str, bytes] | None = None,
) -> Metadata:
    """Put the finished raw ``disk`` and what belongs to it in place; the metadata last.

    ``private``: files that only their owner may read, by what is added to the name.
    """
    made = Outputs(work / "made")
    written = disk.stat().st_blocks * 512
    command: list[str | Path]
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, made.image]
    run_counted(context, "write the image", command, written)
    disk.unlink()
    files = [(made.image, outputs.image)]
    if public_key:
        made.public_key.write_bytes(public_key)
        files.append((made.public_key, outputs.public_key))
    digests = {target.name: sha256(path) for path, target in files}
    for suffix, content in (private or {}).items():
        write_private(made.named(suffix), content)
        files.append((made.named(suffix), outputs.named(suffix)))
    metadata = metadata.model_copy(update={"outputs": digests, "tools": _tools()})
    metadata.write(made.metadata)
    for path, target in (*files, (made.metadata, outputs.metadata)):
        sync(path)
        path.replace(target)
    sync(outputs.metadata.parent)
    return metadata


def place(content: Path, disk: Path, start: int) -> None:
    """Copy a file to byte ``start`` of ``disk``; its holes stay, where there is nothing yet."""
    with content.open("rb") as source, disk.open("r+b") as target:
        copy(source.fileno(), 0, target.fileno(), start, os.fstat(source.fileno()).st_size)


def take(disk: Path, start: int, size: int, target: Path) -> None:
    """Make a file of ``size`` bytes of ``disk``; its holes are the disk's."""
    with disk.open("rb") as source, target.open("wb") as stream:
        stream.truncate(size)
        copy(source.fileno(), start, stream.fileno(), 0, size)


def copy(source: int, start: int, target: int, to: int, size: int) -> None:
    """Copy ``size`` bytes between open files, without holes: lseek(2), SEEK_DATA."""
    at, end = start, start + size
    while at < end:
        try:
            begin = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole is left
            return
        stop = min(os.lseek(source, begin, os.SEEK_HOLE), end)
        at = begin
        while at < stop:
            piece = os.pread(source, min(stop - at, _PIECE), at)
            if not piece:
                raise FirstbootError("SX-BUILD-40", "a file became shorter while it was read", "start again")
            at += os.pwrite(target, piece, to + at - start)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tools() -> dict[str, str]:
    """The versions of the programs, where they are installed."""
    found = {}
    for name, command in _TOOLS.items():
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        except FileNotFoundError:
            continue
        if version := re.search(r"\b(\d+(?:\.\d+)+)\b", done.stdout + done.stderr):
            found[name] = version[1]
    return found
