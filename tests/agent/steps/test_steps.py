"""What holds of all steps, and of their order."""

from __future__ import annotations

from pathlib import Path

from support.machine import (
    FIRST_BOOT,
    Machine,
    observe,
    put,
    snapshot,
)

from secex_firstboot.agent import machine as state_machine
from secex_firstboot.agent.step import Context
from secex_firstboot.agent.steps import STEPS, hostkeys, personalise
from secex_firstboot.contract import paths


def test_on_a_provisioned_system_every_step_is_done(machine: Machine) -> None:
    machine.provision()
    for name in ("boot", "root"):
        machine.open_encrypted(name)
    for step in STEPS:
        assert observe(machine, step, command_line="").done, step.name


def test_after_a_crash_the_steps_before_the_commit_point_are_done(machine: Machine) -> None:
    machine.commit()
    done = [step.name for step in STEPS if observe(machine, step).done]
    assert done == ["platform", "config", "hostkeys", "verity", "personalise"]


def test_on_a_first_boot_the_dry_run_says_where_it_stands(machine: Machine) -> None:
    put(paths.PRIVATE_KEY)
    machine.serials["ignition_crypted"] = Path("/dev/vdb")
    before = snapshot(machine.root)
    seen = {row.step.name: row.state for row in state_machine.dry_run(Context(FIRST_BOOT))}
    assert snapshot(machine.root) == before
    assert seen.pop("platform") == "done"
    assert (seen.pop("config"), seen.pop("verity")) == ("ready", "ready")
    assert set(seen.values()) == {"waiting"}


def test_exactly_the_steps_that_write_to_the_disk_are_marked_destructive() -> None:
    marked = {step.name for step in STEPS if step.destructive}
    assert marked == {"personalise", "partition", "encrypt boot", "encrypt root", "seal"}


def test_no_destructive_step_runs_before_the_commit_point() -> None:
    names = [step.name for step in STEPS]
    first = next(step.name for step in STEPS if step.destructive)
    assert first == "personalise"
    assert names.index("seal") == len(names) - 1
    assert hostkeys.HostKeys.stage == personalise.Personalise.stage
