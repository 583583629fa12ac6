"""After a power cut behind first boot's last switch: secex-firstboot-tidy.service."""

from __future__ import annotations

from secex_firstboot.basic.context import Context
from secex_firstboot.roots import remains
from secex_firstboot.roots.kinds import Root
from secex_firstboot.running import system, update
from secex_firstboot.storage import disk


def in_system(context: Context, root: Root) -> None:
    """Raises Refusal if first boot did not set up the system on ``root``."""
    system.check_provisioned(root, "there is nothing to tidy here")
    with update.alone(root), update.se(root, disk.find_disk()) as se:
        remains.remove(se, root)
    context.say("nothing of first boot is left on the disk")
