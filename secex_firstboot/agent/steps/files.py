"""files: what Ignition wrote beside the root file system becomes part of it."""

from __future__ import annotations

from secex_firstboot.agent import luks_volumes, places
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
        if filesystem.mount_sources(places.SYSROOT)[-1:] != ["overlay"]:
            return waiting("Ignition writes first")
        return ready("take over what Ignition wrote")

    def perform(self, context: Context) -> None:
        luks_volumes.add_to_system(places.SYSROOT)
        overlay.take_over(places.SYSROOT, places.RUNTIME)
        places.FILES_FINISHED.touch()
