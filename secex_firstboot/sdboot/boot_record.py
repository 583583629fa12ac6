"""Making an image on ``se`` what the firmware starts, in an order that survives a power cut at any moment.

The firmware finds images by block numbers: the boot record (the disk's first block) names the boot map's
blocks, and that the images'. So zipl writes its boot record to a copy of the disk's start, and once images
and boot map are safe on disk, one write of one block switches. Until then the images, the boot map and the
boot record before it are kept below ``previous``: a start after a crash finds there which of the two holds.

The boot map offers one image, or two: the newest, and as a fallback the one before it. Which of them starts
is the host's choice (loadparm 1 or 2), the guest's for its next restart, or else the boot map's default.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import exists, open_private, sync, write_private
from secex_firstboot.basic.process import run
from secex_firstboot.storage import filesystem, loop
from secex_firstboot.storage.disk import Disk

IMAGE = "sdboot"
FALLBACK = "sdboot.old"
NEW_IMAGE = "sdboot.new"
KEPT = "sdboot.kept"  # the newest as well: libostree removes its name, and may put another image there
BOOT_MAP = "bootmap"
PROGRAM = 440  # bytes of the first block; behind them lies a partition table, which grows with the disk

IMAGE_ENTRY, FALLBACK_ENTRY = 1, 2  # their numbers in the boot map

_PREVIOUS = "previous"
_RECORD = "record"
_START_SIZE = 1 << 20  # bytes; of the disk it is what zipl sees


@contextmanager
def mounted(disk: Disk, where: Path, options: str = "") -> Iterator[Path]:
    """Partition ``se``, mounted on ``where`` from a loop device over it. Nobody else may use ``where``.
    ``options``: more of mount(8).

    zipl takes another device than the disk for its boot record, see above, only if it cannot
    tell which disk a file is on (zipl/src/bootmap.c, "File is not on target device").

    Whoever was killed inside the ``with`` block has left it mounted. It is unmounted first: another mount
    would be one of another device, and both would write to the same blocks. Raises Refusal if the
    partition is mounted elsewhere, for the same reason.
    """
    partition = disk.partitions["se"].device
    for _ in filesystem.mount_sources(where):
        run(["umount", where])
    loop.detach_all(partition)
    if elsewhere := filesystem.mounted_at(partition):
        raise Refusal(
            "SX-SDBOOT-30", f"partition se is mounted on {elsewhere[0]}", f"umount {elsewhere[0]}, then again"
        )
    with (
        loop.attached(partition, block_size=disk.block_size) as device,
        filesystem.mounted(device, where, type="ext4", options=options) as se,
    ):
        yield se


def identity(image: Path) -> str:
    """What tells an image from any other: the SHA-256 of its start, which has the SE header whole, and that
    has a tag over all the rest (image.py)."""
    return hashlib.sha256(_read(image, _START_SIZE)).hexdigest()


def current(disk: Disk) -> bytes:
    """What the firmware begins with; another boot map has another one."""
    return _read(disk.device, PROGRAM)


def settle(se: Path, disk: Disk) -> None:
    """Finish or take back a switch that was cut short, and remove an image that never became bootable."""
    if not exists(se / IMAGE):
        _link(se / KEPT, se / IMAGE)
    previous = se / _PREVIOUS
    if exists(previous) and _read(previous / _RECORD, PROGRAM) == _read(disk.device, PROGRAM):
        for name in (IMAGE, BOOT_MAP):
            _link(previous / name, se / name)
        if exists(previous / FALLBACK):
            _link(previous / FALLBACK, se / FALLBACK)
        else:
            (se / FALLBACK).unlink(missing_ok=True)
        sync(se)
    elif exists(previous):
        _link(se / IMAGE, se / KEPT)
    tidy(se)


def tidy(se: Path) -> None:
    """Remove everything but what boots: what was kept while that was made, and what never became bootable."""
    for name in (_PREVIOUS, f"{_PREVIOUS}.new"):
        _remove(se / name)
    for pattern in (f"{NEW_IMAGE}*", f"{BOOT_MAP}_temp.*"):  # zipl's own, zipl/include/bootmap.h
        for leftover in se.glob(pattern):
            leftover.unlink()
    if not exists(se / KEPT):
        _link(se / IMAGE, se / KEPT)
    sync(se)


def has_another(se: Path) -> bool:
    """Whether there is more than the newest: one to fall back to, or another's in its place."""
    return exists(se / FALLBACK) or not (se / KEPT).samefile(se / IMAGE)


