"""The step that opens the verified volumes."""

from __future__ import annotations

import pytest
from support.machine import (
    FIRST_BOOT,
    HASHES,
    Machine,
    observe,
)

from secex_firstboot.agent.steps.personalise import Personalise
from secex_firstboot.agent.steps.verity import Verity
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.dry_run import State


def test_verity_is_ready_with_both_root_hashes_and_done_with_both_mappings(machine: Machine) -> None:
    assert observe(machine, Verity()).state is State.READY
    machine.open_verity("boot")
    assert observe(machine, Verity()).state is State.READY
    machine.open_verity()
    assert observe(machine, Verity()).done


@pytest.mark.parametrize(
    "table",
    [
        f"verity 1 252:4 252:6 4096 4096 8192 1 sha256 {'0' * 64} 5a17",
        f"verity 1 252:40 252:6 4096 4096 8192 1 sha256 {HASHES['root']} 5a17",
        f"verity 1 252:4 252:5 4096 4096 8192 1 sha256 {HASHES['root']} 5a17",
        "linear 252:4 0",
    ],
)
def test_another_mapping_of_the_name_is_not_the_verified_volume(machine: Machine, table: str) -> None:
    machine.open_verity()
    machine.map("root_verity", table, "CRYPT-VERITY-0e4a-root_verity")
    assert observe(machine, Verity()).state is State.READY
    assert observe(machine, Personalise()).state is State.WAITING


def test_a_verified_volume_is_known_by_its_uuid(machine: Machine) -> None:
    machine.open_verity()
    (target,) = machine.tables["root_verity"]
    machine.map("root_verity", " ".join([target.type, *target.arguments]), "LVM-root_verity")
    assert observe(machine, Verity()).state is State.READY


@pytest.mark.parametrize("wrong", ["", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "0x" + "0" * 62])
@pytest.mark.parametrize("name", ["boot", "root"])
def test_a_root_hash_in_another_form_is_refused(machine: Machine, name: str, wrong: str) -> None:
    argument = f"{name}fs.roothash"
    command_line = FIRST_BOOT.replace(f"{argument}={HASHES[name]}", f"{argument}={wrong}")
    with pytest.raises(Refusal, match=argument):
        observe(machine, Verity(), command_line)


@pytest.mark.parametrize("name", ["boot", "root"])
def test_a_missing_root_hash_is_refused(machine: Machine, name: str) -> None:
    with pytest.raises(Refusal, match=f"{name}fs.roothash"):
        observe(machine, Verity(), FIRST_BOOT.replace(f"{name}fs.roothash=", "x="))
