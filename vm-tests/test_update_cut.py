"""The power fails while the running system makes a new boot image, or the host changes what is on ``se``.

The update is that of the main job's second boot, recorded write by write: the disk that a cut at any moment
of it leaves starts from the last good image. The new one of that update is made to panic, so what starts of
it is looked at no further than its command line.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random

import demo
import pytest
from harness import (
    console,
    debian,
    firstboot,
    owners_volume,
    powercut,
    raw_disk,
    sample,
    secrets_scan,
    site,
    tamper,
    ultravisor,
)
from harness.guest import Disk, Guest, GuestError, Network
from harness.powercut import Event, Loss, Recording
from harness.site import Host

from secex_firstboot.contract.parameters import GENERATION
from secex_firstboot.sdboot import boot_record

OLDER, GOOD, NEW = 1, 2, 3  # numbers of the boot images, see demo.run
FILES = {GOOD: boot_record.FALLBACK, NEW: boot_record.IMAGE}
ROOT_IS_LOOKED_AT = "Finished .*check the root file system"
NUMBER = int(os.environ.get("POWER_CUTS", "0"))  # instead of those below: as many as asked, anywhere
SEED = int(os.environ["POWER_CUT_SEED"])  # see conftest.py
IN_ALL = 24
SWITCHED = "switched"


@dataclass(frozen=True)
class Update:
    """``recording`` of the boot in which it was made, ``span`` of its events: from, to."""

    directory: Path
    recording: Recording

    @cached_property
    def events(self) -> list[Event]:
        return self.recording.events()

    @cached_property
    def span(self) -> tuple[int, int]:
        report = json.loads((self.directory / "report.json").read_text())
        begin, end = (self.recording.event_at(self.events, size) for size in report["broken update"]["log"])
        return begin, end

    @property
    def written(self) -> int:
        """How many bytes."""
        begin, end = self.span
        return sum(event.length for event in self.events[begin:end])

    @property
    def switch(self) -> int:
        """How many events there are when it has just written the boot record."""
        begin, end = self.span
        records = [at for at in range(begin, end) if self._is_boot_record(self.events[at])]
        assert len(records) == 1
        return records[0] + 1

    def _is_boot_record(self, event: Event) -> bool:
        return not event.flush and event.position == 0

    @property
    def identity(self) -> Path:
        return site.make_ssh_identity(self.directory)

    @property
    def host(self) -> Host:
        return Host("customer-1", self.directory / "hostkeys")

    def start(self, disk: Path, loadparm: str = "", served: Disk | None = None) -> Guest:
        system = served or Disk(disk, "system", format="raw", loadparm=loadparm)
        data = replace(owners_volume.disk(self.directory), snapshot=True)
        log = disk.with_suffix(".console.log")
        return Guest(disks=[system, data], host_keys=[self.host.key], network=Network(), console_log=log)

    def cut(self, at: int, disk: Path, loss: Loss = Loss.NOTHING, seed: int = 0) -> None:
        self.recording.cut(self.events[:at], disk, loss=loss, seed=seed)

    def done(self, disk: Path) -> None:
        """As it is once the newest image is there, and was tried."""
        self.cut(len(self.events), disk)
        raw_disk.replay_journal(disk, "se")


@pytest.fixture(scope="session")
def update(main_job: Path) -> Update:
    return Update(main_job, Recording(main_job / "disk.before", main_job / "disk.log"))


@dataclass(frozen=True)
class Cut:
    """At a moment that the seed draws, of one of so many parts of the update's writes; or just behind the
    switch."""

    part: int | str
    loss: Loss
    parts: int = IN_ALL

    def __str__(self) -> str:
        where = self.part if self.part == SWITCHED else f"in part {self.part} of {self.parts}"
        return f"{where}, {self.loss} lost"


def cuts(number: int) -> list[Cut]:
    return [Cut(part, list(Loss)[part % len(Loss)], number) for part in range(number)]


CASES = [*sample.kind("cuts of an update", cuts(IN_ALL), 5), Cut(SWITCHED, Loss.EARLIER)]


def generation(guest: Guest) -> int:
    """The number of the image that has started."""
    return generation_of(guest.wait_for(console.COMMAND_LINE, firstboot.BOOT_TIMEOUT)[1].split())


def generation_of(words: list[str]) -> int:
    (number,) = (word.partition("=")[2] for word in words if word.startswith(f"{GENERATION.name}="))
    return int(number)


def comes_up_to_its_root(guest: Guest) -> None:
    found = guest.wait_for(f"{ROOT_IS_LOOKED_AT}|{console.GAVE_UP}", firstboot.BOOT_TIMEOUT)
    assert found[0].startswith("Finished")
    guest.kill()


@pytest.mark.parametrize("cut", cuts(NUMBER) or CASES, ids=str)
def test_after_a_cut_of_an_update_the_last_good_image_starts(
    cut: Cut, update: Update, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("power cut", f"update, {cut.loss} lost")
    random = Random(f"{SEED} {cut}")  # noqa: S311
    disk = make(cut, update, tmp_path / "disk.raw", random)
    with update.start(disk) as guest:
        assert generation(guest) == GOOD
        comes_up_to_its_root(guest)
    if cut.part == SWITCHED:
        with update.start(disk, loadparm=str(boot_record.IMAGE_ENTRY)) as guest:
            assert generation(guest) == NEW
            guest.kill()
    disk.unlink()


def make(cut: Cut, update: Update, disk: Path, random: Random) -> Path:
    """The disk that the cut leaves."""
    begin, end = update.span
    if isinstance(cut.part, int):
        at = begin + round((cut.part + random.random()) * (end - begin) / cut.parts)
    else:
        at = update.switch
    update.cut(at, disk, cut.loss, random.getrandbits(32))
    return disk


@pytest.mark.long
def test_after_cuts_in_a_row_an_update_is_made_and_every_file_is_as_it_should_be(
    update: Update, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The last of them while the system that has come up makes its image the one that starts."""
    *losses, confirming = Loss.SOME, Loss.EARLIER, Loss.EVERYTHING, Loss.SOME
    for loss in (*losses, confirming):
        record_property("power cut", f"update, one of several, {loss} lost")
    random = Random(f"{SEED} in a row")  # noqa: S311
    disk = make(Cut(0, losses[0], 1), update, tmp_path / "disk.raw", random)
    for number, loss in enumerate(losses[1:], start=1):
        with cut_again(disk, loss, random) as served, update.start(disk, served=served) as guest:
            assert generation(guest) == GOOD
            change(guest, update, number)
            end = guest.written()[0] + random.random() * update.written
            while guest.written()[0] < end:
                time.sleep(0.1)
            guest.kill()
    with cut_again(disk, confirming, random) as served, update.start(disk, served=served) as guest:
        assert generation(guest) == GOOD
        tried = update_and_restart(guest, update, len(losses))
        guest.wait_for(console.SYSTEM_IS_UP, firstboot.BOOT_TIMEOUT)
        time.sleep(random.uniform(0, MOST_SECONDS_TO_CONFIRM))
        guest.kill()
    with update.start(disk) as guest:
        assert generation(guest) in (GOOD, tried)
        assert update_and_restart(guest, update, len(losses) + 1) > tried
        firstboot.wait_for_system(guest, firstboot.BOOT_TIMEOUT)
        found = firstboot.manifest_in(guest, update.identity)
    differences = firstboot.differences(
        firstboot.manifest_of(debian.build()), found, only=["./usr", "./boot"]
    )
    assert set(differences["unexplained"]) == {GENERATOR}
    disk.unlink()


