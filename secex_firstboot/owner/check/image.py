"""The SE-ready image on a workstation: is there room for what first boot makes of it?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secex_firstboot.basic import process
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.partitions import HASH_TREES, NUMBERS, VOLUMES
from secex_firstboot.owner.check.look import Look
from secex_firstboot.storage import filesystem
from secex_firstboot.storage.disk import SECTOR, Disk, Partition
from secex_firstboot.storage.plan import DEFAULT_HEADROOM, Source, lay_out

_QCOW2 = b"QFI\xfb"  # QEMU: docs/interop/qcow2.txt
_VERITY = b"verity\0\0"  # cryptsetup: docs/on-disk format of dm-verity, struct verity_sb
_CURE = "--disk=IMAGE names the SE-ready image, raw or qcow2, as large as root shall be"


def look(image: Path) -> Look:
    """Lay out both volumes as first boot does. Raises Refusal in its words."""
    with _raw(image) as raw:
        disk = _disk(raw, shown_as=image)
        boot, root = (_source(raw, disk, name) for name in VOLUMES)
        plan = lay_out(disk, boot, root, DEFAULT_HEADROOM, record_key="0" * 64)
    volumes = (f"{each.name} {each.source_size >> 20} MiB ({each.file_system})" for each in plan.volumes)
    return Look(f"encrypt boot and root in place, on a disk of {disk.size >> 20} MiB: {', '.join(volumes)}")


@contextmanager
def _raw(image: Path) -> Iterator[Path]:
    try:
        with image.open("rb") as stream:
            is_qcow2 = stream.read(4) == _QCOW2
    except OSError as error:
        raise Refusal(f"{image} cannot be read: {error.strerror}", _CURE) from None
    if not is_qcow2:
        yield image
        return
    with tempfile.TemporaryDirectory() as directory:
        raw = Path(directory, "raw")
        process.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw])
        yield raw


def _disk(raw: Path, shown_as: Path) -> Disk:
    try:
        table: dict[str, Any] = json.loads(process.run(["sfdisk", "--json", raw]))["partitiontable"]
    except process.ToolError:
        raise Refusal(f"{shown_as} is no disk with partitions", _CURE) from None
    block = int(table.get("sectorsize", SECTOR))
    partitions = []
    for row in table["partitions"]:
        number = int(row["node"].removeprefix(str(raw)).lstrip("p"))
        start, size = (int(row[key]) * block for key in ("start", "size"))
        partitions.append(Partition(number, row.get("name", ""), raw, row.get("uuid", ""), start, size))
    disk = Disk.of(shown_as, raw.stat().st_size, block, partitions)
    if missing := disk.missing(NUMBERS):
        raise Refusal(f"{shown_as} has no partition {missing}", "start from an unchanged SE-ready image")
    return disk


def _source(raw: Path, disk: Disk, name: str) -> Source:
    partition = disk.partitions[name]
    size = _covered(raw, disk.partitions[HASH_TREES[name]].start, name)
    found = filesystem.identify(raw, name, offset=partition.start)
    if found.size > size:
        raise Refusal(
            f"the hash tree for {name} does not cover the whole file system", "build the image again"
        )
    return Source(root_hash="0" * 64, size=size, file_system=found)


def _covered(raw: Path, offset: int, name: str) -> int:
    """How many bytes the hash tree at ``offset`` covers."""
    with raw.open("rb") as stream:
        stream.seek(offset)
        superblock = stream.read(512)
    if superblock[:8] != _VERITY:
        raise Refusal(f"partition {name}hash has no dm-verity hash tree", "build the image again")
    return int.from_bytes(superblock[64:68], "little") * int.from_bytes(superblock[72:80], "little")
