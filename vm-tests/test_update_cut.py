"""The power fails while the running system makes a new boot image, or the host puts an older one back.

The update is that of the main job's second boot, recorded write by write: the disk that a cut at any moment
of it leaves starts from the last good image. The new one of that update is made to panic, so what starts of
it is looked at no further than its command line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import pytest
from harness import console, firstboot, raw_disk, sample
from harness.guest import Disk, Guest
from harness.powercut import Event, Loss, Recording
from harness.site import Host

from secex_firstboot.contract.parameters import GENERATION
from secex_firstboot.sdboot import boot_record

OLDER, GOOD, NEW = 1, 2, 3  # numbers of the boot images, see demo.run
ROOT_IS_LOOKED_AT = "Finished .*check the root file system"
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
    def switch(self) -> int:
        """How many events there are when it has just written the boot record."""
        begin, end = self.span
        records = [at for at in range(begin, end) if self._is_boot_record(self.events[at])]
        assert len(records) == 1
        return records[0] + 1

    def _is_boot_record(self, event: Event) -> bool:
        return not event.flush and event.position == 0

    def start(self, disk: Path, loadparm: str = "") -> Guest:
        system = Disk(disk, "system", format="raw", loadparm=loadparm)
        keys = [Host("customer-1", self.directory / "hostkeys").key]
        return Guest(disks=[system], host_keys=keys, console_log=disk.with_suffix(".console.log"))


@pytest.fixture(scope="session")
def update(main_job: Path) -> Update:
    return Update(main_job, Recording(main_job / "disk.before", main_job / "disk.log"))


@dataclass(frozen=True)
class Cut:
    """At a moment of this part of the update's writes that the seed draws; or just behind the switch."""

    part: int | str
    loss: Loss

    def __str__(self) -> str:
        where = self.part if self.part == SWITCHED else f"in part {self.part} of {IN_ALL}"
        return f"{where}, {self.loss} lost"


CUTS = [Cut(part, list(Loss)[part % len(Loss)]) for part in range(IN_ALL)]
CASES = [*sample.kind("cuts of an update", CUTS, 5), Cut(SWITCHED, Loss.EARLIER)]


def generation(guest: Guest) -> int:
    """The number of the image that has started."""
    words = guest.wait_for(console.COMMAND_LINE, firstboot.BOOT_TIMEOUT)[1].split()
    (number,) = (word.partition("=")[2] for word in words if word.startswith(f"{GENERATION.name}="))
    return int(number)


def comes_up_to_its_root(guest: Guest) -> None:
    found = guest.wait_for(f"{ROOT_IS_LOOKED_AT}|{console.GAVE_UP}", firstboot.BOOT_TIMEOUT)
    assert found[0].startswith("Finished")
    guest.kill()


@pytest.mark.parametrize("cut", CASES, ids=str)
def test_after_a_cut_of_an_update_the_last_good_image_starts(
    cut: Cut, update: Update, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("power cut", f"update, {cut.loss} lost")
    random = Random(f"{SEED} {cut}")  # noqa: S311
    begin, end = update.span
    if isinstance(cut.part, int):
        at = begin + round((cut.part + random.random()) * (end - begin) / IN_ALL)
    else:
        at = update.switch
    disk = tmp_path / "disk.raw"
    update.recording.cut(update.events[:at], disk, loss=cut.loss, seed=random.getrandbits(32))
    with update.start(disk) as guest:
        assert generation(guest) == GOOD
        comes_up_to_its_root(guest)
    if cut.part == SWITCHED:
        with update.start(disk, loadparm=str(boot_record.IMAGE_ENTRY)) as guest:
            assert generation(guest) == NEW
            guest.kill()
    disk.unlink()


def test_an_older_boot_image_that_the_host_puts_back_is_refused(update: Update, tmp_path: Path) -> None:
    """Boot record and partition se, from a snapshot of the disk before first boot's system was updated."""
    older = raw_disk.convert(update.directory / "disk.qcow2", tmp_path / "older.raw")
    disk = tmp_path / "disk.raw"
    update.recording.cut(update.events, disk, loss=Loss.NOTHING, seed=0)
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
