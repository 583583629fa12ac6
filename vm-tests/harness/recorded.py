"""One first boot, recorded write by write, from which many guests start; made once for a test run."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from harness import debian, firstboot, powercut, started
from harness.guest import Disk, Guest, Saved
from harness.powercut import Event, Loss, Recording
from harness.se_image import OFFLINE, SMALL
from harness.site import Host
from harness.started import Started

ROOT = SMALL.root_content or ()
PARTS = (*ROOT, "./boot")
_DISK_SIZE = 1 << 30

Span = tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """A host that can open any sdboot of this site, and the user's config."""

    directory: Path
    hosts: dict[str, Host]
    config_disk: Path

    def start(self, disk: Disk, log: Path, saved: Saved | None = None, **options: Any) -> Guest:
        return Guest(
            disks=[disk, Disk(self.config_disk, "ignition_crypted", format="raw")],
            host_keys=[self.hosts[name].key for name in ("universal", "customer-1")],
            console_log=log,
            memory_mib=1024,
            saved=saved,
            **options,
        )


@dataclass(frozen=True)
class FirstBoot:
    """``spans`` are the events of each step: from, to. ``provisioned`` lists every file it ended with."""

    where: Machine
    recording: Recording
    spans: dict[str, Span]
    provisioned: dict[str, dict[str, Any]]
    kept: list[Started]

    @cached_property
    def events(self) -> list[Event]:
        return self.recording.events()

    def switch(self, step: str) -> int:
        """How many events there are when the step has just written the boot record."""
        begin, end = self.spans[step]
        writes = [at for at in range(begin, end) if not self.events[at].flush]
        return max(at for at in writes if self.events[at].position == 0) + 1

    def start(self, file: Path, log: Path, disk: Disk | None = None) -> Guest:
        """On the raw ``file``, or the disk that it is behind."""
        disk = disk or Disk(file, "system", format="raw")
        return self.where.start(disk, log, started.find(file, self.kept))


def first_boot(factory: pytest.TempPathFactory) -> FirstBoot:
    """The record of this test run; the first process that asks makes it."""
    base = factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "recorded"
    made = directory / "made"
    with debian.locked("recorded"):
        if not made.exists():
            shutil.rmtree(directory, ignore_errors=True)  # of one that failed
            made.write_bytes(pickle.dumps(_record(directory)))
    found = pickle.loads(made.read_bytes())  # noqa: S301 - our own
    assert isinstance(found, FirstBoot)
    return found


def _record(directory: Path) -> FirstBoot:
    with firstboot.make_site(directory, OFFLINE, configure=firstboot.files_config) as (site, _):
        where = Machine(directory, site.hosts, site.config_disk)  # nothing has to be served
    disk, committed = directory / "disk.raw", directory / "committed.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", site.image, disk], check=True)
    os.truncate(disk, _DISK_SIZE)
    with powercut.recorded(disk) as (served, recording):
        image = started.keep(disk, where.start(served, directory / "image.log"), directory / "image")
        marks, provisioned = _run(where, served, recording, image)
    built = firstboot.manifest_of(site.tree, PARTS)
    assert firstboot.differences(built, provisioned, only=PARTS)["unexplained"] == []
    spans = _spans(recording, marks)
    recording.cut(recording.events()[: spans["personalise"][1]], committed, loss=Loss.NOTHING, seed=0)
    starting = where.start(Disk(committed, "system", format="raw"), directory / "personalised.log")
    personalised = started.keep(committed, starting, directory / "personalised")
    return FirstBoot(where, recording, spans, provisioned, [image, personalised])


def _run(
    where: Machine, disk: Disk, recording: Recording, image: Started
) -> tuple[dict[str, list[int]], dict[str, dict[str, Any]]]:
    """The sizes of the log when the agent said something of a step, and what the guest ended with."""
    marks: dict[str, list[int]] = {}

    def mark(line: str) -> None:
        if found := re.search(r"secex-firstboot\[\d+\]: \[\d+/\d+\] ([a-z ]+): ", line):
            marks.setdefault(found[1], []).append(recording.log.stat().st_size)

    with where.start(disk, where.directory / "first-boot.log", image.saved, on_line=mark) as guest:
        provisioned = firstboot.wait_for_manifest(guest)
        guest.kill()
    return marks, provisioned


def _spans(recording: Recording, marks: dict[str, list[int]]) -> dict[str, Span]:
    """Between encrypt root and files, systemd mounts and Ignition writes: that is called mount."""
    events = recording.events()
    spans = {
        step: (recording.event_at(events, sizes[0]), recording.event_at(events, sizes[-1]))
        for step, sizes in marks.items()
    }
    return spans | {"mount": (spans["encrypt root"][1], spans["files"][0])}
