"""platform: a Secure Execution guest, with the one disk of an SE-ready image."""

from __future__ import annotations

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done
from secex_firstboot.basic.errors import DeviceMissing, Refusal
from secex_firstboot.contract import parameters
from secex_firstboot.sdboot import options
from secex_firstboot.storage import disk


class Platform(Step):
    name = "platform"
    summary = "check that this is a Secure Execution guest and find the disk"
    stage = Stage.CONFIG

    def observe(self, context: Context) -> Status:
        _check_secure_execution()
        if context.phase is not Phase.PROVISIONED:
            _check_no_swap()
        if context.phase is Phase.FIRST:
            options.check(context.command_line)
            parameters.check(context.command_line, parameters.ROOT_HASHES.values())
        system_disk = disk.find_disk()
        if context.phase is Phase.FIRST and not system_disk.has_hash_trees:
            raise DeviceMissing(
                "SX-PLATFORM-01",
                f"{system_disk.device} has no partitions boothash and roothash, so it was provisioned before",
                "start it with its own sdboot, or start again from an unchanged image",
            )
        return done(f"Secure Execution guest, disk {system_disk.device}, {system_disk.size >> 20} MiB")

    def perform(self, context: Context) -> None:
        """Nothing: the ground is right, or it is refused."""


def _check_secure_execution() -> None:
    try:
        secure = places.SECURE_EXECUTION_GUEST.read_text(encoding="ascii").strip() == "1"
    except OSError:
        secure = False
    if not secure:
        raise Refusal(
            "SX-PLATFORM-02",
            "this machine is not an IBM Secure Execution guest",
            "start the SE-ready image on an IBM z15 or LinuxONE III or newer, as a Secure Execution guest",
        )


def _check_no_swap() -> None:
    """Memory that is swapped out, zram's writeback included, lies on the host's disk (proc(5))."""
    if len(places.SWAPS.read_text(encoding="utf-8").splitlines()) > 1:
        raise Refusal(
            "SX-PLATFORM-03",
            "swap is on in the initramfs, and could take keys to the host's disk",
            "build the image without swap in its initramfs; turn it on in the provisioned system",
        )
