"""files: what Ignition wrote beside the root file system becomes part of it."""

from __future__ import annotations

from secex_firstboot.agent import luks_volumes, places, volumes
from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done, ready, waiting
from secex_firstboot.basic.files import exists
from secex_firstboot.roots import overlay
from secex_firstboot.storage import filesystem


class Files(Step):
    name = "files"
    summary = "take over what Ignition wrote"
    stage = Stage.SEAL

    def observe(self, context: Context) -> Status:
        if context.phase is Phase.PROVISIONED or exists(places.FILES_FINISHED):
            return done("the system has what Ignition wrote")
        if context.phase is not Phase.COMMITTED:
            return waiting("the commit point comes first")
        if not filesystem.mount_sources(places.SYSROOT / "boot"):
            return waiting("the encrypted volumes are mounted first")
        return ready("take over what Ignition wrote")

    def perform(self, context: Context) -> None:
        luks_volumes.add_to_system(places.SYSROOT)
        with volumes.root_mounted(context) as root:
            overlay.take_over(root, places.SYSROOT, places.RUNTIME)
        places.FILES_FINISHED.touch()
