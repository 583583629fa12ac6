"""mount: boot on /sysroot/boot, and what Ignition will write beside root, until it is complete.

systemd has mounted root on /sysroot, and ostree-prepare-root a deployment in its place, if there is one. What
they have mounted is looked at before anything is written there.
"""

from __future__ import annotations

from pathlib import Path

from secex_firstboot.agent import places, volumes
from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done, ready, waiting
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import exists
from secex_firstboot.contract.parameters import ROOT
from secex_firstboot.roots import kinds, overlay
from secex_firstboot.storage import devicemapper, filesystem


class Mount(Step):
    name = "mount"
    summary = "mount the encrypted volumes for Ignition"
    stage = Stage.MOUNT

    def observe(self, context: Context) -> Status:
        if context.phase is Phase.PROVISIONED:
            return done("the system runs from the encrypted volumes")
        if context.phase is not Phase.COMMITTED:
            return waiting("the commit point comes first")
        root = kinds.volume_of(places.SYSROOT, context.command_line)
        if not filesystem.mounted_numbers(root):
            return waiting(f"systemd mounts {root} first")
        _check(context, root, "root")
        if not filesystem.mounted_numbers(places.SYSROOT / "boot"):
            return ready("mount boot, and what Ignition writes to beside root")
        _check(context, places.SYSROOT / "boot", "boot")
        return done("the encrypted volumes are mounted")

    def perform(self, context: Context) -> None:
        if not exists(places.FILES_FINISHED):
            with volumes.root_mounted(context) as root:
                overlay.mount(root, places.SYSROOT)
                root.populate(places.SYSROOT)
        volumes.mount("boot", places.SYSROOT / "boot")


def _check(context: Context, where: Path, name: str) -> None:
    """The first that is mounted there: over root lies what Ignition writes to."""
    mapping = devicemapper.find(name)
    if (
        not mapping
        or mapping.number != filesystem.mounted_numbers(where)[0]
        or not volumes.is_open(context, name)
    ):
        raise FirstbootError(
            "SX-STEP-08",
            f"what is mounted on {where} is not the encrypted volume {name}",
            f"start with {ROOT}, and build the image without what maps disks by itself",
        )
