"""The step that looks at what is mounted, before Ignition writes there."""

from __future__ import annotations

import pytest
from support import REPOSITORY
from support.machine import (
    Machine,
    observe,
    put,
)

from secex_firstboot.agent import places
from secex_firstboot.agent.steps.mount import Mount
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.contract.dry_run import State

MODULE_SETUP = REPOSITORY / "dracut/module-setup.sh"


def mounted(machine: Machine) -> None:
    for name in ("root", "boot"):
        machine.mounts[machine.where(name)] = machine.open_encrypted(name)
    machine.overlay = True


def test_mount_waits_for_both_volumes(machine: Machine) -> None:
    assert observe(machine, Mount()).state is State.WAITING
    machine.commit()
    assert observe(machine, Mount()).state is State.WAITING
    machine.mounts[places.SYSROOT] = machine.open_encrypted("root")
    assert observe(machine, Mount()).state is State.WAITING
    mounted(machine)
    assert observe(machine, Mount()).done


@pytest.mark.parametrize("name", ["boot", "root"])
def test_a_mounted_device_that_is_not_the_encrypted_volume_is_refused(machine: Machine, name: str) -> None:
    machine.commit()
    mounted(machine)
    machine.mounts[machine.where(name)] = "252:16"
    where = machine.where(name)
    with pytest.raises(
        FirstbootError, match=f"what is mounted on {where} is not the encrypted volume {name}: "
    ):
        observe(machine, Mount())


@pytest.mark.parametrize("name", ["boot", "root"])
def test_what_is_mounted_from_a_mapping_that_has_only_the_name_is_refused(
    machine: Machine, name: str
) -> None:
    machine.commit()
    mounted(machine)
    machine.map(name, "linear 252:16 0", "mpath-root")
    with pytest.raises(FirstbootError, match="is not the encrypted volume"):
        observe(machine, Mount())


def test_ignition_does_not_write_where_the_overlay_is_missing(machine: Machine) -> None:
    machine.commit()
    mounted(machine)
    machine.overlay = False
    status = observe(machine, Mount())
    assert (status.state, status.detail) == (
        State.WAITING,
        "the overlay that Ignition writes to is mounted first",
    )
    put(places.FILES_FINISHED)  # what it wrote is taken over, and nothing lies over root any more
    assert observe(machine, Mount()).done


def test_what_is_mounted_is_looked_at_before_ignition_writes_there() -> None:
    units = REPOSITORY / "systemd"
    unit = (units / "secex-firstboot-mount.service").read_text()
    assert "ExecStart=/usr/bin/secex-firstboot --stage=mount\n" in unit
    assert Mount.stage == "mount"
    needed = {
        "secex-firstboot-overlay.service",
        "ignition-disks.service",
        "sysroot.mount",
        "sysroot-boot.mount",
    }
    for order in ("Requires=", "After="):
        assert (
            set(next(line for line in unit.splitlines() if line.startswith(order))[len(order) :].split())
            == needed
        )
    assert "Before=ignition-mount.service ignition-files.service\n" in unit
    assert "Requires=secex-firstboot-mount.service\n" in (units / "ignition-after-mount.conf").read_text()
    assert 'drop_in ignition-after-mount.conf "ignition-$unit.service"' in MODULE_SETUP.read_text()
