"""File systems of ``boot`` and ``root``: what they are, how large, and mounting them.

Nothing here checks or repairs one: a checker takes a block that cannot be read for a damaged one, and what
hangs on it for lost; so the host, by one bit, would choose what is removed. The kernel stops instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.process import run
from secex_firstboot.storage import devicemapper

_EXT4_SUPERBLOCK = 1024  # bytes; kernel: Documentation/filesystems/ext4/super.rst
_EXT4_MAGIC_AT, _EXT4_MAGIC = 0x38, b"\x53\xef"
_XFS_MAGIC = b"XFSB"  # kernel: fs/xfs/libxfs/xfs_format.h, struct xfs_dsb, big-endian

# Options of mount(8) with which nothing at all is written, not even the journal.
READ_ONLY = {"ext4": "ro,noload", "xfs": "ro,norecovery"}


@dataclass(frozen=True)
class FileSystem:
    """``size`` and ``sector_size`` (the smallest unit it reads or writes) in bytes."""

    type: str
    size: int
    sector_size: int


def identify(device: Path, name: str, offset: int = 0) -> FileSystem:
    """What is on ``device`` from byte ``offset``, called ``name`` in messages.

    Raises Refusal if it is neither ext4 nor xfs.
    """
    with device.open("rb") as stream:
        stream.seek(offset)
        head = stream.read(4096)
    if head[:4] == _XFS_MAGIC:
        block = int.from_bytes(head[4:8], "big")
        size = block * int.from_bytes(head[8:16], "big")
        return _checked(FileSystem("xfs", size, int.from_bytes(head[102:104], "big")), name)
    ext4 = head[_EXT4_SUPERBLOCK:]
    if ext4[_EXT4_MAGIC_AT : _EXT4_MAGIC_AT + 2] == _EXT4_MAGIC:
        block = 1024 << min(int.from_bytes(ext4[0x18:0x1C], "little"), 16)
        blocks = int.from_bytes(ext4[0x4:0x8], "little")
        if int.from_bytes(ext4[0x60:0x64], "little") & 0x80:  # INCOMPAT_64BIT
            blocks |= int.from_bytes(ext4[0x150:0x154], "little") << 32
        return _checked(FileSystem("ext4", block * blocks, min(block, 4096)), name)
    raise Refusal(
        "SX-DISK-15", f"the file system of {name} is neither ext4 nor xfs", "build the image with one of them"
    )


def is_clean(device: Path, type: str, offset: int = 0) -> bool:
    """Whether an ext4 was unmounted in order (INCOMPAT_RECOVER); of an xfs that cannot be told so easily."""
    if type != "ext4":
        return True
    with device.open("rb") as stream:
        stream.seek(offset + _EXT4_SUPERBLOCK + 0x60)
        return not int.from_bytes(stream.read(4), "little") & 0x4


def _checked(found: FileSystem, name: str) -> FileSystem:
    if found.sector_size not in (512, 1024, 2048, 4096) or not 0 < found.size < 1 << 60:
        raise Refusal(
            "SX-DISK-16", f"the {found.type} superblock of {name} makes no sense", "build the image again"
        )
    return found


@contextmanager
def mounted(
    device: Path, where: Path, *, type: str, read_only: bool = False, options: str = ""
) -> Iterator[Path]:
    """Mount ``device`` on ``where`` (made if missing) for the length of a ``with`` block.

    ``read_only`` means no write at all, so no journal is replayed. ``options``: more of mount(8).
    """
    mount(device, where, type=type, options=READ_ONLY[type] if read_only else options)
    try:
        yield where
    finally:
        unmount(where)


def mount(device: Path, where: Path, *, type: str, options: str = "") -> None:
    where.mkdir(parents=True, exist_ok=True)
    safe = ",".join(filter(None, ["nosuid,nodev", options]))
    run(["mount", "-t", type, "-o", safe, device, where])


def unmount(where: Path) -> None:
    run(["umount", where])


def mount_sources(where: Path) -> list[str]:
    """What is mounted on ``where``, the one that is seen last (/proc/self/mountinfo)."""
    return [mount.source for mount in _mounts() if mount.where == where]


def mounted_numbers(where: Path) -> list[str]:
    """Like ``mount_sources``, but the numbers of their devices, "MAJOR:MINOR"."""
    return [mount.number for mount in _mounts() if mount.where == where]


def mounted_at(device: Path) -> list[Path]:
    """Where the block device is mounted."""
    number = devicemapper.number_of(device)
    return [mount.where for mount in _mounts() if mount.number == number]


def mount_points_below(where: Path) -> list[Path]:
    """The mount points below ``where``, in the order in which they were mounted."""
    return [mount.where for mount in _mounts() if mount.where != where and mount.where.is_relative_to(where)]


@dataclass(frozen=True)
class _Mount:
    where: Path
    source: str
    number: str


def _mounts() -> list[_Mount]:
    """All mounts: proc_pid_mountinfo(5), with its octal escapes undone."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        found.append(_Mount(Path(point), fields[fields.index("-") + 2], fields[2]))
    return found
