"""mount: the encrypted boot volume below /sysroot; systemd has mounted the root volume there."""

from __future__ import annotations

from secex_firstboot import paths
from secex_firstboot.errors import Refusal
from secex_firstboot.step import Context, Phase, Stage, Status, Step, done, ready, waiting
from secex_firstboot.storage import devicemapper, filesystem

_BOOT = paths.SYSROOT / "boot"


class Mount(Step):
    name = "mount"
    summary = "mount the encrypted volumes for Ignition"
    stage = Stage.MOUNT

    def observe(self, context: Context) -> Status:
        if context.phase is Phase.PROVISIONED:
            return done("the system runs from the encrypted volumes")
        root = filesystem.mount_source(paths.SYSROOT)
        if root is None:
            return waiting(f"systemd mounts {paths.SYSROOT} first")
        if root.resolve() != (devicemapper.MAPPER / "root").resolve():
            raise Refusal(
                f"{root} is mounted on {paths.SYSROOT}", "build the image with root=/dev/mapper/root"
            )
        if filesystem.mount_source(_BOOT):
            return done(f"{paths.SYSROOT} and {_BOOT}")
        return ready(f"mount /dev/mapper/boot on {_BOOT}")

    def perform(self, context: Context) -> None:
        device = devicemapper.MAPPER / "boot"
        filesystem.mount(device, _BOOT, type=filesystem.identify(device, "boot").type)
