"""The power fails at any moment of a first boot, and the host loses what was not flushed: the next start ends
well all the same.

One first boot is recorded, write by write. From the record comes the disk that a cut at a chosen moment would
have left, with more or less of the unflushed writes lost; a guest started on it has to end fully provisioned.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from harness import firstboot, powercut
from harness.firstboot import Site
from harness.guest import Disk, Guest
from harness.powercut import Event, Loss, Recording
from harness.se_image import OFFLINE, SMALL

NUMBER = int(os.environ.get("POWER_CUTS", "0"))  # instead of those below: as many as asked, anywhere
SEED = int(os.environ.get("POWER_CUT_SEED", secrets.randbits(32)))
ROOT = SMALL.root_content or ()
PARTS = (*ROOT, "./boot")
STEPS = ("personalise", "partition", "encrypt boot", "encrypt root", "seal")


@dataclass(frozen=True)
class FirstBoot:
    """A first boot that was recorded; ``spans`` are the events of each step: from, to."""

    where: Site
    recording: Recording
    events: list[Event]
    spans: dict[str, tuple[int, int]]
    built: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def first_boot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirstBoot]:
    directory = tmp_path_factory.mktemp("power-cut")
    with firstboot.make_site(directory, OFFLINE, configure=firstboot.files_config) as (where, _):
        disk = directory / "disk.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", where.image, disk], check=True)
        os.truncate(disk, 1 << 30)
        marks: dict[str, list[int]] = {}
        with powercut.recorded(disk) as (served, recording):

            def mark(line: str) -> None:
                for step in STEPS:
                    if f"] {step}: " in line:
                        marks.setdefault(step, []).append(recording.log.stat().st_size)

            with start(where, served, directory / "console.log", "universal", on_line=mark) as guest:
                firstboot.wait_for_manifest(guest)
                guest.kill()
        events = recording.events()
        spans = {
            step: (recording.event_at(events, sizes[0]), recording.event_at(events, sizes[-1]))
            for step, sizes in marks.items()
        }
        built = firstboot.manifest_of(where.tree, PARTS)
        yield FirstBoot(where, recording, events, spans, built)


def start(where: Site, disk: Disk, log: Path, *hosts: str, **options: Any) -> Guest:
    """A guest on a machine that has the keys of these hosts."""
    return Guest(
        disks=[disk, Disk(where.config_disk, "ignition_crypted", format="raw")],
        host_keys=[where.hosts[name].key for name in hosts],
        console_log=log,
        memory_mib=1024,
        **options,
    )


@dataclass(frozen=True)
class Cut:
    """At ``share`` of a step's writes; what ``loss`` takes of those not flushed."""

    step: str
    share: float | None  # None: drawn from the seed
    loss: Loss

    def __str__(self) -> str:
        where = "somewhere" if self.share is None else f"{self.share:.1%}"
        return f"{self.step} {where}, {self.loss} lost"


# A start on the disk that a cut leaves takes minutes under emulation: few are here, `make soak` draws many.
CUTS = [
    Cut("personalise", 0.98, Loss.EVERYTHING),
    Cut("partition", 0.5, Loss.SOME),
    Cut("encrypt root", None, Loss.SOME),
    Cut("seal", None, Loss.SOME),
]


def drawn(number: int) -> list[Cut]:
    random = Random(SEED)  # noqa: S311
    return [Cut(random.choice(STEPS), random.random(), random.choice(list(Loss))) for _ in range(number)]


@pytest.mark.parametrize("cut", drawn(NUMBER) or CUTS, ids=str)
def test_a_start_after_the_cut_ends_fully_provisioned(
    cut: Cut, first_boot: FirstBoot, tmp_path: Path
) -> None:
    print(f"POWER_CUT_SEED={SEED}")
    random = Random(f"{SEED} {cut}")  # noqa: S311
    begin, end = first_boot.spans[cut.step]
    share = random.random() if cut.share is None else cut.share
    at = begin + round(share * (end - begin))
    disk = tmp_path / "disk.raw"
    first_boot.recording.cut(first_boot.events[:at], disk, loss=cut.loss, seed=random.getrandbits(32))
    where, served = first_boot.where, Disk(disk, "system", format="raw")
    with start(where, served, tmp_path / "goes-on.log", "universal", "customer-1") as guest:
        found = firstboot.wait_for_manifest(guest)
        guest.kill()
    goes_on = "] encrypt root: " in guest.console  # otherwise it started from the final sdboot
    differences = firstboot.differences(first_boot.built, found, only=PARTS if goes_on else ROOT)
    assert differences["unexplained"] == []
    assert found["./etc/user-file"]["size"] == len("from the user\n")
    assert left_on_se(disk) >= {"sdboot", "bootmap"}
    if goes_on:
        assert left_on_se(disk) == {"sdboot", "bootmap", "lost+found"}
        with start(where, served, tmp_path / "starts.log", "customer-1") as guest:
            guest.wait_for(r"Linux version", 300)
            assert "ignition.firstboot" not in guest.wait_for(r"Kernel command line: (.*)", 60)[1]
            guest.kill()
    disk.unlink()


def left_on_se(disk: Path) -> set[str]:
    listing = subprocess.run(
        ["debugfs", "-R", "ls -p /", f"{disk}?offset={firstboot.partition_start(disk, 'se')}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return {line.split("/")[5] for line in listing.splitlines() if line} - {".", ".."}
