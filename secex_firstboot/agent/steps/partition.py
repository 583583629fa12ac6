"""partition: root grows to the end of the disk; the hash trees' partitions go, their content stays.

Boot grows over the start of root where it has no room for its encrypted successor.
"""

from __future__ import annotations

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done, ready, waiting
from secex_firstboot.contract.partitions import HASH_TREES
from secex_firstboot.storage import disk, partition_table
from secex_firstboot.storage.disk import Disk
from secex_firstboot.storage.plan import Plan


class GrowPartition(Step):
    name = "partition"
    summary = "grow the root partition to the end of the disk"
    stage = Stage.PROVISION
    destructive = True

    def observe(self, context: Context) -> Status:
        if context.phase not in (Phase.COMMITTED, Phase.PROVISIONED):
            return waiting("the commit point comes first")
        system_disk = disk.find_disk()
        root = system_disk.partitions["root"]
        if context.phase is Phase.PROVISIONED:
            return done(f"root has {root.size >> 20} MiB")
        whole = partition_table.is_sound(system_disk.device, system_disk.block_size)
        wanted = _places(system_disk)
        there = {part.number: (part.start, part.size) for part in system_disk.partitions.values()}
        if whole and wanted.items() <= there.items():
            return done(f"root has {root.size >> 20} MiB")
        return ready(f"remove boothash and roothash, grow root from {root.size >> 20} MiB")

    def perform(self, context: Context) -> None:
        system_disk = disk.find_disk()
        partition_table.change(
            system_disk.device,
            system_disk.block_size,
            delete=[
                system_disk.partitions[name].number
                for name in HASH_TREES.values()
                if name in system_disk.partitions
            ],
            places=_places(system_disk),
            scratch=places.RUNTIME,
        )


def _places(system_disk: Disk) -> dict[int, tuple[int, int]]:
    """Where the plan has the partitions: root first, as it makes room for boot."""
    plan = Plan.load(places.PLAN)
    return {
        system_disk.partitions[each.name].number: (each.partition.offset, each.partition.size)
        for each in (plan.root, plan.boot)
    }
