"""Growing real file systems on loop devices, over a pattern that stands for what was never written."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import needs, plain

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.contract.parameters import Grow
from secex_firstboot.roots import growing
from secex_firstboot.storage.mounted import Mounted

MIB = 1 << 20
STEP = 16 * MIB
UNWRITTEN = b"\xa5" * 4096
ROOM = 40 * MIB  # behind the file system: two steps and a half

# name: MiB, command. -K and nodiscard: what is unused keeps the pattern.
EXT4 = ["mkfs.ext4", "-q", "-E", "nodiscard"]
KINDS = {
    "ext4, 1 KiB blocks": (65, [*EXT4, "-b", "1024"]),
    "ext4, 4 KiB blocks": (64, [*EXT4, "-b", "4096"]),
    "xfs, 512-byte sectors": (300, ["mkfs.xfs", "-qK", "-s", "size=512", "-b", "size=1024"]),
    "xfs, 4 KiB sectors": (300, ["mkfs.xfs", "-qK", "-s", "size=4096"]),
}


def kind(name: str, *values: object) -> object:
    return pytest.param(name, *values, marks=needs.mounted_ext4_that_grows if name.startswith("ext4") else ())


EVERY_KIND = pytest.mark.parametrize("kind", [kind(name) for name in KINDS])

mounted = needs.mounting("mkfs.ext4", "mkfs.xfs", "losetup")


class Volume:
    """A loop device with a file system in its head, mounted, and the pattern behind it."""

    def __init__(self, directory: Path, kind: str, room: int = ROOM) -> None:
        mib, command = KINDS[kind]
        self.image, self.where = directory / "image", directory / "mounted"
        self.lock = directory / "lock"
        with self.image.open("wb") as stream:
            stream.truncate(mib * MIB)
            subprocess.run([*command, self.image], check=True)
            stream.seek(mib * MIB)
            for at in range(0, room, len(UNWRITTEN)):
                stream.write(UNWRITTEN[: room - at])
        sector = "4096" if "4 KiB" in kind else "512"
        command = ["losetup", "--find", "--show", "--sector-size", sector, str(self.image)]
        self.device = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
        self.where.mkdir()
        subprocess.run(["mount", self.device, self.where], check=True)
        (self.where / "file").write_bytes(b"content" * 100_000)
        self.first_size = mib * MIB
        self.full_size = mib * MIB + room

    @property
    def mounted(self) -> Mounted:
        return Mounted.find(self.where, self.device)

    @property
    def stamp(self) -> Path:
        return self.where / "var/lib/secex-firstboot/grown"

    def grow(self, progress: Callable[[str, int, int], None] = lambda label, done, total: None) -> None:
        growing.grow_all(Context("", progress=progress), plain(self.where), self.device, self.lock, step=STEP)

    def never_written(self, start: int, end: int) -> set[bool]:
        """Whether the blocks from ``start`` to ``end`` still hold the pattern; {True, False} if only some."""
        with self.image.open("rb") as stream:
            stream.seek(start)
            content = stream.read(end - start)
        return {content[at : at + 1024] == UNWRITTEN[:1024] for at in range(0, len(content), 1024)}

    def check(self) -> None:
        """The file is whole and the unmounted file system clean."""
        assert (self.where / "file").read_bytes() == b"content" * 100_000
        tool = ["xfs_repair", "-n"] if self.mounted.type == "xfs" else ["e2fsck", "-fn"]
        subprocess.run(["umount", self.where], check=True)
        done = subprocess.run([*tool, self.device], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        subprocess.run(["mount", self.device, self.where], check=True)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Callable[..., Volume]]:
    made: list[Volume] = []

    def make(kind: str, room: int = ROOM) -> Volume:
        made.append(Volume(tmp_path, kind, room))
        return made[-1]

    yield make
    for each in made:
        subprocess.run(["umount", each.where], check=True)
        subprocess.run(["losetup", "--detach", each.device], check=True)


# --- growing ---


@mounted
@EVERY_KIND
def test_it_grows_to_the_end_and_only_over_zeros(
    volume: Callable[..., Volume], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = volume(kind)
    ends = [root.first_size]
    really_grow = Mounted.grow

    def watched(mounted: Mounted, size: int) -> None:
        assert root.never_written(ends[-1], size) == {False}
        assert size == root.full_size or root.never_written(size, root.full_size) == {True}
        really_grow(mounted, size)
        ends.append(mounted.size())

    monkeypatch.setattr(Mounted, "grow", watched)
    root.grow()
    assert ends == [root.first_size + grown for grown in (0, STEP, 2 * STEP, ROOM)]
    assert root.stamp.exists()
    root.check()


@mounted
def test_an_xfs_keeps_its_other_parameters(volume: Callable[..., Volume]) -> None:
    root = volume("xfs, 4 KiB sectors")
    info: list[str | Path] = ["xfs_info", root.where]
    before = subprocess.run(info, check=True, capture_output=True, text=True).stdout
    root.grow()
    after = subprocess.run(info, check=True, capture_output=True, text=True).stdout
    changed = {word.split("=")[0] for word in {*before.split()} ^ {*after.split()}}
    assert changed == {"agcount", "blocks"}


@mounted
@EVERY_KIND
def test_the_new_space_takes_files(volume: Callable[..., Volume], kind: str) -> None:
    root = volume(kind)
    root.grow()
    free = shutil.disk_usage(root.where).free
    assert free > KINDS[kind][0] * MIB // 2 + ROOM // 2
    with (root.where / "large").open("wb") as stream:
        for _ in range(free // MIB - 2):
            stream.write(b"L" * MIB)
    root.check()


@mounted
@pytest.mark.parametrize("kind", [kind("ext4, 4 KiB blocks"), kind("xfs, 4 KiB sectors")])
@pytest.mark.parametrize("calls", [1, 5, 17, 18, 30])
def test_killed_and_started_again_it_repeats_no_more_than_a_step(
    volume: Callable[..., Volume], kind: str, calls: int
) -> None:
    root = volume(kind)
    if (child := os.fork()) == 0:
        left = iter(range(calls))
        try:
            root.grow(
                lambda *_: None if next(left, None) is not None else os.kill(os.getpid(), signal.SIGKILL)
            )
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    reached = root.mounted.size()
    assert reached < root.full_size
    assert reached + STEP > root.full_size or root.never_written(reached + STEP, root.full_size) == {True}
    assert not root.stamp.exists()
    root.check()
    zeroed: list[int] = []
    root.grow(lambda label, done, total: zeroed.append(done))
    assert zeroed[0] == reached
    assert root.mounted.size() == root.full_size
    root.check()


@mounted
@pytest.mark.parametrize(
    ("kind", "rest"), [kind("xfs, 4 KiB sectors", 63 * 4096), kind("ext4, 4 KiB blocks", 4096)]
)
def test_a_rest_too_small_for_the_file_system_is_left_and_that_is_the_end(
    volume: Callable[..., Volume], kind: str, rest: int
) -> None:
    """A rest behind a whole number of groups: 75 MiB each for this xfs, 128 MiB for ext4."""
    whole = {"xfs": 75, "ext4": 64}[kind.split(",")[0]] * MIB
    root = volume(kind, room=whole + rest)
    for _ in range(2):
        root.stamp.unlink(missing_ok=True)
        root.grow()
        assert root.mounted.size() == root.first_size + whole
        assert root.stamp.exists()
    root.check()


@mounted
def test_an_xfs_group_of_the_least_size_is_added(volume: Callable[..., Volume]) -> None:
    root = volume("xfs, 4 KiB sectors", room=75 * MIB + 64 * 4096)
    root.grow()
    assert root.mounted.size() == root.full_size
    root.check()


@mounted
@EVERY_KIND
def test_it_stops_before_it_writes_when_somebody_else_grows_the_file_system(
    volume: Callable[..., Volume], kind: str
) -> None:
    root = volume(kind)
    taken = root.first_size + 8 * MIB

    def somebody_else(label: str, done: int, total: int) -> None:
        if done == root.first_size + 4 * MIB:
            root.mounted.grow(taken)

    with pytest.raises(FirstbootError, match="something else has changed the size"):
        root.grow(somebody_else)
    assert root.mounted.size() == taken
    assert True in root.never_written(root.first_size + 5 * MIB, taken)
    assert root.never_written(taken, root.full_size) == {True}
    root.grow()
    assert root.mounted.size() == root.full_size


@mounted
def test_only_one_at_a_time(volume: Callable[..., Volume]) -> None:
    root = volume("xfs, 4 KiB sectors")
    with root.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FirstbootError, match="another process is growing"):
            root.grow()
    assert root.mounted.size() == root.first_size
    root.grow()
    assert root.mounted.size() == root.full_size


@mounted
def test_another_device_than_the_mounted_one_is_refused(
    volume: Callable[..., Volume], tmp_path: Path
) -> None:
    root = volume("xfs, 4 KiB sectors")
    with pytest.raises(FirstbootError, match="is not mounted on"):
        growing.grow_all(Context(""), plain(tmp_path), root.device, root.lock, step=STEP)
    assert root.never_written(root.first_size, root.full_size) == {True}


@mounted
def test_progress_is_told_up_to_the_end(volume: Callable[..., Volume]) -> None:
    root, told = volume("xfs, 4 KiB sectors"), []
    root.grow(lambda *progress: told.append(progress))
    assert told == sorted(told)
    assert told[0] == (f"grow {root.where}", root.first_size, root.full_size)
    assert told[-1] == (f"grow {root.where}", root.full_size, root.full_size)


# --- the setting ---


def settings(root: Path, content: bytes) -> Path:
    (root / "etc").mkdir()
    (root / "etc/secex-firstboot.conf").write_bytes(content)
    return root


def test_without_a_setting_it_grows_in_the_background(tmp_path: Path) -> None:
    assert growing.setting(Context("quiet root=/dev/mapper/root"), plain(tmp_path)) is Grow.BACKGROUND


@pytest.mark.parametrize("chosen", Grow)
def test_the_file_has_the_setting(tmp_path: Path, chosen: Grow) -> None:
    root = settings(tmp_path, f"# The user's choice\n\n  grow={chosen}\n".encode())
    assert growing.setting(Context("quiet"), plain(root)) is chosen


def test_the_command_line_wins(tmp_path: Path) -> None:
    root = settings(tmp_path, b"grow=firstboot\n")
    assert growing.setting(Context("quiet secex.grow=off"), plain(root)) is Grow.OFF


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\ngrow=secret\n", "line 2: grow has an unknown value: use one of background, firstboot, off"),
        (b"grow=\n", "line 1: grow has an unknown value"),
        (b"grow\n", "line 1: grow has an unknown value"),
        (b"secret=off\n", "line 1: only grow=VALUE and fallback=VALUE can be set here"),
        (b"\xff\xfe\0", "line 1: only grow=VALUE and fallback=VALUE can be set here"),
        (b"#" * 4097, "is larger than 4096 bytes"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_in_one_line_without_its_content(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(Refusal) as refusal:
        growing.setting(Context(""), plain(settings(tmp_path, content)))
    assert message in str(refusal.value)
    assert "secret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    root = settings(tmp_path, b"grow=off\n".ljust(4096, b"#"))
    assert growing.setting(Context(""), plain(root)) is Grow.OFF


@pytest.mark.parametrize("word", ["", "yes", "OFF"])
def test_an_unknown_word_on_the_command_line_is_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(Refusal, match=r"is not secex\.grow=background, secex\.grow=firstboot or"):
        growing.setting(Context(f"secex.grow={word}"), plain(tmp_path))


# --- where and when ---


@mounted
@pytest.mark.parametrize(("word", "grows"), [("firstboot", True), ("background", False), ("off", False)])
def test_at_first_boot_it_grows_only_if_told_so(
    volume: Callable[..., Volume], word: str, grows: bool
) -> None:
    root = volume("xfs, 4 KiB sectors")
    settings(root.where, f"grow={word}".encode())
    growing.at_first_boot(Context(""), plain(root.where), root.device, root.lock)
    assert root.mounted.size() == (root.full_size if grows else root.first_size)
    assert root.stamp.exists() is grows


def test_at_first_boot_a_wrong_setting_is_said_and_does_not_stop_the_system(tmp_path: Path) -> None:
    lines: list[str] = []
    root = settings(tmp_path, b"grow=never")
    growing.at_first_boot(Context("", say=lines.append), plain(root), Path("/dev/null"), tmp_path / "lock")
    assert len(lines) == 1
    assert "line 1: grow has an unknown value" in lines[0]
