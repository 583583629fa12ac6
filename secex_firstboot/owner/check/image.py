"""The SE-ready image on a workstation: is there room for what first boot makes of it?"""

from __future__ import annotations

from pathlib import Path

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.metadata import Metadata
from secex_firstboot.contract.partitions import NUMBERS, VOLUMES
from secex_firstboot.owner.check.look import Look
from secex_firstboot.storage import disk_image, plan
from secex_firstboot.storage.disk import Disk
from secex_firstboot.storage.gpt import UnsoundTable

_CURE = "name the SE-ready image, raw or qcow2, as large as root shall be"


def look(image: Path | None, metadata: Metadata | None, headroom: int) -> Look:
    """Lay out both volumes as first boot does: ``headroom`` in MiB. Raises Refusal in its words."""
    if image:
        return _look(image, metadata, headroom)
    known = metadata.volumes.items() if metadata else ()
    volumes = (f"{name} {each.size >> 20} MiB ({each.file_system})" for name, each in known)
    return Look(
        f"encrypt boot and root in place: {', '.join(volumes)}",
        ["whether the disk has room for them (--image=IMAGE names it)"],
    )


def _look(image: Path, metadata: Metadata | None, headroom: int) -> Look:
    with disk_image.raw(image) as raw:
        disk = _disk(raw, shown_as=image)
        if metadata and not disk_image.is_laid_out_as(disk, metadata):
            raise Refusal(
                "SX-CHECK-30",
                f"{image} has other partitions than its metadata say",
                "get image and metadata again from who published them",
            )
        boot, root = (plan.read_source(raw, disk, name) for name in VOLUMES)
        laid_out = plan.lay_out(disk, boot, root, headroom * plan.MIB, record_key="0" * 64)
    volumes = (f"{each.name} {each.source_size >> 20} MiB ({each.file_system})" for each in laid_out.volumes)
    return Look(f"encrypt boot and root in place, on a disk of {disk.size >> 20} MiB: {', '.join(volumes)}")


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
