"""The step that looks at the machine: a Secure Execution guest, and one disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.machine import (
    CONFIG,
    FIRST_BOOT,
    NO_SWAP,
    Machine,
    observe,
    put,
    without_hash_trees,
)

from secex_firstboot.agent import boot_image, places
from secex_firstboot.agent.steps.platform import Platform
from secex_firstboot.basic.errors import DeviceMissing, Refusal
from secex_firstboot.contract.partitions import LASTING
from secex_firstboot.sdboot.options import first_boot_command_line


def test_a_secure_execution_guest_with_its_disk_is_the_right_platform(machine: Machine) -> None:
    assert observe(machine, Platform()).done


@pytest.mark.parametrize("content", ["0\n", "", "11", None])
def test_a_machine_that_is_no_secure_execution_guest_is_refused(
    machine: Machine, content: str | None
) -> None:
    if content is None:
        places.SECURE_EXECUTION_GUEST.unlink()
    else:
        places.SECURE_EXECUTION_GUEST.write_text(content)
    with pytest.raises(Refusal, match="not an IBM Secure Execution guest"):
        observe(machine, Platform())


def test_swap_is_refused_as_long_as_secrets_are_in_memory(machine: Machine) -> None:
    put(places.SWAPS, f"{NO_SWAP}/dev/zram0 partition 524284 0 100\n")
    with pytest.raises(Refusal, match="swap is on in the initramfs"):
        observe(machine, Platform())
    machine.provision()
    assert observe(machine, Platform(), command_line="").done


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (FIRST_BOOT.replace("/dev/mapper/root", "LABEL=root"), "is not root=/dev/mapper/root"),
        (f"root=LABEL=root {FIRST_BOOT}", "is not root=/dev/mapper/root"),
        (FIRST_BOOT.replace("init_on_free=1", "init_on_free=0"), "=0 is not init_on_free=1, so the image's"),
        (f"{FIRST_BOOT} init_on_free=0", "init_on_free=0 is not init_on_free=1"),
        (f"{FIRST_BOOT} secex.hedroom=64", "has no kernel parameter secex.hedroom"),
        (FIRST_BOOT.replace("rootfs.", "x"), "no rootfs.roothash=SHA256"),
        (FIRST_BOOT.replace("systemd.gpt_auto=0", ""), "no systemd.gpt_auto=0"),
        (FIRST_BOOT.replace("fsck.mode=skip", "fsck.mode=auto"), "=auto is not fsck.mode=skip, so a file"),
        (FIRST_BOOT.replace("init_on_free", "x"), "no init_on_free=1, so the image's private key"),
        (FIRST_BOOT.replace("root=", "x=", 1), "no root=/dev/mapper/root, so a disk"),
    ],
)
def test_an_image_that_would_let_the_host_in_is_refused(machine: Machine, wrong: str, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        observe(machine, Platform(), wrong)


def test_no_disk_is_refused_as_what_may_still_appear(machine: Machine) -> None:
    machine.disks.clear()
    with pytest.raises(DeviceMissing, match="no disk has the partitions of an SE-ready image"):
        observe(machine, Platform())


@pytest.mark.parametrize("name", ["boot", "root", "se"])
def test_a_missing_partition_is_refused_by_number_and_name(machine: Machine, name: str) -> None:
    left = {other: machine.disk.partitions[other] for other in machine.disk.partitions if other != name}
    machine.disks[0] = replace(machine.disk, partitions=left)
    with pytest.raises(Refusal, match=rf"has no partition {LASTING[name]} '{name}'"):
        observe(machine, Platform())


def test_two_disks_with_the_partitions_are_refused_and_named(machine: Machine) -> None:
    machine.disks.append(replace(machine.disk, device=Path("/dev/vdb")))
    with pytest.raises(Refusal, match=r"vda and /dev/vdb both carry"):
        observe(machine, Platform())
    machine.disks[1] = replace(machine.disks[1], partitions={"se": machine.disk.partitions["se"]})
    assert observe(machine, Platform()).done


def test_a_provisioned_disk_started_from_the_old_boot_record_is_refused(machine: Machine) -> None:
    machine.disks[0] = without_hash_trees(machine.disk)
    with pytest.raises(Refusal, match="was provisioned before"):
        observe(machine, Platform())
    put(places.COMMITTED)
    assert observe(machine, Platform()).done


@pytest.mark.parametrize("option", ["netroot=iscsi:10.0.0.1::::iqn.x", "nfsroot=10.0.0.1:/", "netroot"])
def test_a_root_from_the_network_is_refused_and_in_no_boot_image(machine: Machine, option: str) -> None:
    with pytest.raises(Refusal, match="a root from the network is the host's: build the image with"):
        observe(machine, Platform(), f"{FIRST_BOOT} {option}")
    put(places.IGNITION_MERGED_CONFIG, CONFIG % "")
    for made in (first_boot_command_line, boot_image.system_command_line):
        assert option not in made(f"{FIRST_BOOT} {option} secex.network=always").split()


@pytest.mark.parametrize("option", ["secex.network=yes", "secex.network"])
def test_another_value_for_the_network_is_refused(machine: Machine, option: str) -> None:
    with pytest.raises(Refusal, match=rf"{option} is not secex\.network=always"):
        observe(machine, Platform(), f"{FIRST_BOOT} {option}")
