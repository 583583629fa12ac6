"""nbdkit(1) plugin: a disk that notes every write and every flush, in order, in a log beside its file.

The log is a sequence of events: a kind ("W" or "F"), position and length in bytes (big-endian, 8 each), and
for a write its content. harness.powercut makes of it the disk that a power cut at any moment would have left.
"""

import builtins
import os
import struct

API_VERSION = 2
HEADER = struct.Struct(">cQQ")
_files: dict[str, int] = {}


def config(key: str, value: str) -> None:
    if key == "file":
        _files[key] = os.open(value, os.O_RDWR)
    elif key == "log":
        _files[key] = os.open(value, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    else:
        raise RuntimeError(f"unknown parameter {key}")


def open(readonly: bool) -> object:
    return builtins.object()


def get_size(handle: object) -> int:
    return os.fstat(_files["file"]).st_size


def pread(handle: object, buffer: bytearray, position: int, flags: int) -> None:
    buffer[:] = os.pread(_files["file"], len(buffer), position)


def pwrite(handle: object, buffer: bytearray, position: int, flags: int) -> None:
    content = bytes(buffer)
    os.write(_files["log"], HEADER.pack(b"W", position, len(content)) + content)
    os.pwrite(_files["file"], content, position)


def flush(handle: object, flags: int) -> None:
    os.write(_files["log"], HEADER.pack(b"F", 0, 0))
