"""The step that plans, and makes the image that is committed."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
from support import REPOSITORY
from support.machine import (
    FIRST_BOOT,
    SOURCES,
    Machine,
    observe,
    put,
)

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context
from secex_firstboot.agent.steps import personalise
from secex_firstboot.agent.steps.personalise import Personalise
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract import paths
from secex_firstboot.contract.dry_run import State
from secex_firstboot.sdboot import contents
from secex_firstboot.sdboot.boot_entry import BootEntry
from secex_firstboot.sdboot.initramfs import Directory, File
from secex_firstboot.storage.plan import MIB

NO_LOCAL_LOGIN = REPOSITORY / "dracut/no-local-login.ign"


def test_personalise_waits_for_both_volumes(machine: Machine) -> None:
    assert observe(machine, Personalise()).state is State.WAITING
    machine.open_verity("boot")
    assert observe(machine, Personalise()).state is State.WAITING
    machine.open_verity()
    assert observe(machine, Personalise()).state is State.READY


def test_a_disk_without_room_is_refused_before_the_commit_point(machine: Machine) -> None:
    machine.open_verity()
    machine.disks[0] = replace(machine.disk, size=200 * MIB)
    with pytest.raises(Refusal, match=r"too small by \d+ MiB"):
        observe(machine, Personalise())


@pytest.mark.parametrize("name", ["boot", "root"])
def test_a_hash_tree_shorter_than_the_file_system_is_refused(machine: Machine, name: str) -> None:
    machine.sizes[name] = SOURCES[name] - 4096
    machine.open_verity()
    with pytest.raises(Refusal, match=f"hash tree for {name} does not cover the whole file system"):
        observe(machine, Personalise())


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1G", "1234567890"])
def test_a_headroom_that_is_no_number_of_mib_is_refused(machine: Machine, text: str) -> None:
    machine.open_verity()
    with pytest.raises(Refusal, match=r"secex\.headroom="):
        observe(machine, Personalise(), f"{FIRST_BOOT} secex.headroom={text}")


def test_an_unknown_way_to_grow_is_refused_before_the_commit_point(machine: Machine) -> None:
    machine.open_verity()
    assert observe(machine, Personalise(), f"{FIRST_BOOT} secex.grow=off").state is State.READY
    with pytest.raises(Refusal, match=r"secex\.grow=sometimes is not secex\.grow=background, "):
        observe(machine, Personalise(), f"{FIRST_BOOT} secex.grow=sometimes")


@pytest.mark.parametrize(("argument", "mib"), [("", 256), ("secex.headroom=0", 0), ("secex.headroom=12", 12)])
def test_the_headroom_is_taken_from_the_command_line(machine: Machine, argument: str, mib: int) -> None:
    machine.open_verity()
    assert observe(machine, Personalise(), f"{FIRST_BOOT} {argument}").state is State.READY
    assert personalise._plan(Context(f"{FIRST_BOOT} {argument}"), "00" * 32).headroom == mib * MIB


def test_personalise_asks_the_boot_entry_for_what_was_asked_of_the_image(machine: Machine) -> None:
    context = Context(f"{FIRST_BOOT} secex.grow=off secex.identity=replace")
    entry = "root=LABEL=root secex.identity=replace quiet init_on_free=1 secex.grow=off"
    personalise._check_options(context, entry)  # it gets the rest from us
    with pytest.raises(Refusal, match="no init_on_free=1"):
        personalise._check_options(context, entry.replace("init_on_free=1", ""))
    for other in ("", "secex.login=allowed", "secex.identity=replace secex.headroom=64"):
        with pytest.raises(
            Refusal, match="has another ostree= or other secex arguments than its boot image: build the image"
        ):
            personalise._check_options(context, entry.replace("secex.identity=replace", other))


@pytest.mark.parametrize(("argument", "replaced"), [("", False), ("secex.identity=replace", True)])
def test_the_plan_says_whether_what_identifies_a_machine_goes(
    machine: Machine, argument: str, replaced: bool
) -> None:
    """The volumes are encrypted under another command line than the one that was judged."""
    machine.open_verity()
    assert personalise._plan(Context(f"{FIRST_BOOT} {argument}"), "00" * 32).replace_identity is replaced


def test_an_se_partition_without_room_for_a_second_image_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, initrd = machine.root / "kernel", machine.root / "initrd"
    for path, mib in ((kernel, 10), (initrd, 50)):
        path.touch()
        os.truncate(path, mib * MIB)
    entry = BootEntry("", "", kernel, (initrd,), "")
    before = shutil.disk_usage(machine.root)

    def free(mib: int) -> None:
        usage = before._replace(free=mib * MIB)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    put(places.IGNITION_MERGED_CONFIG, "x" * MIB)
    free(69)
    contents.check_room(machine.root, entry, places.IGNITION_MERGED_CONFIG)
    free(68)
    with pytest.raises(Refusal, match="partition se is too small by 1 MiB"):
        contents.check_room(machine.root, entry, places.IGNITION_MERGED_CONFIG)


def test_the_committed_image_brings_back_all_state_and_the_merged_config(machine: Machine) -> None:
    machine.commit()
    places.COMMITTED.unlink()
    files = personalise._state_files()
    assert files[str(places.STATE)] == Directory(0o700)
    assert files[str(places.COMMITTED)] == File(b"")
    assert files[str(places.IGNITION_USER_CONFIG)] == File(places.IGNITION_USER_CONFIG)
    for path in (places.PLAN, places.STATE / "volumes/boot/key", places.HOST_KEYS / "ibm-z-hostkey-a"):
        assert files[str(path)] == File(path)
    assert all(str(path) in files for path in places.STATE.rglob("*"))
    assert str(paths.PRIVATE_KEY) not in files


def test_the_committed_image_brings_back_the_masks_of_logins_where_they_are_wanted(machine: Machine) -> None:
    machine.commit()
    base = places.IGNITION_BASE_CONFIGS / paths.NO_LOCAL_LOGIN.name
    assert str(base) not in personalise._state_files()
    put(base, "masks")
    assert personalise._state_files()[str(base)] == File(base)
