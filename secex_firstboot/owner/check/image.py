"""The SE-ready image on a workstation: is there room for what first boot makes of it?"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.basic import process
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.parameters import HEADROOM, value
from secex_firstboot.contract.partitions import HASH_TREES, NUMBERS, VOLUMES
from secex_firstboot.owner.check.look import Look
from secex_firstboot.storage import disk_image, filesystem, verity_superblock
from secex_firstboot.storage.disk import Disk
from secex_firstboot.storage.gpt import UnsoundTable
from secex_firstboot.storage.plan import MIB, Source, lay_out

# The header of a qcow2: magic, version, where the name of a backing file is, and in version 3 the features
# that a reader has to know, of which one is a file beside it with the data (QEMU: docs/interop/qcow2.txt).
_QCOW2 = struct.Struct(">4sIQ56xQ")
_MAGIC = b"QFI\xfb"
_DATA_FILE = 1 << 2
_CURE = "--disk=IMAGE names the SE-ready image, raw or qcow2, as large as root shall be"


def look(image: Path) -> Look:
    """Lay out both volumes as first boot does. Raises Refusal in its words."""
    with _raw(image) as raw:
        disk = _disk(raw, shown_as=image)
        boot, root = (_source(raw, disk, name) for name in VOLUMES)
        plan = lay_out(disk, boot, root, value("", HEADROOM) * MIB, record_key="0" * 64)
    volumes = (f"{each.name} {each.source_size >> 20} MiB ({each.file_system})" for each in plan.volumes)
    return Look(f"encrypt boot and root in place, on a disk of {disk.size >> 20} MiB: {', '.join(volumes)}")


@contextmanager
def _raw(image: Path) -> Iterator[Path]:
    try:
        with image.open("rb") as stream:
            start = stream.read(_QCOW2.size)
    except OSError as error:
        raise Refusal("SX-CHECK-09", f"{image} cannot be read: {error.strerror}", _CURE) from None
    if not start.startswith(_MAGIC):
        yield image
        return
    if _names_another_file(start):
        raise Refusal(
            "SX-CHECK-12",
            f"{image} is a part of an image, and names the file with the rest",
            f"look where that leads, and make one file: qemu-img convert -O qcow2 {image} WHOLE.qcow2",
        )
    with tempfile.TemporaryDirectory() as directory:
        raw = Path(directory, "raw")
        process.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw])
        yield raw


def _names_another_file(start: bytes) -> bool:
    """Whose ever the image is would choose what is read here."""
    if len(start) < _QCOW2.size:
        return False  # and qemu-img says what is wrong with it
    _, version, backing_file, features = _QCOW2.unpack(start)
    return bool(backing_file or (version > 2 and features & _DATA_FILE))


def _disk(raw: Path, shown_as: Path) -> Disk:
    try:
        disk = disk_image.read(raw, shown_as)
    except UnsoundTable as error:
        raise Refusal(error.id, f"{shown_as}: {error.message}", _CURE) from None
    if missing := disk.missing(NUMBERS):
        raise Refusal(
            "SX-CHECK-10", f"{shown_as} has no partition {missing}", "start from an unchanged SE-ready image"
        )
    return disk


def _source(raw: Path, disk: Disk, name: str) -> Source:
    partition, tree = disk.partitions[name], disk.partitions[HASH_TREES[name]]
    superblock = verity_superblock.read(
        raw, name, offset=tree.start, tree_room=tree.size, data_room=partition.size
    )
    found = filesystem.identify(raw, name, offset=partition.start)
    if found.size > superblock.data_bytes:
        raise Refusal(
            "SX-CHECK-11",
            f"the hash tree for {name} does not cover the whole file system",
            "build the image again",
        )
    return Source(root_hash="0" * 64, size=superblock.data_bytes, file_system=found)
