"""What is in an initramfs: archives one behind the other, of which the last may be compressed.

Linux: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.process import run_on_files

_HEADER = 110  # bytes: the magic, and 13 fields of eight hexadecimal digits
_MAGICS = (b"070701", b"070702")
_SIZE_AT, _NAME_SIZE_AT = 54, 94
_TRAILER = "TRAILER!!!"
_NAME_LIMIT = 4096
_ALIGNMENT = 4
_PROGRAMS = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",
    b"BZh": "bzip2",
}
_CURE = "make it again with dracut"


def names(initramfs: Path) -> set[str]:
    """The paths of its files, without a leading slash. Raises Refusal if it is none."""
    found: set[str] = set()
    with initramfs.open("rb") as stream, tempfile.TemporaryFile() as unpacked:
        start = _skip_zeros(stream)
        while start.startswith(_MAGICS):
            found.update(_archive(stream, initramfs))
            start = _skip_zeros(stream)
        program = next((each for magic, each in _PROGRAMS.items() if start.startswith(magic)), None)
        if program:
            with tempfile.TemporaryFile() as packed:
                while piece := stream.read(1 << 20):
                    packed.write(piece)
                packed.flush()
                if run_on_files([program, "-dc"], stdin=packed, stdout=unpacked, environment={}):
                    raise _no_initramfs(initramfs, f"{program} cannot unpack it")
            unpacked.seek(0)
            while _skip_zeros(unpacked).startswith(_MAGICS):
                found.update(_archive(unpacked, initramfs))
        elif start:
            raise _no_initramfs(initramfs, "it is packed in a way that is not known")
    return found


def _skip_zeros(stream: BinaryIO) -> bytes:
    """The next bytes that are not zeros, which are left to be read; empty at the end."""
    while piece := stream.read(4096):
        if stripped := piece.lstrip(b"\0"):
            stream.seek(-len(stripped), 1)
            return stripped[:16]
    return b""


def _archive(stream: BinaryIO, initramfs: Path) -> Iterator[str]:
    while True:
        header = stream.read(_HEADER)
        try:
            size, name_size = (int(header[at : at + 8], 16) for at in (_SIZE_AT, _NAME_SIZE_AT))
        except ValueError:
            raise _no_initramfs(initramfs, "it ends too soon") from None
        if not header.startswith(_MAGICS) or not 0 < name_size <= _NAME_LIMIT:
            raise _no_initramfs(initramfs, "it is damaged")
        name = stream.read(name_size).rstrip(b"\0").decode(errors="replace")
        stream.seek(-(_HEADER + name_size) % _ALIGNMENT, 1)
        stream.seek(size + -size % _ALIGNMENT, 1)
        if name == _TRAILER:
            return
        yield name.lstrip("/")


def _no_initramfs(path: Path, what: str) -> Refusal:
    return Refusal("SX-BUILD-15", f"{path.name} is no initramfs: {what}", _CURE)
