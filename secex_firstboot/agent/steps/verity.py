"""verity: open boot and root through dm-verity, with the root hashes of the encrypted command line."""

from __future__ import annotations

from secex_firstboot.agent import verified
from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done, ready
from secex_firstboot.contract.partitions import HASH_TREES, VOLUMES
from secex_firstboot.storage import disk, filesystem, verity


class Verity(Step):
    name = "verity"
    summary = "open boot and root through dm-verity"
    stage = Stage.PROVISION

    def observe(self, context: Context) -> Status:
        if context.phase in (Phase.COMMITTED, Phase.PROVISIONED):
            return done("was checked before the commit point")
        for volume in VOLUMES:
            verified.root_hash(context, volume)
        if all(verified.is_open(context, volume) for volume in VOLUMES):
            return done("boot and root match their root hashes")
        return ready("open boot and root through dm-verity")

    def perform(self, context: Context) -> None:
        partitions = disk.find_disk().partitions
        for volume in VOLUMES:
            verified.close(volume)
            device = verity.open_verified(
                partitions[volume].device,
                partitions[HASH_TREES[volume]].device,
                verified.mapping(volume),
                verified.root_hash(context, volume),
            )
            filesystem.identify(device, volume)
