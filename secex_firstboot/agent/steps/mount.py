"""mount: the encrypted volumes are what lies on /sysroot and /sysroot/boot.

systemd mounts both (sysroot.mount, sysroot-boot.mount); this looks at what it did before Ignition writes
there.
"""

from __future__ import annotations

from secex_firstboot.agent import places, volumes
from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done, waiting
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import exists
from secex_firstboot.contract.parameters import ROOT
from secex_firstboot.storage import devicemapper, filesystem


class Mount(Step):
    name = "mount"
    summary = "check that the encrypted volumes are mounted"
    stage = Stage.MOUNT

    def observe(self, context: Context) -> Status:
        if context.phase is Phase.PROVISIONED:
            return done("the system runs from the encrypted volumes")
        if context.phase is not Phase.COMMITTED:
            return waiting("the commit point comes first")
        for where, name in ((places.SYSROOT, "root"), (places.SYSROOT / "boot", "boot")):
            numbers = filesystem.mounted_numbers(where)
            if not numbers:
                return waiting(f"systemd mounts {where} first")
            mapping = devicemapper.find(name)
            # The first: what is mounted over it is the overlay that Ignition writes to.
            if not mapping or mapping.number != numbers[0] or not volumes.is_open(context, name):
                raise FirstbootError(
                    "SX-STEP-08",
                    f"what is mounted on {where} is not the encrypted volume {name}",
                    f"start with {ROOT}, and build the image without what maps disks by itself",
                )
        written = exists(places.FILES_FINISHED)
        if not written and filesystem.mount_sources(places.SYSROOT)[-1] != "overlay":
            return waiting("the overlay that Ignition writes to is mounted first")
        return done("the encrypted volumes are mounted")

    def perform(self, context: Context) -> None:
        raise FirstbootError(
            "SX-STEP-09",
            "the encrypted volumes are not mounted",
            "look at sysroot.mount and sysroot-boot.mount",
        )
