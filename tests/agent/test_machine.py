from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from support import plain

from secex_firstboot.agent import machine, places, volumes
from secex_firstboot.agent.report import Report
from secex_firstboot.agent.step import Context, Stage, Status, Step, done, ready, waiting
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.contract import paths
from secex_firstboot.contract.report import StepReport


class Fake(Step):
    """A step that is done once performed, unless told otherwise."""

    summary = "for tests"

    def __init__(
        self,
        name: str,
        stage: Stage = Stage.PROVISION,
        *,
        status: Status | None = None,
        refuses: bool = False,
        works: bool = True,
        breaks: bool = False,
        error: BaseException | None = None,
    ) -> None:
        self.name, self.stage, self.status = name, stage, status or ready("to do")
        self.refuses, self.works = refuses, works
        self.error = FirstbootError("SX-TEST-01", f"{name} broke") if breaks else error
        self.performed = 0

    def observe(self, context: Context) -> Status:
        if self.refuses:
            raise Refusal("SX-TEST-01", f"{self.name} refuses", "mend it")
        return self.status

    def perform(self, context: Context) -> None:
        self.performed += 1
        if self.error:
            raise self.error
        if self.works:
            self.status = done("as it should be")


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(places, "RUNTIME", tmp_path / "run")
    monkeypatch.setattr(places, "REPORT", tmp_path / "run" / "report.json")
    monkeypatch.setattr(places, "SYSROOT", tmp_path / "sysroot")
    return tmp_path / "run"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def context(said: list[str]) -> Context:
    return Context("", say=said.append)


def with_steps(monkeypatch: pytest.MonkeyPatch, *steps: Fake) -> tuple[Fake, ...]:
    monkeypatch.setattr(machine, "STEPS", steps)
    return steps


def test_only_the_steps_of_the_stage_are_performed(monkeypatch: pytest.MonkeyPatch, context: Context) -> None:
    steps = with_steps(
        monkeypatch, Fake("a", Stage.CONFIG), Fake("b"), Fake("c"), Fake("d", Stage.SEAL, refuses=True)
    )
    machine.run(Stage.PROVISION, context)
    assert [step.performed for step in steps] == [0, 1, 1, 0]


def test_a_step_that_is_done_is_not_performed(
    monkeypatch: pytest.MonkeyPatch, context: Context, said: list[str]
) -> None:
    first, second = with_steps(monkeypatch, Fake("first", status=done("was there")), Fake("second"))
    machine.run(Stage.PROVISION, context)
    assert (first.performed, second.performed) == (0, 1)
    assert said[0] == "[1/2] first: already done: was there"
    assert said[1:] == ["[2/2] second: to do", said[2]]
    assert said[2].startswith("[2/2] second: done in ")


def test_running_again_performs_nothing(monkeypatch: pytest.MonkeyPatch, context: Context) -> None:
    steps = with_steps(monkeypatch, Fake("a"), Fake("b"))
    machine.run(Stage.PROVISION, context)
    machine.run(Stage.PROVISION, context)
    assert [step.performed for step in steps] == [1, 1]


def test_what_stands_in_for_take_is_there_around_every_step_of_the_stage(
    monkeypatch: pytest.MonkeyPatch, context: Context
) -> None:
    """As vm-tests/dracut/failing.py does it in guests."""
    steps = with_steps(monkeypatch, Fake("a", Stage.CONFIG), Fake("b"), Fake("c"))
    seen: list[tuple[str, int, int]] = []
    take = machine.take

    def look(step: Step, title: str, context: Context) -> StepReport:
        assert isinstance(step, Fake)
        before = step.performed
        report = take(step, title, context)
        seen.append((step.name, before, step.performed))
        return report

    monkeypatch.setattr(machine, "take", look)
    machine.run(Stage.PROVISION, context)
    assert seen == [("b", 0, 1), ("c", 0, 1)]
    assert steps[0].performed == 0


def test_a_refusal_stops_before_the_later_steps(monkeypatch: pytest.MonkeyPatch, context: Context) -> None:
    first, refusing, later = with_steps(
        monkeypatch, Fake("first"), Fake("second", refuses=True), Fake("third")
    )
    with pytest.raises(Refusal, match="second refuses: mend it"):
        machine.run(Stage.PROVISION, context)
    assert (first.performed, refusing.performed, later.performed) == (1, 0, 0)


