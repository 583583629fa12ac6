"""The step that mounts for Ignition what it has looked at."""

from __future__ import annotations

import pytest
from support import REPOSITORY
from support.machine import FIRST_BOOT, Machine, observe, put

from secex_firstboot.agent import places, volumes
from secex_firstboot.agent.step import Context
from secex_firstboot.agent.steps.mount import Mount
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.contract.dry_run import State
from secex_firstboot.roots import overlay
from secex_firstboot.storage import filesystem

MODULE_SETUP = REPOSITORY / "dracut/module-setup.sh"


def mounted(machine: Machine) -> None:
    for name in ("root", "boot"):
        machine.mounts[machine.where(name)] = machine.open_encrypted(name)


def test_mount_waits_for_root(machine: Machine) -> None:
    assert observe(machine, Mount()).state is State.WAITING
    machine.commit()
    assert observe(machine, Mount()).state is State.WAITING
    machine.mounts[places.SYSROOT] = machine.open_encrypted("root")
    assert observe(machine, Mount()).state is State.READY
    mounted(machine)
    assert observe(machine, Mount()).done


def test_of_a_system_made_by_ostree_the_volume_is_looked_at_and_not_the_deployment(machine: Machine) -> None:
    machine.commit()
    machine.mounts[places.SYSROOT] = "0:42"  # a composefs
    context = Context(f"{FIRST_BOOT} ostree=/ostree/boot.1/debian/{'c5' * 32}/0")
    assert Mount().observe(context).detail == f"systemd mounts {places.SYSROOT}/sysroot first"
    machine.mounts[places.SYSROOT / "sysroot"] = machine.open_encrypted("root")
    assert Mount().observe(context).state is State.READY


@pytest.mark.parametrize("finished", [False, True])
def test_what_ignition_writes_goes_beside_root_until_it_is_taken_over(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    did: list[str] = []
    monkeypatch.setattr(overlay, "mount", lambda root, system: did.append(f"overlay over {system}"))
    monkeypatch.setattr(volumes, "mount", lambda name, where: did.append(f"{name} on {where}"))
    monkeypatch.setattr(filesystem, "unmount", lambda where: did.append(f"not {where}"))
    if finished:
        put(places.FILES_FINISHED)
    Mount().perform(Context(""))
    beside = [f"root on {places.ROOT_MOUNT}", f"overlay over {places.SYSROOT}", f"not {places.ROOT_MOUNT}"]
    assert did == ([] if finished else beside) + [f"boot on {places.SYSROOT}/boot"]


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


def test_what_is_mounted_is_looked_at_before_ignition_writes_there() -> None:
    units = REPOSITORY / "systemd"
    unit = (units / "secex-firstboot-mount.service").read_text()
    assert "ExecStart=/usr/bin/secex-firstboot --stage=mount\n" in unit
    assert Mount.stage == "mount"
    lines = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)
    assert set(lines["Requires"].split()) == {"sysroot.mount", "ignition-disks.service"}
    assert {"ostree-prepare-root.service", *lines["Requires"].split()} <= set(lines["After"].split())
    assert "Before=ignition-mount.service ignition-files.service\n" in unit
    assert "Requires=secex-firstboot-mount.service\n" in (units / "ignition-after-mount.conf").read_text()
    assert 'drop_in ignition-after-mount.conf "ignition-$unit.service"' in MODULE_SETUP.read_text()
