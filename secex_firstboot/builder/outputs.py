"""The files of a build: where they are made, and how they come into place."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from secex_firstboot.basic import signals
from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import is_directory, is_full, sha256, sync, write_private
from secex_firstboot.basic.process import ToolError
from secex_firstboot.builder.layout import Layout
from secex_firstboot.builder.programs import run_counted
from secex_firstboot.builder.volumes import Same
from secex_firstboot.contract.metadata import Metadata

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
    if "?" in str(work):
        raise Refusal(
            "SX-BUILD-62", f"{work.parent} or the name has a ?", "choose another: e2fsprogs takes it apart"
        )
    if not is_directory(work.parent):
        raise Refusal("SX-BUILD-37", f"there is no directory {work.parent}", "make it, or name another")
    lock = _private_directory(work)
    os.set_inheritable(lock, True)  # a program that outlives a killed build keeps the next one waiting
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
                raise _no_room(work, error.strerror or str(error)) from error
            except ToolError as error:
                if not is_full(work):
                    raise
                raise _no_room(work, error.message) from error
            finally:
                _empty(work)
                work.rmdir()
    finally:
        os.close(lock)


def _private_directory(path: Path) -> int:
    """A descriptor of a directory that is ours alone, made if there is none. Raises Refusal: what is in it is
    about to be deleted, and then the image lies in it unproven, proven, and as it is published."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    try:
        found = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # a link, or a file
        raise _in_the_way(path) from None
    status = os.fstat(found)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(found)
        raise _in_the_way(path)
    return found


def _in_the_way(path: Path) -> Refusal:
    return Refusal(
        "SX-BUILD-44", f"{path} is no private directory of a build", "remove it, or name another output"
    )


def _no_room(work: Path, why: str) -> FirstbootError:
    return FirstbootError(
        "SX-BUILD-39", f"the image cannot be made: {why}", f"make sure that there is room in {work.parent}"
    )


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if is_directory(path, follow_symlinks=False):
            shutil.rmtree(path)
        else:
            path.unlink()


@dataclass(frozen=True)
class Pieces:
    """What a disk is put together of: its partition ``table``, and a file for each partition with content.

    That may be shorter than the partition.
    """

    layout: Layout
    table: Path
    partitions: dict[str, Path]

    @classmethod
    def of(cls, layout: Layout, work: Path, same: Same) -> Self:
        table = work / "table"
        layout.write_table(
            table, {name: same.uuid(f"partition {name}") for name in ("disk", *layout.regions)}
        )
        return cls(layout, table, {})

    def in_order(self, work: Path, record: bytes) -> list[Path]:
        """Files that are the disk if they follow each other; ``record`` is its first bytes."""
        head, tail, empty = work / "head", work / "tail", work / "empty"
        first = min(each.start for each in self.layout.regions.values())
        take(self.table, 0, first, head)
        take(self.table, self.layout.end, self.layout.disk_size - self.layout.end, tail)
        with head.open("r+b") as stream:
            stream.write(record)
        files = [head]
        for name, region in sorted(self.layout.regions.items(), key=lambda item: item[1].start):
            file = self.partitions.get(name, empty)
            with file.open("ab") as stream:
                stream.truncate(region.size)
            files.append(file)
        return [*files, tail]


def write(
    context: Context,
    pieces: Pieces,
    metadata: Metadata,
    outputs: Outputs,
    work: Path,
    *,
    record: bytes = b"",
    public_key: bytes = b"",
    private: Mapping[str, bytes] | None = None,
) -> Metadata:
    """Put the disk that the ``pieces`` are, and what belongs to it, in place; the metadata last.

    ``record``: the disk's first bytes; ``private``: files that only their owner may read, by what is added to
    the name.
    """
    made = Outputs(work / "made")
    files_of_disk = pieces.in_order(work, record)
    written = sum(file.stat().st_blocks for file in files_of_disk) * 512
    command: list[str | Path]
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *files_of_disk, made.image]
    run_counted(context, "write the image", command, written)
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


def take(disk: Path, start: int, size: int, target: Path) -> None:
    """Make a file of ``size`` bytes of ``disk``; its holes are the disk's: lseek(2), SEEK_DATA."""
    at, end = start, start + size
    with disk.open("rb", buffering=0) as source, target.open("wb", buffering=0) as stream:
        stream.truncate(size)
        while at < end:
            try:
                at = os.lseek(source.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole is left
                return
            stop = min(os.lseek(source.fileno(), at, os.SEEK_HOLE), end)
            while at < stop:
                piece = os.pread(source.fileno(), min(stop - at, _PIECE), at)
                if not piece:
                    raise FirstbootError(
                        "SX-BUILD-40", "a file became shorter while it was read", "start again"
                    )
                at += os.pwrite(stream.fileno(), piece, at - start)


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
