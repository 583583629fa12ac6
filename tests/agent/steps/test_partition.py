"""The step that writes the partition table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.machine import SOURCES, Machine, observe, partitions

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context
from secex_firstboot.agent.steps.partition import GrowPartition
from secex_firstboot.contract.dry_run import State
from secex_firstboot.storage import partition_table
from secex_firstboot.storage.plan import MIB, Plan


def test_partition_waits_for_the_commit_point(machine: Machine) -> None:
    assert observe(machine, GrowPartition()).state is State.WAITING


def test_partition_is_done_when_root_has_the_planned_size(machine: Machine) -> None:
    machine.commit()
    assert observe(machine, GrowPartition()).state is State.READY
    machine.partition()
    assert observe(machine, GrowPartition()).state is State.DONE
    root = machine.disk.partitions["root"]
    less = {"root": replace(root, size=root.size - MIB)}
    machine.disks[0] = replace(machine.disk, partitions=machine.disk.partitions | less)
    assert observe(machine, GrowPartition()).state is State.READY


def test_partition_is_not_done_while_one_of_the_two_tables_is_torn(machine: Machine) -> None:
    machine.commit()
    machine.partition()
    machine.table_is_sound = False
    assert observe(machine, GrowPartition()).state is State.READY


@pytest.mark.parametrize("left_as_it_was", ["boot", "root"])
def test_partition_is_not_done_before_both_have_their_place(machine: Machine, left_as_it_was: str) -> None:
    """Boot fills its partition, so that root gives it of its start."""
    full = partitions(machine.root / "dev", boot=SOURCES["boot"] // MIB)
    machine.disks[0] = replace(machine.disk, partitions=full)
    machine.commit()
    machine.partition()
    moved = machine.disk.partitions
    assert observe(machine, GrowPartition()).state is State.DONE
    as_it_was = {left_as_it_was: full[left_as_it_was]}
    machine.disks[0] = replace(machine.disk, partitions=moved | as_it_was)
    assert observe(machine, GrowPartition()).state is State.READY


def test_partition_moves_root_before_boot_takes_the_room(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = partitions(machine.root / "dev", boot=SOURCES["boot"] // MIB)
    machine.disks[0] = replace(machine.disk, partitions=full)
    machine.commit()
    plan = Plan.load(places.PLAN)
    asked: dict[str, Any] = {}
    monkeypatch.setattr(partition_table, "change", lambda *_, **how: asked.update(how))
    GrowPartition().perform(Context(""))
    assert asked["delete"] == [5, 6]
    assert list(asked["places"].items()) == [
        (4, (full["root"].start + plan.root.shift, plan.root.partition.size)),
        (3, (full["boot"].start, full["boot"].size + plan.root.shift)),
    ]
