"""The SE-ready image on a workstation: is there room for what first boot makes of it?"""

from __future__ import annotations

from pathlib import Path

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.parameters import HEADROOM, value
from secex_firstboot.contract.partitions import NUMBERS, VOLUMES
from secex_firstboot.owner.check.look import Look
from secex_firstboot.storage import disk_image, plan
from secex_firstboot.storage.disk import Disk
from secex_firstboot.storage.gpt import UnsoundTable

_CURE = "--disk=IMAGE names the SE-ready image, raw or qcow2, as large as root shall be"


def look(image: Path) -> Look:
    """Lay out both volumes as first boot does. Raises Refusal in its words."""
    with disk_image.raw(image) as raw:
        disk = _disk(raw, shown_as=image)
        boot, root = (plan.read_source(raw, disk, name) for name in VOLUMES)
        laid_out = plan.lay_out(disk, boot, root, value("", HEADROOM) * plan.MIB, record_key="0" * 64)
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