def install(
    se: Path, disk: Disk, scratch: Path, *, fallback: str | None = None, default: int = IMAGE_ENTRY
) -> None:
    """Make ``sdboot.new`` on the mounted partition ``se`` the image that boots.

    ``fallback``: which of IMAGE and FALLBACK, as they are now, it has beside it; without, it becomes the only
    one. ``default``: the entry that starts if nobody chooses. ``scratch`` is a directory elsewhere. Nothing
    of a switch that was cut short may be left: settle() first.
    """
    _keep(se, disk)
    if fallback is None:
        (se / FALLBACK).unlink(missing_ok=True)
    else:
        _link(se / fallback, se / FALLBACK)
    (se / NEW_IMAGE).replace(se / IMAGE)
    _switch(se, disk, scratch, default)


def choose(se: Path, disk: Disk, scratch: Path, default: int) -> None:
    """Let another entry start if nobody chooses."""
    _keep(se, disk)
    _switch(se, disk, scratch, default)


def leave(se: Path, disk: Disk, scratch: Path, name: str) -> None:
    """Make ``name``, IMAGE or FALLBACK, the only image."""
    _keep(se, disk)
    _link(se / name, se / IMAGE)
    (se / FALLBACK).unlink(missing_ok=True)
    _switch(se, disk, scratch, IMAGE_ENTRY)


def _switch(se: Path, disk: Disk, scratch: Path, default: int) -> None:
    record = _make_boot_map(se, disk, scratch, default)
    sync(se / BOOT_MAP)
    sync(se)
    _write_record(disk, record)
    _link(se / IMAGE, se / KEPT)
    _remove(se / _PREVIOUS)
    sync(se)


def _keep(se: Path, disk: Disk) -> None:
    new = se / f"{_PREVIOUS}.new"
    new.mkdir(mode=0o700)
    for name in (IMAGE, FALLBACK, BOOT_MAP):
        if exists(se / name):
            os.link(se / name, new / name)
    write_private(new / _RECORD, _read(disk.device, disk.block_size))
    new.replace(se / _PREVIOUS)
    sync(se)
    _link(se / KEPT, se / IMAGE)  # until the switch, one that others have made in its place starts from above


def _link(kept: Path, file: Path) -> None:
    """Give ``file`` the inode of ``kept``; rename(2) does nothing where it has it already."""
    if not exists(kept) or (exists(file) and kept.samefile(file)):
        return
    new = file.with_name(f"{NEW_IMAGE}.link")
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


def _make_boot_map(se: Path, disk: Disk, scratch: Path, default: int) -> bytes:
    """Let zipl(8) make the boot map, and return the boot record that it would have written to the disk."""
    start, menu = scratch / "disk-start", scratch / "zipl.conf"
    try:
        before = _read(disk.device, _START_SIZE)
        with open_private(start) as stream:
            stream.write(before)
        with loop.attached(start, block_size=disk.block_size) as device:
            target = {
                "target": se,
                "targetbase": device,
                "targettype": "SCSI",
                "targetblocksize": disk.block_size,
                "targetoffset": disk.partitions["se"].start // disk.block_size,
            }
            if exists(se / FALLBACK):
                write_private(menu, _menu(se, target, default).encode())
                # Of boot entries it would read those of the running system, too.
                run(["zipl", f"--config={menu}", "--menu=start", f"--blsdir={scratch / 'no-boot-entries'}"])
            else:
                options = (f"--{name}={value}" for name, value in target.items())
                run(["zipl", f"--image={se / IMAGE}", *options])
            sync(device)
        written = start.read_bytes()
    finally:
        start.unlink(missing_ok=True)
        menu.unlink(missing_ok=True)
    if written[disk.block_size :] != before[disk.block_size :]:
        raise FirstbootError(
            "SX-SDBOOT-08", "zipl wrote more than the boot record", "use a zipl of s390-tools 2.35 or newer"
        )
    return written[: disk.block_size]


def _menu(se: Path, target: Mapping[str, object], default: int) -> str:
    """zipl.conf(5) for both images. Which is newest the numbers say: zipl has no use for the names."""
    images = ((IMAGE_ENTRY, IMAGE), (FALLBACK_ENTRY, FALLBACK))
    sections = [f"[image{number}]\ntarget = {se}\nimage = {se / name}\n" for number, name in images]
    lines = [":start", *(f"{name} = {value}" for name, value in target.items())]
    lines += [f"{number} = image{number}" for number, _ in images]
    return "".join(sections) + "\n".join([*lines, f"default = {default}", "secure = 0", ""])


def _read(path: Path, size: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(size)


def _write_record(disk: Disk, record: bytes) -> None:
    with disk.device.open("r+b", buffering=0) as stream:
        stream.write(record)
        os.fsync(stream.fileno())
