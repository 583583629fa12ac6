"""Root grows to the end of its volume, in the background: secex-firstboot-grow.service."""

from __future__ import annotations

from secex_firstboot.basic.context import Context
from secex_firstboot.contract import paths
from secex_firstboot.contract.parameters import Grow
from secex_firstboot.roots import growing
from secex_firstboot.roots.kinds import Root
from secex_firstboot.running import system
from secex_firstboot.storage import devicemapper


def in_background(context: Context, root: Root) -> None:
    """Raises Refusal if first boot did not set up the system on ``root``."""
    system.check_provisioned(root, "there is nothing to grow here")
    if growing.setting(context, root) is Grow.OFF:
        context.say("the root file system keeps its size: growing is off")
        return
    growing.grow_all(context, root, devicemapper.MAPPER / "root", root.place(paths.RUNTIME) / "grow.lock")