MOST_SECONDS_TO_CONFIRM = 15.0
GENERATOR = "./usr/lib/systemd/system-generators/systemd-debug-generator"  # see demo.spoil


def shell(guest: Guest, update: Update, command: str) -> str:
    done = guest.ssh(command, update.identity, timeout=firstboot.FIRST_BOOT_TIMEOUT)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


def change(guest: Guest, update: Update, number: int) -> str:
    """Another argument in the boot entry, which is returned; an update follows by itself."""
    firstboot.wait_for_system(guest, firstboot.BOOT_TIMEOUT)
    argument = f"secex-test.cut={number}"
    others = f"{demo.BROKEN}|secex-test.cut=[0-9]*"
    entry = "/boot/loader/entries/*.conf"
    shell(guest, update, f"sed -E -i 's# ({others})##; s#^options .*#& {argument}#' {entry}; sync {entry}")
    return argument


def update_and_restart(guest: Guest, update: Update, number: int) -> int:
    """With an argument more; the number of the image that starts with it."""
    argument = change(guest, update, number)
    shell(guest, update, "secex update")
    shell(guest, update, "systemctl --no-block reboot")
    words = guest.wait_for(console.COMMAND_LINE, firstboot.BOOT_TIMEOUT)[1].split()
    assert argument in words
    return generation_of(words)


@contextmanager
def cut_again(disk: Path, loss: Loss, random: Random) -> Iterator[Disk]:
    """For a guest that is killed inside the ``with`` block; afterwards the disk is what the cut leaves."""
    left = disk.with_name("left.raw")
    with powercut.recorded(disk) as (served, recording):
        yield served
    recording.cut(recording.events(), left, loss=loss, seed=random.getrandbits(32))
    left.replace(disk)
    for file in (recording.before, recording.log):
        file.unlink()


