"""The power fails at any moment of a first boot, and the host loses what was not flushed: the next start ends
well all the same.

One first boot is recorded, write by write. From the record comes the disk that a cut at a chosen moment would
have left, with more or less of the unflushed writes lost; a guest started on it has to end fully provisioned.
On its way the power may fail again.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import pytest
from harness import console, firstboot, powercut, raw_disk, sample
from harness.guest import Network
from harness.powercut import Loss
from harness.recorded import PARTS, ROOT, FirstBoot

NUMBER = int(os.environ.get("POWER_CUTS", "0"))  # instead of those below: as many as asked, anywhere
SEED = int(os.environ["POWER_CUT_SEED"])  # see conftest.py
STEPS = ("personalise", "partition", "encrypt boot", "encrypt root", "mount", "files", "seal")


@dataclass(frozen=True)
class Cut:
    """Of the recorded first boot, in a step: at a share of its writes, at one drawn from the seed, or just
    when it has written the boot record; and what is lost of the writes that were not flushed."""

    step: str
    at: float | Literal["anywhere", "switch"]
    loss: Loss

    @property
    def is_committed(self) -> bool:
        switched = self.at == "switch" and self.loss in (Loss.NOTHING, Loss.EARLIER)
        return self.step != STEPS[0] or switched

    def __str__(self) -> str:
        at = f"at {self.at:.1%}" if isinstance(self.at, float) else self.at
        return f"{self.step} {at}, {self.loss} lost"


@dataclass(frozen=True)
class Again:
    """Of the start after a cut: soon after the agent has said ``line`` of a step, QEMU is killed."""

    step: str
    line: str
    loss: Loss

    def __str__(self) -> str:
        return f"then {self.step}, {self.loss} lost"


@dataclass(frozen=True)
class Case:
    first: Cut
    more: tuple[Again, ...] = ()

    @property
    def cuts(self) -> list[Cut | Again]:
        return [self.first, *self.more]

    def __str__(self) -> str:
        return " ".join(map(str, self.cuts))


# What the agent says in the middle of a step, or where it has no middle, at its beginning.
AMIDST = {
    "partition": console.step_begins("partition"),
    "encrypt boot": console.step_goes_on("encrypt boot"),
    "encrypt root": console.step_goes_on("encrypt root"),
    "mount": console.step_begins("mount"),
    "files": console.step_begins("files"),
    "seal": console.step_goes_on("build sdboot"),
}

# Every step that writes, and every moment between two. Most of a guest's time goes into its start and into
# the final sdboot, so several cuts share that. `make soak` draws more.
CHOSEN = [
    Case(
        Cut("personalise", 0.5, Loss.SOME),
        (
            Again("partition", console.step_begins("partition") + "remove", Loss.EVERYTHING),
            Again("encrypt boot", AMIDST["encrypt boot"], Loss.SOME),
        ),
    ),
    Case(
        Cut("personalise", "switch", Loss.EARLIER),
        (
            Again("encrypt root", console.step_begins("encrypt root"), Loss.NOTHING),
            Again("mount", AMIDST["mount"], Loss.EVERYTHING),
        ),
    ),
    Case(
        Cut("encrypt boot", 0.0, Loss.EVERYTHING),
        (
            Again("encrypt root", AMIDST["encrypt root"], Loss.EARLIER),
            Again("files", AMIDST["files"], Loss.SOME),
        ),
    ),
    Case(
        Cut("files", "anywhere", Loss.SOME),
        (Again("seal", AMIDST["seal"], Loss.EVERYTHING),),
    ),
    Case(Cut("seal", "switch", Loss.EARLIER)),
]
MOST_IN_A_ROW = 5


def in_steps(seed: int, number: int) -> Case:
    """One guest whose power is cut in as many steps; seeds in a row come round all of them, and lose
    something else in each."""
    losses = [list(Loss)[(seed + at) % len(Loss)] for at in range(len(STEPS))]
    first, *later = sample.in_turn(list(zip(STEPS, losses, strict=True)), number, seed)
    return Case(
        Cut(first[0], "anywhere", first[1]), tuple(Again(step, AMIDST[step], loss) for step, loss in later)
    )


CASES = [
    *sample.kind("cuts of a first boot", [in_steps(sample.seed(), 2)]),
    *(pytest.param(case, marks=pytest.mark.long) for case in CHOSEN),
]
MOST_SECONDS_LATER = 3.0  # than the line


def drawn(number: int) -> list[Case]:
    """As many cuts as asked, several of them of one guest."""
    random = Random(SEED)  # noqa: S311
    cases: list[Case] = []
    while (left := number - sum(len(case.cuts) for case in cases)) > 0:
        first = Cut(random.choice(STEPS), random.random(), random.choice(list(Loss)))
        later = [each for each in AMIDST.items() if STEPS.index(each[0]) > STEPS.index(first.step)]
        wanted = min(random.randrange(MOST_IN_A_ROW), len(later), left - 1)
        chosen = sorted(random.sample(later, wanted), key=later.index)
        cases.append(Case(first, tuple(Again(*each, random.choice(list(Loss))) for each in chosen)))
    return cases


def test_before_personalise_a_cut_finds_the_disk_untouched(first_boot: FirstBoot) -> None:
    begin, _ = first_boot.spans[STEPS[0]]
    assert [event for event in first_boot.events[:begin] if not event.flush] == []


def test_the_first_boot_whose_power_is_cut_wrote_in_every_step(first_boot: FirstBoot) -> None:
    assert all(begin < end for begin, end in (first_boot.spans[step] for step in STEPS))


@pytest.mark.parametrize("case", drawn(NUMBER) or CASES, ids=str)
def test_a_start_after_the_cut_ends_fully_provisioned(
    case: Case,
    first_boot: FirstBoot,
    network: Network,
    later_network: Network,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    random = Random(f"{SEED} {case}")  # noqa: S311
    disk = tmp_path / "disk.raw"
    for cut in case.cuts:
        record_property("power cut", f"{cut.step}, {cut.loss} lost")
    make(case.first, first_boot, disk, random)
    if case.first.is_committed:
        network = later_network  # what was merged before the cut counts
    for again in case.more:
        disk = cut_again(again, first_boot, network, disk, random)
    with first_boot.start(disk, tmp_path / "goes-on.log", network) as guest:
        found = firstboot.wait_for_manifest(guest)
        guest.kill()
    goes_on = re.search(
        console.step_begins("encrypt root"), guest.console
    )  # otherwise it started from the final sdboot
    differences = firstboot.differences(first_boot.provisioned, found, only=PARTS if goes_on else ROOT)
    assert differences["unexplained"] == []
    assert set(differences["Ignition"]) <= {firstboot.HAS_THE_TIME}
    assert found["./etc/crypttab"]["size"] == first_boot.provisioned["./etc/crypttab"]["size"]
    assert left_on_se(disk) >= {"sdboot", "bootmap"}
    if goes_on:
        assert left_on_se(disk) == {"sdboot", "sdboot.kept", "bootmap", "lost+found"}
        with first_boot.start(disk, tmp_path / "starts.log", network) as guest:
            guest.wait_for(console.LINUX, 300)
            assert "ignition.firstboot" not in guest.wait_for(console.COMMAND_LINE, 60)[1]
            guest.kill()
    disk.unlink()


def make(cut: Cut, first_boot: FirstBoot, disk: Path, random: Random) -> None:
    """The disk that the cut leaves."""
    begin, end = first_boot.spans[cut.step]
    if cut.at == "switch":
        at = first_boot.switch(cut.step)
    else:
        share = random.random() if cut.at == "anywhere" else cut.at
        at = begin + round(share * (end - begin))
    first_boot.recording.cut(first_boot.events[:at], disk, loss=cut.loss, seed=random.getrandbits(32))


def cut_again(again: Again, first_boot: FirstBoot, network: Network, disk: Path, random: Random) -> Path:
    """Start on this disk, cut the power there, and return the disk that this leaves."""
    left = disk.with_name(f"{disk.stem}-again.raw")
    with powercut.recorded(disk) as (served, recording):
        log = disk.with_name(f"{disk.stem}.console.log")
        with first_boot.start(disk, log, network, served) as guest:
            found = guest.wait_for(rf"{again.line}|{console.GAVE_UP}", firstboot.FIRST_BOOT_TIMEOUT)
            assert re.match(again.line, found[0])
            time.sleep(random.uniform(0, MOST_SECONDS_LATER))
            guest.kill()
    recording.cut(recording.events(), left, loss=again.loss, seed=random.getrandbits(32))
    for file in (disk, recording.before, recording.log):
        file.unlink()
    return left


def left_on_se(disk: Path) -> set[str]:
    answer = raw_disk.debugfs(disk, "se", "ls -p /").splitlines()
    return {line.split("/")[5] for line in answer if line.startswith("/")} - {".", ".."}
