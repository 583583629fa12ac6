"""mount: the encrypted volumes are what lies on /sysroot and /sysroot/boot.

systemd mounts both (sysroot.mount, sysroot-boot.mount) before Ignition writes there; this looks at what it
did.
"""

from __future__ import annotations

from pathlib import Path

from secex_firstboot import paths
from secex_firstboot.errors import FirstbootError
from secex_firstboot.step import Context, Phase, Stage, Status, Step, done, waiting
from secex_firstboot.steps.sdboot import ROOT_DEVICE
from secex_firstboot.storage import devicemapper, filesystem


class Mount(Step):
    name = "mount"
    summary = "check that the encrypted volumes are mounted"
    stage = Stage.SEAL

    def observe(self, context: Context) -> Status:
        if context.phase is Phase.PROVISIONED:
            return done("the system runs from the encrypted volumes")
        for where, name in ((paths.SYSROOT, "root"), (paths.SYSROOT / "boot", "boot")):
            sources = filesystem.mount_sources(where)
            if not sources:
                return waiting(f"systemd mounts {where} first")
            # The first: what is mounted over it is the overlay that Ignition writes to.
            source = Path(sources[0])
            if source.resolve() != (devicemapper.MAPPER / name).resolve():
                raise FirstbootError(f"{source} is mounted on {where}", f"start with root={ROOT_DEVICE}")
        return done("the encrypted volumes are mounted")

    def perform(self, context: Context) -> None:
        raise FirstbootError(
            "the encrypted volumes are not mounted", "look at sysroot.mount and sysroot-boot.mount"
        )
