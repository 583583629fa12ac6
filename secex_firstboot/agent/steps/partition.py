"""partition: root grows to the end of the disk; the hash trees' partitions go, their content stays."""

from __future__ import annotations

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done, ready, waiting
from secex_firstboot.contract.partitions import HASH_TREES
from secex_firstboot.storage import disk, partition_table
from secex_firstboot.storage.plan import Plan


class Partition(Step):
    name = "partition"
    summary = "grow the root partition to the end of the disk"
    stage = Stage.PROVISION
    destructive = True

    def observe(self, context: Context) -> Status:
        if context.phase not in (Phase.COMMITTED, Phase.PROVISIONED):
            return waiting("the commit point comes first")
        found = disk.find_disk()
        root = found.partitions["root"]
        if context.phase is Phase.PROVISIONED:
            return done(f"root has {root.size >> 20} MiB")
        whole = partition_table.is_sound(found.device, found.block_size)
        if whole and root.size == Plan.load(places.PLAN).root_partition_size:
            return done(f"root has {root.size >> 20} MiB")
        return ready(f"remove boothash and roothash, grow root from {root.size >> 20} MiB")

    def perform(self, context: Context) -> None:
        found = disk.find_disk()
        partition_table.change(
            found.device,
            found.block_size,
            delete=[
                found.partitions[name].number for name in HASH_TREES.values() if name in found.partitions
            ],
            number=found.partitions["root"].number,
            blocks=Plan.load(places.PLAN).root_partition_size // found.block_size,
            scratch=places.RUNTIME,
        )
