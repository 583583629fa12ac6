"""The steps that encrypt: on real file systems and files, and without device-mapper."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from support import needs
from support.machine import (
    SOURCES,
    Machine,
    observe,
    partitions,
    put,
)

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context
from secex_firstboot.agent.steps import encrypt
from secex_firstboot.agent.steps.encrypt import EncryptBoot, Encryption, EncryptRoot
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.contract.dry_run import State
from secex_firstboot.storage import cryptsetup, devicemapper, encrypted, filesystem, progress_record, verity
from secex_firstboot.storage.devicemapper import Piece
from secex_firstboot.storage.encrypted import TAIL_SIZE, head_size
from secex_firstboot.storage.plan import MIB, Plan, Span, VolumePlan
from secex_firstboot.storage.progress_record import Progress, ProgressRecord

HEADROOM = 32 * MIB
MAKE = {
    "ext4": (64 * MIB, ["mkfs.ext4", "-q", "-b", "4096"]),
    "xfs": (304 * MIB, ["mkfs.xfs", "-qK", "-s", "size=4096"]),
}


EXT4 = pytest.param("ext4", marks=needs.mounted_ext4_that_grows)
mounted = needs.mounting("mkfs.ext4", "mkfs.xfs", "losetup", "debugfs")
EVERY_TYPE = pytest.mark.parametrize("type", [EXT4, "xfs"])


class Opened(Encryption):
    """Of root, whose volume is a loop device: a file system in its head, and room behind it."""

    def __init__(self, type: str, device: Path, se: Path) -> None:
        self.context, self.device, self.se, self.key = Context(""), device, se, bytes(32)
        nowhere, size = Span(offset=0, size=0), MAKE[type][0]
        self.volume_plan = VolumePlan.model_validate(
            {
                **{"name": "root", "root_hash": "00" * 32, "sector_size": 4096, "shift": 0},
                **{"partition": nowhere, "tree": nowhere, "saved_head": nowhere, "saved_tree": nowhere},
                **{"file_system": type, "file_system_size": size, "source_size": size},
            }
        )
        self.plan = Plan.model_construct(root=self.volume_plan, headroom=HEADROOM)
        self.progress_record = ProgressRecord()

    def _opened(self) -> Path:
        return self.device

    @property
    def progress(self) -> Progress:
        return progress_record.load(self.se, self.key).root.progress


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Opened]]:
    for name in ("ROOT_MOUNT", "FILES_FINISHED"):
        monkeypatch.setattr(places, name, tmp_path / name)
    devices: list[str] = []

    def make(type: str) -> Opened:
        size, command = MAKE[type]
        image = tmp_path / type
        with image.open("wb") as stream:
            stream.truncate(size)
        subprocess.run([*command, image], check=True)
        os.truncate(image, size + HEADROOM + TAIL_SIZE)
        command = ["losetup", "--find", "--show", "--sector-size=4096", str(image)]
        devices.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
        (tmp_path / "se").mkdir()
        with filesystem.mounted(Path(devices[-1]), places.ROOT_MOUNT, type=type) as where:
            (where / "kept").mkdir()
            (where / "kept/file").write_bytes(b"content" * 100_000)
        return Opened(type, Path(devices[-1]), tmp_path / "se")

    yield make
    for device in devices:
        subprocess.run(["losetup", "--detach", device], check=True)


@mounted
@EVERY_TYPE
def test_the_file_system_grows_by_the_headroom_and_stays_clean(
    opened: Callable[[str], Opened], type: str
) -> None:
    run = opened(type)
    for _ in range(2):  # the second time as after a power cut before the record
        run.grow()
        assert run.progress is Progress.FINISHED
        assert filesystem.identify(run.device, "root").size == MAKE[type][0] + HEADROOM
    tool = {"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n"]}[type]
    subprocess.run([*tool, run.device], check=True, capture_output=True)
    with filesystem.mounted(run.device, places.ROOT_MOUNT, type=type) as where:
        assert (where / "kept/file").read_bytes() == b"content" * 100_000


@mounted
def test_growing_repairs_nothing(opened: Callable[[str], Opened]) -> None:
    """A directory's block is spoiled: e2fsck would give up the directory, and what lies in it."""
    run = opened("ext4")
    found = subprocess.run(["debugfs", "-R", "blocks /kept", run.device], capture_output=True, text=True)
    at = int(found.stdout.split()[0]) * 4096
    spoiled = os.urandom(4096)
    with run.device.open("r+b") as stream:
        stream.seek(at)
        stream.write(spoiled)
    with (
        nullcontext() if needs.can_grow_mounted_ext4 else pytest.raises(FirstbootError, match="not permitted")
    ):
        run.grow()
    with run.device.open("rb") as stream:
        stream.seek(at)
        assert stream.read(4096) == spoiled
    with (
        filesystem.mounted(run.device, places.ROOT_MOUNT, type="ext4") as where,
        pytest.raises(OSError, match=r"[Bb]ad message|[Ss]tructure needs cleaning"),
    ):
        list((where / "kept").iterdir())