# --- the host changes what is on se ------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A bit of one of the two images, or of the boot map where it names that; then the machine starts
    ``loadparm``. ``ends``: the number of the image that comes up to its root, or how the guest ends."""

    image: int
    in_boot_map: bool
    loadparm: str
    ends: int | str

    def __str__(self) -> str:
        where = "boot map, for" if self.in_boot_map else "content of"
        image = {GOOD: "the last good image", NEW: "the newest image"}[self.image]
        return f"{where} {image}, {f'loadparm={self.loadparm}' if self.loadparm else 'no loadparm'}"

    def make(self, disk: Path) -> None:
        if self.in_boot_map:
            at = tamper.in_boot_map(disk, FILES[self.image])
        else:
            blocks = raw_disk.blocks(disk, "se", f"/{FILES[self.image]}")
            at = raw_disk.address(disk, "se", f"/{FILES[self.image]}", len(blocks) // 2 * raw_disk.BLOCK)
        raw_disk.flip(disk, at)


REFUSED, NOTHING = "refused", "nothing starts"
NEWEST = str(boot_record.IMAGE_ENTRY)
CHANGES = [
    Change(image=GOOD, in_boot_map=False, loadparm="", ends=REFUSED),
    Change(image=GOOD, in_boot_map=False, loadparm=NEWEST, ends=NEW),
    Change(image=NEW, in_boot_map=False, loadparm="", ends=GOOD),
    Change(image=NEW, in_boot_map=False, loadparm=NEWEST, ends=REFUSED),
    Change(image=GOOD, in_boot_map=True, loadparm="", ends=NOTHING),
    Change(image=NEW, in_boot_map=True, loadparm="", ends=GOOD),
    Change(image=NEW, in_boot_map=True, loadparm=NEWEST, ends=NOTHING),
]


@pytest.mark.parametrize("change", sample.kind("changes beside a fallback", CHANGES))
def test_a_changed_image_does_not_start_and_the_other_one_does(
    change: Change, update: Update, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    disk = tmp_path / "disk.raw"
    update.done(disk)
    change.make(disk)
    with update.start(disk, change.loadparm) as guest:
        ended = what_starts(guest)
        record_property("tampering", f"updated: {change}: {ended}")
        assert ended == change.ends
        if ended == GOOD:
            comes_up_to_its_root(guest)
        guest.kill()
    disk.unlink()


def what_starts(guest: Guest) -> int | str:
    try:
        guest.wait_for(console.LINUX, tamper.START_BOUND)
    except GuestError:
        return REFUSED if guest.refusal else NOTHING
    return generation(guest)


def test_an_older_boot_image_that_the_host_puts_back_is_refused(update: Update, tmp_path: Path) -> None:
    """Boot record and partition se, from a snapshot of the disk before first boot's system was updated."""
    older = raw_disk.convert(update.directory / "disk.qcow2", tmp_path / "older.raw")
    disk = tmp_path / "disk.raw"
    update.done(disk)
    start, size = raw_disk.partition(older, "se")
    with older.open("rb") as source, disk.open("r+b") as target:
        for place, length in ((0, boot_record.PROGRAM), (start, size)):
            source.seek(place)
            target.seek(place)
            target.write(source.read(length))
    older.unlink()
    with update.start(disk) as guest:
        assert generation(guest) == OLDER
        guest.wait_for(
            console.agent_says(f"this boot image has the number {OLDER}, and .* is for {NEW} {GOOD}: "),
            firstboot.BOOT_TIMEOUT,
        )
        assert guest.wait(firstboot.BOOT_TIMEOUT) == "guest-shutdown"
        assert console.CLEAN in guest.console
    disk.unlink()


def test_an_update_lets_no_secret_out(update: Update, tmp_path: Path) -> None:
    """Not to the disk, whose every write is in the log; not to the console or the network."""
    disk, sdboot = tmp_path / "disk.raw", tmp_path / "sdboot"
    update.done(disk)
    raw_disk.debugfs(disk, "se", f"dump /{boot_record.IMAGE} {sdboot}")
    disk.unlink()
    ramdisk = ultravisor.unpack(sdboot.read_bytes(), update.host.key).ramdisk
    files = firstboot.overlay_files(ramdisk, debian.initramfs(debian.build()), tmp_path)
    scanner = secrets_scan.Scanner(secrets_scan.of_volumes(files, tmp_path))
    assert scanner.found(ramdisk)  # they would be found
    log = update.directory / "console-2.log"
    for file in (update.recording.log, log, log.with_suffix(".pcap")):
        assert scanner.found_in_file(file) == [], file
