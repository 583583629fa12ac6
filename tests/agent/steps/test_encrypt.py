"""The parts of the encrypt steps that run on real file systems and files, without device-mapper."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context
from secex_firstboot.agent.steps.encrypt import Encryption
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.storage import filesystem, progress_record
from secex_firstboot.storage.encrypted import TAIL_SIZE
from secex_firstboot.storage.plan import Plan, Span, VolumePlan
from secex_firstboot.storage.progress_record import Progress, ProgressRecord

MIB = 1 << 20
HEADROOM = 32 * MIB
CAP_SYS_RESOURCE = 24  # without it ext4 does not grow while it is mounted (kernel: ext4_resize_begin)
MAKE = {
    "ext4": (64 * MIB, ["mkfs.ext4", "-q", "-b", "4096"]),
    "xfs": (304 * MIB, ["mkfs.xfs", "-qK", "-s", "size=4096"]),
}


def can_grow_mounted() -> bool:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return bool(int(status["CapEff"], 16) >> CAP_SYS_RESOURCE & 1)


needs_loop_devices = pytest.mark.skipif(
    os.geteuid() != 0
    or not Path("/dev/loop-control").exists()
    or not all(map(shutil.which, ("mkfs.ext4", "mkfs.xfs", "losetup"))),
    reason="needs root, loop devices, e2fsprogs and xfsprogs to mount file systems",
)
EXT4 = pytest.param(
    "ext4",
    marks=pytest.mark.skipif(not can_grow_mounted(), reason="needs CAP_SYS_RESOURCE to grow a mounted ext4"),
)
EVERY_TYPE = pytest.mark.parametrize("type", [EXT4, "xfs"])


class Opened(Encryption):
    """Of root, whose volume is a loop device: a file system in its head, and room behind it."""

    def __init__(self, type: str, device: Path, se: Path) -> None:
        self.context, self.device, self.se, self.key = Context(""), device, se, bytes(32)
        nowhere, size = Span(offset=0, size=0), MAKE[type][0]
        self.volume_plan = VolumePlan.model_validate(
            {
                **{"name": "root", "root_hash": "00" * 32, "sector_size": 4096},
                **{"tree": nowhere, "saved_head": nowhere, "saved_tree": nowhere},
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


@needs_loop_devices
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


@needs_loop_devices
def test_growing_repairs_nothing(opened: Callable[[str], Opened]) -> None:
    """A directory's block is spoiled: e2fsck would give up the directory, and what lies in it."""
    run = opened("ext4")
    found = subprocess.run(["debugfs", "-R", "blocks /kept", run.device], capture_output=True, text=True)
    at = int(found.stdout.split()[0]) * 4096
    spoiled = os.urandom(4096)
    with run.device.open("r+b") as stream:
        stream.seek(at)
        stream.write(spoiled)
    with nullcontext() if can_grow_mounted() else pytest.raises(FirstbootError, match="not permitted"):
        run.grow()
    with run.device.open("rb") as stream:
        stream.seek(at)
        assert stream.read(4096) == spoiled
    with (
        filesystem.mounted(run.device, places.ROOT_MOUNT, type="ext4") as where,
        pytest.raises(OSError, match=r"[Bb]ad message|[Ss]tructure needs cleaning"),
    ):
        list((where / "kept").iterdir())


@needs_loop_devices
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


@needs_loop_devices
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


@needs_loop_devices
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
