"""volumes: the config's own LUKS volumes (storage.luks) are opened with headers that the host cannot change.

Ignition's disks stage has made and opened them, with a header on the host's disk. Before anything is written
to them they are opened anew, with a header made here. After the files stage has written their keys to root,
the headers are put beside them, and what each volume is compared with whenever it is opened.
"""

from __future__ import annotations

from secex_firstboot.agent import luks_volumes, places
from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done, ready, waiting
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import exists, write_private
from secex_firstboot.contract import paths
from secex_firstboot.ignition import luks, ownership
from secex_firstboot.roots import crypttab
from secex_firstboot.storage import disk, reopen


class Volumes(Step):
    name = "volumes"
    summary = "open the config's own LUKS volumes with headers that the host cannot change"
    stage = Stage.MOUNT

    def observe(self, context: Context) -> Status:
        if context.phase is Phase.PROVISIONED or exists(places.FILES_FINISHED):
            return done("the system has the headers of the config's LUKS volumes")
        if context.phase is not Phase.COMMITTED:
            return waiting("the commit point comes first")
        if not exists(places.IGNITION_MERGED_CONFIG):
            return waiting("Ignition merges the config first")
        names = [each.name for each in luks_volumes.named()]
        if not names:
            return done("the config has no LUKS volumes")
        if all(
            exists(luks_volumes.header(name)) and reopen.is_open(luks_volumes.header(name), name)
            for name in names
        ):
            return done(f"{len(names)} LUKS volumes are open with headers made here")
        return ready(f"open {len(names)} LUKS volumes with headers made here")

    def perform(self, context: Context) -> None:
        keys = luks.keys(places.IGNITION_STATE)
        system_disk = ownership.device_numbers(disk.find_disk().device)
        try:
            for index, each in enumerate(luks_volumes.named()):
                try:
                    _reopen(each.name, keys.get(each.name), system_disk)
                except FirstbootError as error:
                    raise FirstbootError(
                        error.id, f"storage.luks[{index}]: {error.message}", error.cure
                    ) from error
        finally:
            for key in keys.values():
                key[:] = bytes(len(key))
        # Before Ignition adds lines to it, with what it then reads from the disks.
        write_private(luks_volumes.own_crypttab(), crypttab.read(paths.below(places.SYSROOT, paths.CRYPTTAB)))


def _reopen(name: str, key: bytearray | None, system_disk: frozenset[int]) -> None:
    if key is None:
        raise FirstbootError("SX-STEP-14", "Ignition has no key of it", "look at ignition-disks.service")
    device = reopen.device_below(name)
    if device.stat().st_rdev in system_disk:
        raise FirstbootError("SX-STEP-15", "it lies on the system disk", "use another disk")
    reopen.reopen(name, device, key, luks_volumes.header(name), places.RUNTIME)
