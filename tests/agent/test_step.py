"""How far the boot record has come, as each step is told."""

from __future__ import annotations

import pytest
from support.machine import (
    FIRST_BOOT,
    Machine,
    put,
)

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context, Phase


def test_an_se_ready_image_is_in_its_first_phase(machine: Machine) -> None:
    assert Context(FIRST_BOOT).phase is Phase.FIRST
    assert Context("ignition.firstboot=1").phase is Phase.FIRST


@pytest.mark.parametrize("command_line", ["", "ignition.firstbootx", "x=ignition.firstboot", "quiet ro"])
def test_without_the_first_boot_argument_it_is_another_machine(machine: Machine, command_line: str) -> None:
    assert Context(command_line).phase is Phase.ELSEWHERE


def test_after_the_commit_point_the_command_line_does_not_matter(machine: Machine) -> None:
    put(places.COMMITTED)
    assert Context(FIRST_BOOT).phase is Phase.COMMITTED
    assert Context("").phase is Phase.COMMITTED


@pytest.mark.parametrize("below", ["etc/luks/root", "sysroot/etc/luks/root"])
def test_a_system_with_its_keys_is_provisioned(machine: Machine, below: str) -> None:
    put(machine.root / below)
    assert Context("").phase is Phase.PROVISIONED


def test_a_plan_that_is_still_there_is_not_done_with(machine: Machine) -> None:
    """Seal writes the keys to the system before its image boots; until then the plan counts."""
    put(places.SYSROOT / "etc/luks/root")
    put(places.COMMITTED)
    assert Context(FIRST_BOOT).phase is Phase.COMMITTED