def test_a_step_that_breaks_stops_before_the_later_steps(
    monkeypatch: pytest.MonkeyPatch, context: Context
) -> None:
    _, later = with_steps(monkeypatch, Fake("first", breaks=True), Fake("second"))
    with pytest.raises(FirstbootError, match="first broke"):
        machine.run(Stage.PROVISION, context)
    assert later.performed == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "first failed: No space left on device: give the guest more memory, or the image a larger"
            " partition se [SX-STEP-03]",
        ),
        (
            OSError(errno.EIO, os.strerror(errno.EIO), "/dev/vda"),
            "first failed: Input/output error (/dev/vda): look at the disk's health [SX-STEP-03]",
        ),
        (OSError("no more"), "first failed: no more [SX-STEP-03]"),
        (MemoryError(), "first failed: out of memory: give the guest more memory [SX-STEP-04]"),
    ],
    ids=["full", "disk", "other", "memory"],
)
def test_what_the_system_refuses_gets_the_step_and_a_cure(
    monkeypatch: pytest.MonkeyPatch, context: Context, error: BaseException, line: str
) -> None:
    with_steps(monkeypatch, Fake("first", error=error))
    with pytest.raises(FirstbootError) as raised:
        machine.run(Stage.PROVISION, context)
    assert str(raised.value) == line


def test_a_report_that_cannot_be_written_does_not_hide_the_error(
    monkeypatch: pytest.MonkeyPatch, context: Context, runtime: Path
) -> None:
    with_steps(monkeypatch, Fake("first", breaks=True))
    places.REPORT.with_name("report.json.new").mkdir(parents=True)
    with pytest.raises(FirstbootError, match="first broke"):
        machine.run(Stage.PROVISION, context)


def test_a_step_whose_turn_has_not_come_is_an_error(
    monkeypatch: pytest.MonkeyPatch, context: Context
) -> None:
    (step,) = with_steps(monkeypatch, Fake("second", status=waiting("first comes first")))
    with pytest.raises(FirstbootError, match="second cannot start: first comes first"):
        machine.run(Stage.PROVISION, context)
    assert step.performed == 0


@pytest.mark.parametrize("status", [ready("still to do"), waiting("not yet")])
def test_a_performed_step_that_is_still_not_done_is_an_error(
    monkeypatch: pytest.MonkeyPatch, context: Context, status: Status
) -> None:
    step, later = with_steps(monkeypatch, Fake("first", works=False), Fake("second"))
    step.perform = lambda context: setattr(step, "status", status)  # type: ignore[method-assign]
    with pytest.raises(FirstbootError, match=f"first was performed and is still not done: {status.detail}"):
        machine.run(Stage.PROVISION, context)
    assert later.performed == 0


def test_the_report_gathers_the_steps_of_all_stages(
    monkeypatch: pytest.MonkeyPatch, context: Context
) -> None:
    with_steps(
        monkeypatch, Fake("a", Stage.CONFIG), Fake("b", status=done("")), Fake("c"), Fake("d", Stage.SEAL)
    )
    machine.run(Stage.CONFIG, context)
    machine.run(Stage.PROVISION, context)
    report = Report.load()
    assert [(step.name, step.outcome) for step in report.steps] == [
        ("a", "done"),
        ("b", "already done"),
        ("c", "done"),
    ]
    assert 0 < report.peak_memory_mib <= report.total_memory_mib


def test_the_report_is_written_also_when_a_step_fails(
    monkeypatch: pytest.MonkeyPatch, context: Context
) -> None:
    with_steps(monkeypatch, Fake("a"), Fake("b", breaks=True))
    with pytest.raises(FirstbootError):
        machine.run(Stage.PROVISION, context)
    assert [step.name for step in Report.load().steps] == ["a"]


def test_a_sealed_system_keeps_the_report_and_says_its_summary(
    monkeypatch: pytest.MonkeyPatch, context: Context, runtime: Path, said: list[str]
) -> None:
    with_steps(monkeypatch, Fake("a"), Fake("b", Stage.SEAL))
    kept = runtime.parent / "root" / paths.SYSTEM_REPORT.relative_to("/")
    monkeypatch.setattr(volumes, "root_mounted", lambda context: nullcontext(plain(runtime.parent / "root")))
    machine.run(Stage.PROVISION, context)
    assert not kept.exists()
    assert not any("complete" in line for line in said)
    machine.run(Stage.SEAL, context)
    assert said[-1] == f"first boot is complete: {Report.load().summary}"
    assert "peak memory" in said[-1]
    assert kept.read_bytes() == places.REPORT.read_bytes()
    assert [step.name for step in Report.load().steps] == ["a", "b"]


def test_the_directory_of_the_report_is_private(
    monkeypatch: pytest.MonkeyPatch, context: Context, runtime: Path
) -> None:
    with_steps(monkeypatch, Fake("a"))
    machine.run(Stage.PROVISION, context)
    assert runtime.stat().st_mode & 0o777 == 0o700


def test_a_dry_run_asks_every_step_and_performs_none(context: Context, runtime: Path) -> None:
    steps = [
        Fake("a", status=done("yes")),
        Fake("b", refuses=True),
        Fake("c"),
        Fake("d", status=waiting("no")),
    ]
    seen = machine.dry_run(context, steps)
    assert [(row.step.name, row.state, row.detail) for row in seen] == [
        ("a", "done", "yes"),
        ("b", "refused", "b refuses: mend it [SX-TEST-01]"),
        ("c", "ready", "to do"),
        ("d", "waiting", "no"),
    ]
    assert [step.performed for step in steps] == [0] * 4
    assert not runtime.exists()
