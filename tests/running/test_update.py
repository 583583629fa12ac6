"""When boot images are made anew, which of them starts, and what a kill on the way leaves. zipl, disk and
builder are stand-ins; that of zipl writes a boot record that a test can read.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import plain, recovery_keys
from support.machine import put

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import write_private
from secex_firstboot.contract import paths
from secex_firstboot.contract.boot_image import Arguments, Image, Images, Origin, State
from secex_firstboot.contract.partitions import VOLUMES
from secex_firstboot.roots import recovery, system_image
from secex_firstboot.roots.system_image import SystemImage
from secex_firstboot.running import kernels, trying, update
from secex_firstboot.sdboot import boot_record, contents, image
from secex_firstboot.storage import disk

RESTART = "12 reboot.target start waiting\n13 systemd-reboot.service start waiting\n"
POWER_OFF = "12 poweroff.target start waiting\n"


FILES_OF_OURS = {boot_record.IMAGE: boot_record.KEPT, boot_record.FALLBACK: boot_record.FALLBACK}
FILES = "linux /vmlinuz\ninitrd /initrd\n"


class Killed(BaseException):
    pass


class Machine:
    """A provisioned guest, and the machine below it. ``boot_map``: what each entry starts, and the entry that
    starts if nobody chooses; ``loadparm``: what the guest asks for at a restart, which stays until it asks
    for something else, or the power goes off."""

    def __init__(self, root: Path) -> None:
        self.root, self.se = root, root / "se"
        self.running = 0
        self.built: list[str] = []
        self.boot_map: tuple[dict[int, str], int] = ({1: "first boot's"}, 1)
        self.killed_at = ""
        self.said: list[str] = []
        self.jobs = ""
        self.unmounted = True

    @property
    def context(self) -> Context:
        mine = f"secex.generation={self.running}" if self.running else "ignition.firstboot"
        return Context(f"quiet {mine}", say=self.said.append)

    @property
    def images(self) -> Images:
        found = system_image.images(plain(self.root))
        assert found
        return found

    @property
    def loadparm(self) -> Path:
        return self.root / "sys/firmware/reipl/ccw/loadparm"

    def kill(self, at: str) -> None:
        if at == self.killed_at:
            self.killed_at = ""
            raise Killed

    def change(self, content: str) -> None:
        put(self.root / "boot/vmlinuz", content.encode())

    def update(self, *, again: bool = False) -> tuple[str, ...]:
        return update.in_system(self.context, plain(self.root), again=again)[0]

    def starts(self) -> int:
        """The number of the image that starts after power off and on; its system comes up."""
        images, default = self.boot_map
        return int(images[default].rpartition("=")[2])

    def boot(self, generation: int) -> None:
        """A start of this image, as the initramfs lets it, whose system does not come up."""
        assert generation in system_image.allowed(plain(self.root))
        self.running = generation
        if paths.below(self.root, paths.NOT_UP).exists():
            trying.at_boot(self.context, plain(self.root))

    def start(self, generation: int) -> None:
        """A start of this image, until the system is up."""
        self.boot(generation)
        if paths.below(self.root, paths.NOT_UP).exists():
            trying.at_start(self.context, plain(self.root))

    def power_on(self) -> None:
        """Whatever starts then."""
        self.loadparm.write_text("\n")
        self.start(self.starts())

    def restarts_into(self) -> int:
        """The number of the image that a restart starts, in order or not."""
        images, default = self.boot_map
        asked = self.loadparm.read_text().strip()
        return int(images[int(asked) if asked else default].rpartition("=")[2])

    def stop(self, jobs: str = RESTART) -> None:
        self.jobs = jobs
        trying.at_stop(self.context, plain(self.root))

    def images_are_of(self, release: str) -> None:
        newest = self.images.newest.model_copy(update={"kernel": release})
        system_image.record(plain(self.root), Images(newest=newest))

    def setting(self, word: str) -> None:
        put(self.root / "etc/secex-firstboot.conf", f"fallback={word}\n".encode())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in VOLUMES:
        put(tmp_path / f"etc/luks/{name}", b"header and key")
    put(tmp_path / "etc/crypttab", b"boot PARTUUID=2 - luks\nroot PARTUUID=3 - luks\n")
    put(tmp_path / "boot/vmlinuz", b"kernel")
    put(tmp_path / "boot/initrd", b"#!/bin/sh")
    put(tmp_path / "boot/loader/entries/a.conf", f"version 6.12\n{FILES}options quiet\n".encode())
    put(tmp_path / "sys/firmware/reipl/reipl_type", b"ccw\n")
    put(tmp_path / "sys/firmware/reipl/ccw/loadparm", b"")
    put(tmp_path / "sys/firmware/reipl/ccw/clear", b"0\n")
    put(tmp_path / "etc/se-hostkeys/ibm-z-hostkey-a", b"document")
    system_image.remember(
        plain(tmp_path), Arguments(), {}, {"ibm-z-hostkey-a": b"document"}, {}, {}, Origin(root_hashes={})
    )
    made = Machine(tmp_path)
    made.se.mkdir()

    @contextmanager
    def mounted(found: object, where: Path) -> Iterator[Path]:
        made.unmounted = False
        try:
            yield made.se
        finally:
            made.unmounted = True

    def build(
        context: Context, entry: object, se: Path, *, command_line: str, scratch: Path, **_: object
    ) -> None:
        made.kill("build")
        assert scratch.stat().st_mode & 0o777 == 0o700
        assert scratch.is_relative_to(made.root / "etc/luks")  # on root itself: nothing else is mounted there
        (scratch / "secret").write_bytes(b"key")
        made.built.append(command_line)
        (se / boot_record.NEW_IMAGE).write_text(command_line)
        made.kill("built")

    def install(
        se: Path, found: object, scratch: Path, *, fallback: str | None = None, default: int = 1
    ) -> None:
        made.kill("install")
        keep = (se / FILES_OF_OURS[fallback]).read_text() if fallback else None
        (se / boot_record.FALLBACK).unlink(missing_ok=True)
        (se / boot_record.NEW_IMAGE).replace(se / boot_record.IMAGE)
        if keep:
            (se / boot_record.FALLBACK).write_text(keep)
        zipl(default)
        made.kill("installed")

    def choose(se: Path, found: object, scratch: Path, default: int) -> None:
        made.kill("choose")
        (se / boot_record.IMAGE).unlink()
        (se / boot_record.IMAGE).hardlink_to(se / boot_record.KEPT)
        zipl(default)
        made.kill("chosen")

    def leave(se: Path, found: object, scratch: Path, name: str) -> None:
        made.kill("choose")
        kept = (se / FILES_OF_OURS[name]).read_text()
        for each in (boot_record.IMAGE, boot_record.FALLBACK):
            (se / each).unlink(missing_ok=True)
        (se / boot_record.IMAGE).write_text(kept)
        zipl(1)
        made.kill("chosen")

    def zipl(default: int) -> None:
        (made.se / boot_record.KEPT).unlink(missing_ok=True)
        (made.se / boot_record.KEPT).hardlink_to(made.se / boot_record.IMAGE)
        names = {1: made.se / boot_record.IMAGE, 2: made.se / boot_record.FALLBACK}
        made.boot_map = {number: path.read_text() for number, path in names.items() if path.exists()}, default
        assert default in made.boot_map[0]

    monkeypatch.setattr(disk, "find_disk", lambda: None)
    monkeypatch.setattr(boot_record, "current", lambda found: repr(made.boot_map).encode())
    monkeypatch.setattr(boot_record, "mounted", mounted)
    monkeypatch.setattr(boot_record, "settle", lambda se, found: None)
    monkeypatch.setattr(boot_record, "install", install)
    monkeypatch.setattr(boot_record, "choose", choose)
    monkeypatch.setattr(boot_record, "leave", leave)
    monkeypatch.setattr(contents, "build_sdboot", build)
    monkeypatch.setattr(image, "header_bytes", lambda path: b"SE header")
    monkeypatch.setattr(trying, "run", lambda argv: made.jobs)
    monkeypatch.setattr(update, "run", lambda argv: Path(argv[-1]).read_text())  # of lsinitrd
    made.update()  # as first boot does
    made.built.clear()
    return made


@pytest.fixture
def up(machine: Machine) -> Machine:
    """Its first image has come up."""
    machine.start(1)
    return machine


def test_with_nothing_changed_nothing_is_made(machine: Machine) -> None:
    assert machine.update() == ()
    assert machine.built == []


def test_what_has_changed_is_in_the_next_start_and_named_once(machine: Machine) -> None:
    put(machine.root / "boot/loader/entries/b.conf", f"{FILES}options loud\n".encode())
    assert machine.update() == ("command line",)
    assert "loud" in machine.boot_map[0][1]
    assert machine.update() == ()
    assert len(machine.built) == 1


def test_without_a_record_it_is_made_with_a_number_that_no_image_has(up: Machine) -> None:
    (up.root / "etc/luks/boot-image/images.json").unlink()
    assert len(up.update()) == 1
    assert up.update() == ()
    assert up.images.newest.generation == 2


def test_a_recovery_key_that_comes_or_goes_makes_an_image_and_its_message_is_left_before_it_starts(
    up: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[tuple[list[str], int]] = []

    def leave(context: Context, se: Path, found: object, image: SystemImage, made: Image) -> None:
        assert (se / boot_record.NEW_IMAGE).exists()  # it is not what starts yet
        left.append((list(image.recovery_keys), made.generation))

    monkeypatch.setattr(recovery, "leave", leave)
    key = up.root / "etc/se-hostkeys/recovery/owner.asc"
    for owner in recovery_keys.owner(monkeypatch):
        put(key, owner.key("owner"))
        assert up.update() == ("recovery key owner.asc",)
        assert up.update() == ()
        put(key, owner.expired("expired"))
        with pytest.raises(Refusal, match=r"gpg does not encrypt to owner\.asc"):
            up.update()
        key.unlink()
        assert up.update() == ("recovery key owner.asc",)
    assert left == [(["owner.asc"], 2), ([], 3)]


@pytest.mark.parametrize("at", ["build", "install", "installed"])
def test_killed_on_the_way_the_next_one_ends_well_and_no_secret_lies_about(up: Machine, at: str) -> None:
    up.change("newer")
    up.killed_at = at
    with pytest.raises(Killed):
        up.update()
    up.power_on()
    if at == "build":
        assert up.update() == ("kernel",)
    assert up.update() == ()
    assert "quiet" in up.boot_map[0][1]
    assert (up.running, up.starts(), up.images.newest.state) == (1, 1, State.NEW)
    assert up.boot_map[0][2].endswith("=1")
    assert not list(up.root.rglob("secret"))


@pytest.mark.parametrize("setting", ["try", "direct", "off"])
@pytest.mark.parametrize("started", [True, False])
def test_killed_behind_the_switch_whatever_starts_may_start_again(
    up: Machine, setting: str, *, started: bool
) -> None:
    """That the new one is there stands in no record."""
    confirm(up, "second")
    up.setting(setting)
    up.change("third")
    up.killed_at = "installed"
    with pytest.raises(Killed):
        up.update()
    up.setting("off")
    for _ in range(3):
        if started:
            up.power_on()
        else:
            up.boot(up.starts())
    up.update()
    assert up.starts() in system_image.allowed(plain(up.root)) == up.images.generations


def test_the_number_of_an_image_that_was_only_begun_is_that_of_no_other(up: Machine) -> None:
    """The host may have copied it."""
    up.change("vulnerable")
    up.killed_at = "built"
    with pytest.raises(Killed):
        up.update()
    up.change("mended")
    up.update()
    assert [line.rpartition("=")[2] for line in up.built] == ["2", "3"]
    assert system_image.allowed(plain(up.root)) == {1, 3}


def test_killed_between_two_files_of_the_record_the_next_start_puts_it_right(
    up: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirm(up, "second")
    saved = shutil.copytree(up.root, up.root.with_name("saved"), symlinks=True)
    for number in range(1, 100):
        shutil.rmtree(up.root)
        shutil.copytree(saved, up.root, symlinks=True)
        up.boot_map = {1: "secex.generation=2", 2: "secex.generation=1"}, 1
        up.setting("off")
        left = [number]

        def write(path: Path, content: bytes, left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise Killed
            write_private(path, content)

        with monkeypatch.context() as patched:
            patched.setattr(system_image, "write_private", write)
            try:
                up.update()
                break
            except Killed:
                pass
        up.power_on()
        assert system_image.allowed(plain(up.root)) == up.images.generations
        assert number == 1 or 1 not in up.images.generations  # the first one says that a start has to look
        assert not paths.below(up.root, paths.NOT_UP).exists() or not up.images.are_up
    assert number > 2


def test_a_mark_that_a_kill_has_left_goes(up: Machine) -> None:
    put(paths.below(up.root, paths.NOT_UP), b"")
    up.power_on()
    assert not paths.below(up.root, paths.NOT_UP).exists()


def test_what_is_undone_after_a_kill_behind_the_switch_is_undone_in_the_image(up: Machine) -> None:
    up.setting("off")
    before = (up.root / "boot/vmlinuz").read_bytes()
    up.change("newer")
    up.killed_at = "installed"
    with pytest.raises(Killed):
        up.update()
    put(up.root / "boot/vmlinuz", before)
    assert len(up.update()) == 1
    assert up.images.newest.generation == 3


@pytest.mark.parametrize("changed", [True, False])
def test_an_image_whose_deployment_is_gone_is_not_fallen_back_to(up: Machine, *, changed: bool) -> None:
    """ostree admin undeploy removes any but the one that runs."""
    confirm(up, "second")
    deployment = up.root / "ostree/deploy/os/deploy/c5.0"
    deployment.mkdir(parents=True)
    fallback = up.images.there[1].model_copy(update={"deployment": str(deployment.relative_to(up.root))})
    system_image.record(plain(up.root), up.images.model_copy(update={"fallback": fallback}))
    up.update()
    assert up.images.fallback == fallback
    deployment.rmdir()
    if changed:
        up.change("third")
    up.update()
    assert [each.generation for each in up.images.there] == ([3, 2] if changed else [2])
    assert system_image.allowed(plain(up.root)) == up.images.generations
    assert len(up.boot_map[0]) == len(up.images.there)


def test_two_at_once_wait_for_each_other(up: Machine) -> None:
    with (
        update.alone(plain(up.root)),
        (up.root / "run/secex-firstboot/update.lock").open("w") as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_it_leaves_nothing_mounted(
    up: Machine, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """In the middle of the build."""

    def build(*_: object, scratch: Path, **__: object) -> None:
        (scratch / "secret").write_bytes(b"key")
        signal.raise_signal(number)

    before = signal.signal(number, signal.SIG_DFL)  # nohup(1) would have it ignored
    try:
        monkeypatch.setattr(contents, "build_sdboot", build)
        up.change("newer")
        with pytest.raises(SystemExit, match=str(128 + number)):
            up.update()
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert up.unmounted
    assert not list(up.root.rglob("secret"))


def test_no_room_is_refused_before_anything_is_written(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.change("newer")
    monkeypatch.setattr(contents, "_ROOM", 1 << 60)
    with pytest.raises(Refusal, match="partition se is too small by"):
        machine.update()
    assert machine.built == []


@pytest.mark.parametrize("setting", ["try", "direct", "off"])
@pytest.mark.parametrize("failed", [False, True])
def test_for_want_of_room_the_image_that_is_not_the_last_good_one_goes_first(
    up: Machine, monkeypatch: pytest.MonkeyPatch, setting: str, *, failed: bool
) -> None:
    if failed:
        fail(up)
    else:
        confirm(up, "second")
    good = up.running
    up.setting(setting)

    def no_room_for_three(se: Path, *parts: object) -> None:
        if (se / boot_record.FALLBACK).exists():
            raise Refusal("", "partition se is too small")

    monkeypatch.setattr(contents, "check_room", no_room_for_three)
    up.change("third")
    up.killed_at = "build"
    with pytest.raises(Killed):
        up.update()
    assert up.starts() == good
    up.update()
    newest = up.images.newest.generation
    assert newest > 3  # 3 was begun
    assert up.images.generations == ({newest} if setting == "off" else {good, newest})
    assert up.starts() == (good if setting == "try" else newest)


@pytest.mark.parametrize("tried", [False, True])
def test_if_there_is_no_room_even_then_the_last_good_one_is_on_record_alone(
    up: Machine, monkeypatch: pytest.MonkeyPatch, *, tried: bool
) -> None:
    if tried:
        fail(up)
    else:
        up.change("newer")
        up.update()

    def no_room(*_: object) -> None:
        raise Refusal("", "partition se is too small")

    monkeypatch.setattr(contents, "check_room", no_room)
    up.change("too large")
    up.loadparm.write_text("2\n")
    with pytest.raises(Refusal):
        up.update()
    up.stop()
    assert (up.restarts_into(), up.images.generations, up.images.newest.state) == (1, {1}, State.UP)


@pytest.mark.parametrize("initramfs", [b"", b"another"])
def test_an_initramfs_without_the_agent_is_refused_before_anything_is_written(
    machine: Machine, initramfs: bytes
) -> None:
    put(machine.root / "boot/initrd", initramfs)
    with pytest.raises(Refusal, match="the initramfs of boot entry a has no secex-firstboot"):
        machine.update()
    assert machine.built == []


def test_a_system_that_first_boot_did_not_make_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="was not set up by secex-firstboot: it has no boot image to update"):
        update.in_system(Context(""), plain(tmp_path))


# --- trying ---


def confirm(machine: Machine, content: str) -> None:
    """An update that comes up."""
    machine.change(content)
    machine.update()
    machine.stop()
    machine.start(machine.images.newest.generation)


def test_first_boots_image_has_no_fallback_and_is_good_once_it_has_come_up(machine: Machine) -> None:
    machine.stop()
    assert machine.restarts_into() == 1
    machine.start(1)
    assert machine.images.newest.state is State.UP
    assert (machine.starts(), machine.images.fallback) == (1, None)


def test_first_boots_image_stays_for_the_operator_until_another_has_come_up(machine: Machine) -> None:
    """Nothing has come up yet. It has the kernel that runs, but so has first boot."""
    for number in (2, 3):
        machine.change(f"newer {number}")
        machine.update()
        assert (machine.starts(), system_image.allowed(plain(machine.root))) == (number, {1, number})
    machine.stop(POWER_OFF)
    machine.start(1)  # with loadparm=2
    assert (machine.starts(), machine.images.newest.state) == (1, State.FAILED)


@pytest.mark.parametrize("running", [1, 2])
def test_an_update_before_anything_has_come_up_keeps_what_runs(machine: Machine, running: int) -> None:
    """As by a unit of the config, which takes long, and that the system waits for."""
    if running == 2:
        machine.change("newer")
        machine.update()
        machine.stop()
    machine.boot(running)
    machine.change("newest")
    machine.update()
    assert machine.images.generations == {running, running + 1}
    assert machine.boot_map[0][2].endswith(f"={running}")
    machine.start(running)
    assert machine.starts() == running


def test_an_image_that_never_came_up_is_no_fallback(up: Machine) -> None:
    for number in (2, 3):
        up.change(f"newer {number}")
        up.update()
        assert (up.starts(), system_image.allowed(plain(up.root))) == (1, {1, number})


def test_the_image_that_the_operator_went_back_to_stays(up: Machine) -> None:
    confirm(up, "bad")
    up.start(1)  # with loadparm=2
    up.change("another")
    up.update()
    assert (up.starts(), up.images.generations) == (1, {1, 3})


def test_a_new_image_is_tried_at_the_restart_and_starts_once_it_has_come_up(up: Machine) -> None:
    up.change("newer")
    up.update()
    assert (up.starts(), system_image.allowed(plain(up.root))) == (1, {1, 2})
    up.stop()
    assert up.loadparm.read_text() == "1\n"
    assert up.loadparm.with_name("clear").read_text() == "1\n"
    up.start(2)
    assert (up.starts(), up.images.newest.state) == (2, State.UP)
    assert up.boot_map[0][2].endswith("=1")
    assert up.images.fallback and up.images.fallback.generation == 1


def test_what_changes_until_the_end_is_tried_as_well(up: Machine) -> None:
    up.change("newer")
    up.stop()
    assert len(up.built) == 1
    assert up.loadparm.read_text() == "1\n"


def test_the_next_one_has_the_one_before_it_to_fall_back_to_and_older_ones_may_not_start(up: Machine) -> None:
    confirm(up, "second")
    up.change("third")
    up.update()
    assert (up.starts(), up.images.generations, system_image.allowed(plain(up.root))) == (2, {2, 3}, {2, 3})


def test_one_that_does_not_come_up_is_said_and_not_tried_again(up: Machine) -> None:
    up.change("broken")
    up.update()
    up.stop()
    up.power_on()
    assert up.images.newest.state is State.FAILED
    assert "boot image 2 (kernel 6.12) was tried and did not come up" in up.said[-1]
    assert "did not come up" in (up.root / "run/motd.d/50-secex-firstboot").read_text()
    up.stop()
    assert up.restarts_into() == 1
    up.start(1)
    assert up.update() == ()
    assert (up.running, up.images.newest.state) == (1, State.FAILED)


def test_another_one_replaces_it_and_the_last_good_one_stays(up: Machine) -> None:
    fail(up)
    up.change("mended")
    up.update()
    assert (up.starts(), up.images.generations) == (1, {1, 3})
    up.stop()
    up.start(3)
    assert up.starts() == 3
    assert not (up.root / "run/motd.d/50-secex-firstboot").exists()


def test_it_is_tried_again_if_told_so(up: Machine) -> None:
    fail(up)
    assert up.update(again=True) == ()
    assert up.images.newest.state is State.NEW
    up.stop()
    up.start(2)
    assert up.starts() == 2


def fail(machine: Machine, started: int = 0) -> None:
    """An update that does not come up; another image starts, or the one that starts by itself."""
    machine.change("broken")
    machine.update()
    machine.stop()
    machine.loadparm.write_text("\n")  # power off and on
    machine.start(started or machine.starts())


def test_power_off_is_no_try(up: Machine) -> None:
    up.change("newer")
    up.stop(POWER_OFF)
    up.power_on()
    assert (up.running, up.images.newest.state) == (1, State.NEW)
    up.stop()
    assert up.loadparm.read_text() == "1\n"


def test_a_restart_before_it_has_come_up_goes_back(up: Machine) -> None:
    """Also one that a panic brings."""
    up.change("newer")
    up.update()
    up.stop()
    up.boot(2)
    assert up.restarts_into() == 1
    up.stop()
    assert up.restarts_into() == 1
    up.start(1)
    assert up.images.newest.state is State.FAILED


def test_with_one_image_nothing_is_asked_for(up: Machine) -> None:
    """Of what a start before has asked for: no entry of the boot map might have that number."""
    up.loadparm.write_text("2\n")
    up.setting("off")
    up.change("newer")
    up.update()
    assert up.restarts_into() == 2


def test_what_was_asked_for_is_asked_for_once(up: Machine) -> None:
    """A restart out of order, as after a panic, does not try what nobody has asked for."""
    confirm(up, "second")
    assert up.loadparm.read_text() == "\n"
    up.change("third")
    up.update()
    assert up.restarts_into() == 2


def test_the_host_may_start_what_is_to_be_tried_by_itself(up: Machine) -> None:
    up.change("newer")
    up.update()
    up.start(2)
    assert (up.starts(), up.images.newest.state) == (2, State.UP)


def test_a_machine_that_lets_no_guest_choose_is_named_and_nothing_counts_as_tried(up: Machine) -> None:
    up.change("newer")
    up.update()
    up.loadparm.unlink()
    up.loadparm.mkdir()
    with pytest.raises(Exception, match=r"does not let the guest choose .* set fallback=direct in"):
        up.stop()
    up.loadparm.rmdir()
    up.start(up.starts())
    assert (up.running, up.images.newest.state) == (1, State.NEW)


@pytest.mark.parametrize("at", ["choose", "chosen"])
def test_killed_while_it_becomes_the_one_that_starts_it_does_at_the_next_start(up: Machine, at: str) -> None:
    up.change("newer")
    up.update()
    up.stop()
    up.killed_at = at
    with pytest.raises(Killed):
        up.start(2)
    up.start(2)
    assert (up.starts(), up.images.newest.state) == (2, State.UP)


def test_an_image_that_the_host_has_exchanged_is_no_fallback(up: Machine) -> None:
    (up.se / boot_record.IMAGE).write_text("an older one")
    up.change("newer")
    up.update()
    assert up.boot_map[0].keys() == {1}
    assert up.images.fallback is None


def test_with_nothing_recorded_a_start_says_so(machine: Machine) -> None:
    (machine.root / "etc/luks/boot-image/images.json").unlink()
    machine.start(1)
    assert "there is no record of the boot images" in machine.said[-1]


# --- settings ---


def test_directly_the_new_one_starts_and_the_other_is_there(up: Machine) -> None:
    up.setting("direct")
    up.change("newer")
    up.update()
    assert (up.starts(), set(up.boot_map[0])) == (2, {1, 2})
    up.loadparm.unlink()
    up.loadparm.mkdir()  # a machine that lets no guest choose
    up.stop()
    up.loadparm.rmdir()
    up.start(2)
    assert (up.starts(), up.images.newest.state) == (2, State.UP)


def test_once_the_operator_had_to_choose_the_other_it_is_what_starts(up: Machine) -> None:
    up.setting("direct")
    fail(up, started=1)  # with loadparm=2
    assert (up.starts(), up.images.newest.state) == (1, State.FAILED)


@pytest.mark.parametrize("jobs", [RESTART, POWER_OFF])
def test_directly_it_does_not_matter_what_the_operator_had_chosen_before(up: Machine, jobs: str) -> None:
    """The new one was started, however the system ended, and the choice of the start before does not stay."""
    up.setting("direct")
    up.loadparm.write_text("2\n")
    up.change("newer")
    up.stop(jobs)
    assert up.images.newest.state is State.TRIED
    if jobs == RESTART:
        assert up.restarts_into() == 2
    up.start(1)  # with loadparm=2
    assert (up.starts(), up.images.newest.state) == (1, State.FAILED)


def test_without_a_fallback_the_older_image_may_not_start_any_more(up: Machine) -> None:
    up.setting("off")
    up.change("newer")
    up.update()
    assert up.boot_map[0].keys() == {1}
    assert system_image.allowed(plain(up.root)) == {2}


def test_a_fallback_that_is_not_wanted_any_more_goes_once_the_newest_is_up(up: Machine) -> None:
    up.change("second")
    up.update()
    up.setting("off")
    up.update()
    assert up.images.generations == {1, 2}
    up.stop()
    up.start(2)
    assert (set(up.boot_map[0]), system_image.allowed(plain(up.root))) == ({1}, {2})


def test_a_setting_that_makes_no_sense_is_refused_by_an_update_and_hinders_no_start(up: Machine) -> None:
    up.change("newer")
    up.update()
    up.stop()
    up.setting("maybe")
    with pytest.raises(Refusal, match="fallback has an unknown value"):
        up.update()
    up.start(2)
    assert up.images.newest.state is State.UP
    assert any("the setting stays as it was" in line for line in up.said)
    up.stop()
    assert any("the boot image stays as it is: " in line for line in up.said)


# --- kernels of packages ---


def install_kernel(machine: Machine, release: str) -> None:
    put(machine.root / f"boot/vmlinuz-{release}", release.encode())
    put(machine.root / f"boot/initrd.img-{release}", b"#!/bin/sh")


def entries(machine: Machine) -> list[str]:
    return sorted(path.name for path in (machine.root / "boot/loader/entries").iterdir())


def test_a_kernel_gets_an_entry_and_an_image_and_loses_both_with_its_package(up: Machine) -> None:
    for release in ("6.12.9-s390x", "7.2.1-s390x"):
        install_kernel(up, release)
        kernels.added(up.context, plain(up.root), release)
    assert entries(up) == ["a-6.12.9-s390x.conf", "a-7.2.1-s390x.conf", "a.conf"]
    entry = (up.root / "boot/loader/entries/a-7.2.1-s390x.conf").read_text()
    assert entry == (
        "title \nversion 7.2.1-s390x\nlinux /vmlinuz-7.2.1-s390x\ninitrd /initrd.img-7.2.1-s390x\n"
        "options quiet\n"
    )
    assert up.images.newest.kernel == "7.2.1-s390x"
    kernels.gone(up.context, plain(up.root), "7.2.1-s390x")
    assert entries(up) == ["a-6.12.9-s390x.conf", "a.conf"]
    assert up.images.newest.kernel == "6.12.9-s390x"


def test_an_entry_that_names_the_kernel_is_enough(up: Machine) -> None:
    install_kernel(up, "7.2")
    put(up.root / "boot/loader/entries/mine.conf", b"linux /boot/vmlinuz-7.2\ninitrd /initrd\noptions mine\n")
    kernels.added(up.context, plain(up.root), "7.2")
    assert entries(up) == ["a.conf", "mine.conf"]
    assert "mine" in up.boot_map[0][1]


def test_a_kernel_without_an_initramfs_is_refused(up: Machine) -> None:
    put(up.root / "boot/vmlinuz-7.2", b"")
    with pytest.raises(Refusal, match=r"boot/initrd.img-7.2 is not there: make it"):
        kernels.added(up.context, plain(up.root), "7.2")
    assert entries(up) == ["a.conf"]


def test_the_last_boot_entry_stays_and_with_it_its_options(up: Machine) -> None:
    """A package whose script goes wrong calls the hook for a kernel that is still needed."""
    put(up.root / "boot/loader/entries/a.conf", b"linux /vmlinuz-6.12\ninitrd /initrd\noptions quiet\n")
    install_kernel(up, "6.12")
    up.images_are_of("6.11")
    with pytest.raises(Refusal, match=r"no boot entry has another kernel than 6\.12"):
        kernels.check_may_go(up.context, plain(up.root), "6.12")
    (up.root / "boot/vmlinuz-6.12").unlink()  # all the same
    with pytest.raises(Refusal):
        kernels.gone(up.context, plain(up.root), "6.12")
    assert entries(up) == ["a.conf"]


def test_apt_removes_no_kernel_by_itself_that_a_boot_image_has(up: Machine) -> None:
    (up.root / "etc/apt/apt.conf.d").mkdir(parents=True)
    install_kernel(up, "7.2.1+x")
    kernels.added(up.context, plain(up.root), "7.2.1+x")
    said = (up.root / "etc/apt/apt.conf.d/95secex-firstboot").read_text()
    patterns = re.findall(r'^  "(.*)";$', said, re.MULTILINE)
    for package, stays in (
        ("linux-image-6.12", True),
        ("linux-modules-7.2.1+x", True),
        ("linux-image-6x12", False),
        ("linux-image-6.12.1", False),
    ):
        assert any(re.search(pattern, package) for pattern in patterns) is stays


def test_the_kernel_of_the_fallback_has_to_stay(up: Machine) -> None:
    install_kernel(up, "7.2")
    kernels.added(up.context, plain(up.root), "7.2")

    def may_go(release: str) -> bool:
        try:
            kernels.check_may_go(up.context, plain(up.root), release)
        except Refusal as refusal:
            assert f"kernel {release} is that of the boot image that runs, or to fall back to" in str(refusal)
            return False
        return True

    assert [may_go(release) for release in ("6.12", "7.2", "6.11")] == [False, True, True]
    up.stop()
    up.start(2)
    assert [may_go(release) for release in ("6.12", "7.2", "6.11")] == [False, False, True]
    put(up.root / "proc/sys/kernel/osrelease", b"6.11\n")
    assert not may_go("6.11")


def test_the_kernel_of_first_boot_has_to_stay_while_its_session_lasts(machine: Machine) -> None:
    with pytest.raises(Refusal, match="that runs, or to fall back to"):
        kernels.check_may_go(machine.context, plain(machine.root), "6.12")


@pytest.mark.parametrize("release", ["", "../x", "a/b", "-7", "7\n", "7 2"])
@pytest.mark.parametrize(
    "hook",
    [
        lambda up, release: kernels.added(up.context, plain(up.root), release),
        lambda up, release: kernels.check_may_go(up.context, plain(up.root), release),
        lambda up, release: kernels.gone(up.context, plain(up.root), release),
    ],
)
def test_what_is_no_release_is_refused(
    up: Machine, hook: Callable[[Machine, str], None], release: str
) -> None:
    with pytest.raises(Refusal, match="that is no release of a kernel"):
        hook(up, release)


def test_a_boot_map_with_one_image_is_made_anew_with_both_when_the_system_ends(up: Machine) -> None:
    """libostree's zipl has made it, of the image that was to be tried."""
    up.change("newer")
    up.update()
    ours = up.boot_map
    up.boot_map = {1: ours[0][1]}, 1
    assert up.update() == ()
    assert up.boot_map == ours
    up.boot_map = {1: ours[0][1]}, 1
    up.stop()
    assert (up.boot_map, up.restarts_into()) == (ours, 2)