@mounted
@pytest.mark.parametrize("type", [EXT4])
def test_a_file_system_with_errors_does_not_grow(opened: Callable[[str], Opened], type: str) -> None:
    """The kernel noted that it could not read, or did not understand, something."""
    run = opened(type)
    subprocess.run(["debugfs", "-w", "-R", "ssv state 3", run.device], check=True, capture_output=True)
    with pytest.raises(FirstbootError, match=r"cannot ask or grow the ext4"):
        run.grow()
    assert run.progress is Progress.UNTOUCHED


# --- what is left to do, when root shows that more was done ---

OLDER = "the progress record on partition se is older"


@mounted
@pytest.mark.parametrize(
    ("progress", "refused"), [(Progress.COPIED, True), (Progress.ZEROED, False), (Progress.FINISHED, False)]
)
def test_a_root_that_has_grown_is_not_zeroed_again(
    opened: Callable[[str], Opened], progress: Progress, refused: bool
) -> None:
    run = opened("xfs")
    run._note(progress)
    run._settle_files(run.device)
    run.grow()
    run._note(progress)
    with pytest.raises(FirstbootError, match=OLDER) if refused else nullcontext():
        run._settle_files(run.device)


@mounted
@pytest.mark.parametrize(
    ("progress", "refused"), [(Progress.COPIED, True), (Progress.ZEROED, True), (Progress.FINISHED, False)]
)
def test_a_root_that_ignition_has_written_to_is_not_prepared_again(
    opened: Callable[[str], Opened], progress: Progress, refused: bool
) -> None:
    run = opened("xfs")
    run._note(progress)
    with filesystem.mounted(run.device, places.ROOT_MOUNT, type="xfs") as where:
        (where / ".secex-firstboot/upper").mkdir(parents=True)
    with pytest.raises(FirstbootError, match=OLDER) if refused else nullcontext():
        run._settle_files(run.device)


# --- what it says of what it sees, and does with files ---


@pytest.mark.parametrize("step", [EncryptBoot(), EncryptRoot()])
def test_encrypting_waits_for_the_commit_point(machine: Machine, step: EncryptBoot | EncryptRoot) -> None:
    assert observe(machine, step).state is State.WAITING
    machine.commit()
    status = observe(machine, step)
    assert status.state is State.READY
    assert f"encrypt {SOURCES[step.volume] >> 20} MiB of {step.volume}" in status.detail


@pytest.mark.parametrize("step", [EncryptBoot(), EncryptRoot()])
def test_encrypting_is_done_only_with_dm_crypt_on_dm_integrity_on_the_partition(
    machine: Machine, step: EncryptBoot | EncryptRoot
) -> None:
    machine.commit()
    (machine.root / "dev" / "mapper" / step.volume).touch()
    assert observe(machine, step).state is State.READY
    machine.open_encrypted(step.volume)
    assert observe(machine, step).done
    machine.map(f"{step.volume}_dif", "linear 252:3 0")
    assert observe(machine, step).state is State.READY
    machine.map(f"{step.volume}_dif", "integrity 252:16 32768 32 J 7 journal_sectors:1")
    assert observe(machine, step).state is State.READY


@pytest.mark.parametrize("step", [EncryptBoot(), EncryptRoot()])
@pytest.mark.parametrize(
    ("table", "uuid"),
    [
        ("linear 252:16 0", "{uuid}"),
        ("crypt cipher_null-ecb - 0 252:16 0", "{uuid}"),
        ("{table}", "mpath-{name}"),
        ("{table}", "{uuid}2"),
        ("{table}", ""),
    ],
)
def test_a_mapping_that_has_only_the_name_is_not_the_encrypted_volume(
    machine: Machine, step: EncryptBoot | EncryptRoot, table: str, uuid: str
) -> None:
    machine.commit()
    machine.open_encrypted(step.volume)
    (target,), found = machine.tables[step.volume], devicemapper.find(step.volume)
    assert found
    same = " ".join([target.type, *target.arguments])
    machine.map(step.volume, table.format(table=same), uuid.format(uuid=found.uuid, name=step.volume))
    assert observe(machine, step).state is State.READY


@pytest.fixture
def devices(machine: Machine) -> Machine:
    """Files as the partitions, root already grown."""
    return with_files(machine)


def with_files(machine: Machine) -> Machine:
    machine.commit()
    machine.partition()
    for name in ("boot", "root"):
        partition = machine.disk.partitions[name]
        partition.device.touch()
        os.truncate(partition.device, partition.size)
    (machine.root / "se").mkdir()
    return machine


def encryption(machine: Machine, name: str) -> Encryption:
    plan = Plan.load(places.PLAN)
    return Encryption(Context(""), plan, encrypt._volume(plan, name), machine.root / "se")


