"""The step that writes the partition table."""

from __future__ import annotations

from dataclasses import replace

from support.machine import (
    Machine,
    observe,
)

from secex_firstboot.agent.steps.partition import GrowPartition
from secex_firstboot.contract.dry_run import State
from secex_firstboot.storage.plan import MIB


def test_partition_waits_for_the_commit_point(machine: Machine) -> None:
    assert observe(machine, GrowPartition()).state is State.WAITING


def test_partition_is_done_when_root_has_the_planned_size(machine: Machine) -> None:
    machine.commit()
    planned = machine.plan().root_partition_size
    assert observe(machine, GrowPartition()).state is State.READY
    for size, state in ((planned - MIB, State.READY), (planned, State.DONE)):
        root = replace(machine.disk.partitions["root"], size=size)
        machine.disks[0] = replace(machine.disk, partitions=machine.disk.partitions | {"root": root})
        assert observe(machine, GrowPartition()).state is state


def test_partition_is_not_done_while_one_of_the_two_tables_is_torn(machine: Machine) -> None:
    machine.commit()
    root = replace(machine.disk.partitions["root"], size=machine.plan().root_partition_size)
    machine.disks[0] = replace(machine.disk, partitions=machine.disk.partitions | {"root": root})
    machine.table_is_sound = False
    assert observe(machine, GrowPartition()).state is State.READY