# --- another's image in place of the newest, as of libostree with IBM's tool ---


def by_another(machine: Machine, number: int, *, over: bool = False) -> None:
    """With the number of the newest; ``over``: over its blocks, as pvimg --overwrite does it."""
    made = f"of another secex.generation={number}"
    if not over:
        (machine.se / boot_record.IMAGE).unlink()
    (machine.se / boot_record.IMAGE).write_text(made)
    machine.boot_map = {1: made}, 1


@pytest.mark.parametrize("over", [False, True])
def test_anothers_image_starts_and_the_next_is_ours(up: Machine, *, over: bool) -> None:
    confirm(up, "second")
    up.change("third")
    by_another(up, 2, over=over)
    up.power_on()
    assert up.running == 2
    up.stop()
    newest = up.images
    assert (newest.newest.generation, newest.newest.state) == (3, State.TRIED)
    assert newest.fallback and newest.fallback.generation == (1 if over else 2)
    assert up.restarts_into() == 3
    up.start(3)
    assert up.starts() == 3


def test_one_that_is_not_on_se_any_more_is_made_again_if_nothing_has_changed(up: Machine) -> None:
    by_another(up, 1, over=True)
    up.power_on()
    assert up.update() == (update._NEW,)
    assert up.images.newest.generation == 2


def test_one_that_is_kept_on_se_is_what_starts_again_if_nothing_has_changed(up: Machine) -> None:
    ours = up.boot_map
    by_another(up, 1)
    assert up.update() == ()
    assert up.boot_map == ours