def part(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


@pytest.mark.parametrize("name", ["boot", "root"])
def test_what_the_target_would_overwrite_is_saved_at_the_end_of_the_disk(devices: Machine, name: str) -> None:
    run = encryption(devices, name)
    source, root = (devices.disk.partitions[each].device for each in (name, "root"))
    head, tree, saved_tree = run.volume_plan.saved_head, run.volume_plan.tree, run.volume_plan.saved_tree
    for device, start, size in ((source, 0, run.volume_plan.source_size), (root, tree.offset, tree.size)):
        with device.open("r+b") as stream:
            stream.seek(start)
            stream.write(os.urandom(size))
    before = part(source, 0, run.volume_plan.source_size), part(root, tree.offset, tree.size)
    for _ in range(2):
        run.save()
        assert part(root, head.offset, head.size) == before[0][: head.size]
        assert part(root, saved_tree.offset, saved_tree.size) == before[1]
        assert part(source, 0, run.volume_plan.source_size) == before[0]
    seen = progress_record.load(devices.root / "se", run.key)
    assert seen.of(name).progress is Progress.SAVED
    assert seen.of({"boot": "root", "root": "boot"}[name]).progress is Progress.UNTOUCHED


@pytest.mark.parametrize("room", [64, 20, 0])
def test_both_sources_are_whole_once_what_the_targets_overwrite_is_saved(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """``room`` is what boot's partition has behind its file system, MiB: with less, boot grows over root."""
    full = partitions(machine.root / "dev", boot=SOURCES["boot"] // MIB + room)
    machine.disks[0] = replace(machine.disk, partitions=full)
    with_files(machine)
    content = {name: os.urandom(size) for name, size in SOURCES.items()}
    boot, root = (machine.disk.partitions[name].device for name in SOURCES)
    shift = machine.disk.partitions["root"].start - full["root"].start
    assert bool(shift) == (room < 64)
    write(boot, 0, content["boot"])
    write(boot, full["boot"].size, content["root"][:shift])
    write(root, 0, content["root"][shift:])
    for name, device in (("boot", boot), ("root", root)):
        run = encryption(machine, name)
        run.save()
        write(device, 0, os.urandom(head_size(4096)))
        if name == "boot":
            write(device, full["boot"].size, os.urandom(shift))
        assert source_of(run, monkeypatch) == content[name]


def write(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(content)


def source_of(run: Encryption, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What dm-verity would be given."""
    given: list[bytes] = []

    @contextmanager
    def linear(name: str, pieces: list[Piece], *, read_only: bool) -> Iterator[Path]:
        assert read_only
        given.append(b"".join(part(each.device, each.offset, each.size) for each in pieces))
        yield Path(name)

    monkeypatch.setattr(encrypt, "_linear", linear)
    monkeypatch.setattr(verity, "open_verified", lambda data, *_: data)
    monkeypatch.setattr(cryptsetup, "close", lambda name: None)
    with run._source():
        return given[0]


@pytest.mark.parametrize(
    ("progress", "left"),
    [
        (Progress.UNTOUCHED, ["save", "place", "copy", "zero", "grow"]),
        (Progress.SAVED, ["place", "copy", "zero", "grow"]),
        (Progress.PLACED, ["copy", "zero", "grow"]),
        (Progress.COPIED, ["zero", "grow"]),
        (Progress.ZEROED, ["grow"]),
        (Progress.FINISHED, []),
    ],
)
def test_encrypting_goes_on_with_the_part_after_the_recorded_one(
    devices: Machine, monkeypatch: pytest.MonkeyPatch, progress: Progress, left: list[str]
) -> None:
    encryption(devices, "root")._note(progress)
    run = encryption(devices, "root")
    done: list[str] = []

    def part_that_records(name: str, reached: Progress) -> Callable[[], None]:
        def part() -> None:
            done.append(name)
            run._note(reached)

        return part

    monkeypatch.setattr(run, "_settle_files", lambda root: done.append("settle files"))
    for name, reached in zip(("save", "place", "copy", "zero", "grow"), list(Progress)[1:], strict=True):
        monkeypatch.setattr(run, name, part_that_records(name, reached))
    monkeypatch.setattr(
        encrypted,
        "open_volume",
        lambda files, device, name: done.append(f"open {device.name} as {name}"),
    )
    run.run()
    opened = "open vda4 as root"
    assert done == [*([opened, "settle files"] if len(left) <= 2 else []), *left, opened]


def test_a_root_on_which_first_boot_ended_is_not_set_up_again(tmp_path: Path) -> None:
    encrypt.refuse_sealed(tmp_path)
    put(tmp_path / "etc/luks/sealed")
    with pytest.raises(FirstbootError, match="an older boot image was put back"):
        encrypt.refuse_sealed(tmp_path)


@pytest.mark.parametrize(
    ("name", "headroom", "grown"),
    [("boot", 64, 32), ("root", 0, 64), ("root", 15, 64), ("root", 16, 80), ("root", 900, 128)],
)
def test_only_root_grows_by_the_headroom_and_never_into_the_tail(
    devices: Machine, name: str, headroom: int, grown: int
) -> None:
    run = encryption(devices, name)
    run.plan = run.plan.model_copy(update={"headroom": headroom * MIB})
    assert run._grown_size(147 * MIB) == grown * MIB


def test_a_volume_too_small_for_headroom_keeps_its_file_system(devices: Machine) -> None:
    assert encryption(devices, "root")._grown_size(65 * MIB) == SOURCES["root"]
