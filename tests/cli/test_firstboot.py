"""The command line, on a machine that is no Secure Execution guest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY, elsewhere, needs

from secex_firstboot import __version__
from secex_firstboot.agent import machine
from secex_firstboot.agent.step import Context, Stage
from secex_firstboot.agent.steps import STEPS
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.cli import firstboot as cli
from secex_firstboot.contract.dry_run import Observation, State

needs_locked_memory = needs.root
STATES = {"done", "ready", "waiting", "refused"}


@pytest.fixture(autouse=True)
def workstation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is where the agent looks, whatever machine the tests run on."""
    elsewhere.move(monkeypatch, tmp_path)
    monkeypatch.setattr(cli, "kernel_command_line", lambda: "root=/dev/vda1 quiet")
    return tmp_path


def all_steps_are(monkeypatch: pytest.MonkeyPatch, state: State) -> None:
    seen = [Observation(step.described, state, "as told") for step in STEPS]
    monkeypatch.setattr(machine, "dry_run", lambda context: seen)


def test_a_dry_run_prints_one_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--dry-run"]) == 1
    first, *rows = capsys.readouterr().out.splitlines()
    assert first == "started from: another machine"
    assert len(rows) == len(STEPS)
    for step, row in zip(STEPS, rows, strict=True):
        assert row.startswith(f"{step.name} ")
        assert row[len("encrypt boot") :].split()[0] in STATES
    assert rows[0].split(maxsplit=2)[1:] == [
        "refused",
        "this machine is not an IBM Secure Execution guest: start the SE-ready image on an IBM z15 or"
        " LinuxONE III or newer, as a Secure Execution guest [SX-PLATFORM-02]",
    ]


def test_a_dry_run_for_programs_has_a_fixed_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--dry-run", "--json"]) == 1
    seen = json.loads(capsys.readouterr().out)
    assert seen.keys() == {"phase", "steps"}
    assert seen["phase"] == "another machine"
    assert [row["step"] for row in seen["steps"]] == [step.name for step in STEPS]
    for row, step in zip(seen["steps"], STEPS, strict=True):
        assert row.keys() == {"step", "state", "destructive", "detail", "untold"}
        assert row["state"] in STATES
        assert row["destructive"] is step.destructive
        assert row["detail"]


def test_a_dry_run_changes_nothing(workstation: Path) -> None:
    cli.main(["--dry-run"])
    assert list(workstation.iterdir()) == []


@pytest.mark.parametrize("state", sorted(set(State) - {State.REFUSED}))
def test_a_dry_run_without_a_refusal_succeeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: State
) -> None:
    all_steps_are(monkeypatch, state)
    assert cli.main(["--dry-run"]) == 0
    assert cli.main(["--dry-run", "--json"]) == 0
    all_steps_are(monkeypatch, State.REFUSED)
    assert cli.main(["--dry-run"]) == 1
    assert cli.main(["--dry-run", "--json"]) == 1


@needs_locked_memory
def test_a_refusal_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--stage", "config"]) == 1
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith("secex-firstboot: this machine is not an IBM Secure Execution guest: start ")


@needs_locked_memory
def test_an_error_of_several_lines_is_printed_as_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(stage: Stage, context: Context) -> None:
        raise FirstbootError("SX-TEST-01", "first\nsecond", "third\r\n\tfourth")

    monkeypatch.setattr(machine, "run", fail)
    assert cli.main(["--stage", "seal"]) == 1
    assert capsys.readouterr().err == "secex-firstboot: first second: third fourth [SX-TEST-01]\n"


@needs_locked_memory
def test_a_stage_that_gets_to_its_end_succeeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Stage] = []
    monkeypatch.setattr(machine, "run", lambda stage, context: asked.append(stage))
    for stage in Stage:
        assert cli.main([f"--stage={stage}"]) == 0
    assert asked == list(Stage)
    assert capsys.readouterr().err == ""


@needs_locked_memory
def test_a_stage_prints_its_progress_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(stage: Stage, context: Context) -> None:
        context.say("line")
        raise Refusal("SX-TEST-01", "no")

    monkeypatch.setattr(machine, "run", run)
    assert cli.main(["--stage", "seal"]) == 1
    assert capsys.readouterr().out == "line\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--json"],
        ["--stage", "config", "--json"],
        ["--stage", "config", "--dry-run"],
        ["--stage", "everything"],
        ["--dry-run", "config"],
    ],
)
def test_a_command_line_that_makes_no_sense_changes_nothing(
    capsys: pytest.CaptureFixture[str], workstation: Path, arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: secex-firstboot" in capsys.readouterr().err
    assert list(workstation.iterdir()) == []


def test_help_shows_an_example_and_the_exit_status() -> None:
    argv = [sys.executable, "-m", "secex_firstboot", "--help"]  # of this tree, whatever is installed
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "example" in done.stdout
    assert "\n  secex-firstboot --dry-run\n" in done.stdout
    assert all(f"\n  {code}  " in done.stdout for code in (0, 1, 2))
    for stage in Stage:
        assert stage in done.stdout


def test_the_entry_alone_loads_nothing_but_what_the_parser_needs() -> None:
    """The initramfs has the agent alone; and --help is not to wait for libraries."""
    script = "import sys, secex_firstboot.cli.firstboot; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
    loaded = set(done.stdout.split())
    assert "secex_firstboot.agent.step" in loaded
    libraries = {"pydantic", "pyudev", "requests", "cryptography", "gnupg", "systemd"}
    layers = {f"secex_firstboot.{name}" for name in ("owner", "running", "builder", "agent.machine")}
    assert not loaded & (libraries | layers)


def test_the_agent_loads_neither_the_owner_s_tool_nor_what_is_for_the_running_system() -> None:
    script = (
        "import sys; from secex_firstboot.cli import firstboot\n"
        "firstboot.main(['--dry-run']); firstboot.main(['--explain']); firstboot.main(['--stage=config'])\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "secex_firstboot.agent.machine" in loaded and "secex_firstboot.agent.explain" in loaded
    assert not loaded & {f"secex_firstboot.{name}" for name in ("owner", "running", "builder")}


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"secex-firstboot {__version__}\n"
