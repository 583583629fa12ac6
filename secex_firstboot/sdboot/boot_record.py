"""Making an image on ``se`` what the firmware starts, in an order that survives a power cut at any moment.

The firmware finds the image by block numbers: the boot record (the disk's first block) names the boot map's
blocks, and that the image's. So zipl writes its boot record to a copy of the disk's start, and once image and
boot map are safe on disk, one write of one block switches. Until then the image, the boot map and the boot
record before it are kept below ``previous``, and a start after a crash finds there which of the two holds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import exists, open_private, sync, write_private
from secex_firstboot.basic.process import run
from secex_firstboot.storage import filesystem, loop
from secex_firstboot.storage.disk import Disk

IMAGE = "sdboot"
NEW_IMAGE = "sdboot.new"
BOOT_MAP = "bootmap"
PROGRAM = 440  # bytes of the first block; behind them lies a partition table, which grows with the disk

_PREVIOUS = "previous"
_RECORD = "record"
_START_SIZE = 1 << 20  # bytes of the disk that zipl sees


@contextmanager
def mounted(disk: Disk, where: Path) -> Iterator[Path]:
    """Partition ``se``, mounted on ``where`` from a loop device over it.

    zipl takes another device than the disk for its boot record, see above, only if it cannot
    tell which disk a file is on (zipl/src/bootmap.c, "File is not on target device").
    """
    partition = disk.partitions["se"].device
    with (
        loop.attached(partition, block_size=disk.block_size) as device,
        filesystem.mounted(device, where, type="ext4") as se,
    ):
        yield se


def settle(se: Path, disk: Disk) -> None:
    """Finish or take back a switch that was cut short, and remove an image that never became bootable."""
    previous = se / _PREVIOUS
    if exists(previous) and _read(previous / _RECORD, PROGRAM) == _read(disk.device, PROGRAM):
        for name in (IMAGE, BOOT_MAP):
            _restore(previous / name, se / name)
        sync(se)
    tidy(se)


def tidy(se: Path) -> None:
    """Remove everything but the image that boots: the one before it, and one that never became bootable."""
    for name in (_PREVIOUS, f"{_PREVIOUS}.new"):
        _remove(se / name)
    for pattern in (f"{NEW_IMAGE}*", f"{BOOT_MAP}_temp.*"):  # zipl's own, zipl/include/bootmap.h
        for leftover in se.glob(pattern):
            leftover.unlink()
    sync(se)


def install(se: Path, disk: Disk, scratch: Path) -> None:
    """Make ``sdboot.new`` on the mounted partition ``se`` the image that boots, and then the only one.

    ``scratch`` is a directory in RAM. Nothing of a switch that was cut short may be left: settle() first.
    """
    _keep(se, disk)
    (se / NEW_IMAGE).replace(se / IMAGE)
    record = _make_boot_map(se, disk, scratch)
    sync(se / BOOT_MAP)
    sync(se)
    _write_record(disk, record)
    _remove(se / _PREVIOUS)
    sync(se)


def _keep(se: Path, disk: Disk) -> None:
    new = se / f"{_PREVIOUS}.new"
    new.mkdir(mode=0o700)
    for name in (IMAGE, BOOT_MAP):
        if exists(se / name):
            os.link(se / name, new / name)
    write_private(new / _RECORD, _read(disk.device, disk.block_size))
    new.replace(se / _PREVIOUS)
    sync(se)


def _restore(kept: Path, file: Path) -> None:
    """Give ``file`` the inode of ``kept`` again; rename(2) does nothing where it has it still."""
    if not exists(kept) or (exists(file) and kept.samefile(file)):
        return
    new = kept.with_name(f"{kept.name}.again")
    new.unlink(missing_ok=True)
    os.link(kept, new)
    new.replace(file)


def _remove(directory: Path) -> None:
    """Its name first, so that it is never found half empty."""
    gone = directory.with_name("removed")
    shutil.rmtree(gone, ignore_errors=True)
    if exists(directory):
        directory.replace(gone)
        sync(directory.parent)
        shutil.rmtree(gone)


def _make_boot_map(se: Path, disk: Disk, scratch: Path) -> bytes:
    """Let zipl(8) make the boot map, and return the boot record that it would have written to the disk."""
    start = scratch / "disk-start"
    try:
        before = _read(disk.device, _START_SIZE)
        with open_private(start) as stream:
            stream.write(before)
        with loop.attached(start, block_size=disk.block_size) as device:
            run(
                [
                    "zipl",
                    f"--target={se}",
                    f"--image={se / IMAGE}",
                    f"--targetbase={device}",
                    "--targettype=SCSI",
                    f"--targetblocksize={disk.block_size}",
                    f"--targetoffset={disk.partitions['se'].start // disk.block_size}",
                ]
            )
            sync(device)
        written = start.read_bytes()
    finally:
        start.unlink(missing_ok=True)
    if written[disk.block_size :] != before[disk.block_size :]:
        raise FirstbootError(
            "SX-SDBOOT-08", "zipl wrote more than the boot record", "use a zipl of s390-tools 2.35 or newer"
        )
    return written[: disk.block_size]


def _read(path: Path, size: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(size)


def _write_record(disk: Disk, record: bytes) -> None:
    with disk.device.open("r+b", buffering=0) as stream:
        stream.write(record)
        os.fsync(stream.fileno())
