"""config: decrypt the user's Ignition config and hand it to Ignition, before Ignition's fetch stage."""

from __future__ import annotations

from secex_firstboot import paths
from secex_firstboot.errors import Refusal
from secex_firstboot.files import write_private
from secex_firstboot.ignition import config, openpgp
from secex_firstboot.step import Context, Phase, Stage, Status, Step, done, ready
from secex_firstboot.storage import disk


class Config(Step):
    name = "config"
    summary = "decrypt the Ignition config and hand it to Ignition"
    stage = Stage.CONFIG

    def observe(self, context: Context) -> Status:
        if context.phase is Phase.PROVISIONED:
            return done("provisioned before; Ignition does not run again")
        if paths.IGNITION_USER_CONFIG.exists() and not paths.PRIVATE_KEY.exists():
            return done("Ignition has the config; the private key is gone")
        if not paths.PRIVATE_KEY.exists():
            raise Refusal(
                f"the initramfs has no private key {paths.PRIVATE_KEY}",
                "build the SE-ready image with the key that configs are encrypted to",
            )
        device = disk.find_by_serial(paths.CONFIG_DISK_SERIAL)
        if device is None:
            raise Refusal(
                f"no disk has the serial {paths.CONFIG_DISK_SERIAL}",
                "attach the encrypted Ignition config as a virtio disk with"
                f" serial={paths.CONFIG_DISK_SERIAL}",
            )
        return ready(f"decrypt the Ignition config on {device}")

    def perform(self, context: Context) -> None:
        device = disk.find_by_serial(paths.CONFIG_DISK_SERIAL)
        assert device is not None  # noqa: S101  observe() has just seen it
        try:
            message = openpgp.read_message(device)
            plain = openpgp.decrypt(message, paths.PRIVATE_KEY, paths.RUNTIME)
            config.parse(plain)
            write_private(paths.IGNITION_USER_CONFIG, plain)
        finally:
            paths.PRIVATE_KEY.unlink(missing_ok=True)
