"""Initramfs archives: writing one, and joining several into one ramdisk.

The kernel unpacks any number of archives that follow each other, compressed or not, each starting at a
multiple of 4 bytes (Documentation/driver-api/early-userspace/buffer-format.rst of Linux, which also
describes the "newc" cpio format written here). A later archive's file replaces an earlier one's. So does
its directory replace a symbolic link (init/initramfs.c, clean_path): name files by their real path,
``/usr/lib/…`` and not ``/lib/…`` where /lib is a link.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import open_private

_CHUNK = 1 << 20
_ALIGNMENT = 4
_ARCHIVE_BLOCK = 512  # cpio's own block: archives end at a multiple of it
_MAGIC = "070701"
_TRAILER = "TRAILER!!!"
_SIZE_LIMIT = 0xFFFFFFFF  # a field has eight hexadecimal digits
_PATH_LIMIT = 4096  # PATH_MAX: the kernel skips anything longer in silence


@dataclass(frozen=True)
class File:
    """A regular file: bytes, or the path of a file to copy. Secret unless another mode is given."""

    content: bytes | Path
    mode: int = 0o600


@dataclass(frozen=True)
class Directory:
    mode: int = 0o755


Entry = File | Directory


def write_archive(output: Path, entries: Mapping[str, Entry]) -> None:
    """Write an uncompressed archive of ``entries`` (path in the initramfs -> what is there).

    Missing parent directories are added with mode 0755, which also becomes the mode of such a directory of
    an earlier archive: name a directory that must stay private. The same entries make the same bytes: owner
    root, time 0, sorted by path. ``output`` is replaced and has mode 0600 from the start.
    """
    tree = _with_parents(entries)
    with open_private(output) as archive:
        for number, (path, entry) in enumerate(sorted(tree.items()), start=1):
            if isinstance(entry, Directory):
                _write_header(archive, path, number=number, mode=stat.S_IFDIR | entry.mode, links=2)
            else:
                _write_file(archive, path, number, entry)
        _write_header(archive, _TRAILER, links=1)
        _pad(archive, _ARCHIVE_BLOCK)


def joined(parts: Sequence[Path]) -> Iterator[bytes]:
    """The archives ``parts`` as one, in pieces; each but the last is padded to a multiple of 4 bytes."""
    size = 0
    for part in parts:
        yield bytes(-size % _ALIGNMENT)
        size = 0
        with part.open("rb") as file:
            while piece := file.read(_CHUNK):
                size += len(piece)
                yield piece


def joined_size(parts: Sequence[Path]) -> int:
    size = 0
    for part in parts:
        size += -size % _ALIGNMENT + part.stat().st_size
    return size


def _with_parents(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    tree: dict[str, Entry] = {}
    for name, entry in entries.items():
        path = _archive_path(name)
        if str(path) in tree:
            raise FirstbootError(
                "SX-SDBOOT-23", f"{name} stands twice in an initramfs", "name each file once"
            )
        tree[str(path)] = entry
    for path in [PurePosixPath(name) for name in tree]:
        for parent in path.parents[:-1]:
            if not isinstance(tree.setdefault(str(parent), Directory()), Directory):
                raise FirstbootError(
                    "SX-SDBOOT-24",
                    f"{parent} is a file and a directory in an initramfs",
                    "rename one of the two",
                )
    return tree


def _archive_path(name: str) -> PurePosixPath:
    """The path as it stands in the archive, without the leading slash."""
    path = PurePosixPath(name.lstrip("/"))
    if not path.parts or ".." in path.parts or "\0" in name or str(path) == _TRAILER:
        raise FirstbootError(
            "SX-SDBOOT-25", f"{name!r} cannot be a file of an initramfs", "use a plain absolute path"
        )
    if len(os.fsencode(path)) >= _PATH_LIMIT:
        raise FirstbootError(
            "SX-SDBOOT-26", f"a path in an initramfs is longer than {_PATH_LIMIT - 1} bytes", "shorten it"
        )
    return path


def _write_file(archive: BinaryIO, path: str, number: int, file: File) -> None:
    mode = stat.S_IFREG | file.mode
    if isinstance(file.content, bytes):
        _write_header(archive, path, number=number, mode=mode, links=1, size=len(file.content))
        archive.write(file.content)
    else:
        with file.content.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            _write_header(archive, path, number=number, mode=mode, links=1, size=size)
            _copy(source, archive, size)
    _pad(archive, _ALIGNMENT)


def _copy(source: BinaryIO, archive: BinaryIO, size: int) -> None:
    left = size
    while left:
        piece = source.read(min(left, _CHUNK))
        if not piece:
            raise FirstbootError(
                "SX-SDBOOT-27", f"{source.name} became shorter while it was read", "start again"
            )
        archive.write(piece)
        left -= len(piece)


def _write_header(
    archive: BinaryIO, path: str, *, number: int = 0, mode: int = 0, links: int, size: int = 0
) -> None:
    if size > _SIZE_LIMIT:
        raise FirstbootError(
            "SX-SDBOOT-28", f"{path} has {size} bytes, an initramfs takes {_SIZE_LIMIT}", "leave it out"
        )
    name = os.fsencode(path) + b"\0"
    owner = group = time = device = checksum = 0
    fields = (
        *(number, mode, owner, group, links, time, size),
        *(device, device, device, device, len(name), checksum),
    )
    archive.write((_MAGIC + "".join(f"{field:08X}" for field in fields)).encode() + name)
    _pad(archive, _ALIGNMENT)


def _pad(archive: BinaryIO, alignment: int) -> None:
    archive.write(bytes(-archive.tell() % alignment))
