"""The frame of ``secex``: verbs, help, exit codes."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import REPOSITORY

from secex_firstboot import __version__
from secex_firstboot.basic.errors import DeviceMissing, FirstbootError, Refusal
from secex_firstboot.cli import secex
from secex_firstboot.cli.verb import Exit
from secex_firstboot.hostkeys.download import Unreachable

MANUAL = (REPOSITORY / "docs/secex.1").read_text(encoding="utf-8")


def ending(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def run(options: argparse.Namespace) -> Exit:
        raise error

    module = SimpleNamespace(EXAMPLES="", arguments=lambda parser: None, run=run)
    monkeypatch.setattr(secex, "load", lambda name: module)
    return secex.main(["status"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FirstbootError("SX-TEST-01", "it", "do"), 1),
        (OSError(5, "it"), 1),
        (ModuleNotFoundError("it", name="it"), 1),
        (Refusal("SX-TEST-01", "it", "do"), 3),
        (Unreachable("SX-TEST-01", "it", "do"), 75),
        (DeviceMissing("SX-TEST-01", "it", "do"), 75),
    ],
)
def test_ways_to_fail_have_codes_of_their_own_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    assert ending(monkeypatch, error) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("secex: ") and "it" in line


def test_an_interrupt_is_no_story(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


def test_whoever_may_not_look_is_told_to_be_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = FirstbootError("SX-TEST-01", "cannot tell", "look at the disk's health")
    error.__cause__ = PermissionError(13, "Permission denied")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert ending(monkeypatch, error) == Exit.FAILED
    assert capsys.readouterr().err == "secex: cannot tell: run it as root\n"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert ending(monkeypatch, error) == Exit.FAILED
    assert capsys.readouterr().err == "secex: cannot tell: look at the disk's health [SX-TEST-01]\n"


def test_exit_codes_are_in_help_and_manual() -> None:
    for code in Exit:
        assert re.search(rf"^ +{code.value}  \w", secex.parser().format_help(), re.MULTILINE)
        assert re.search(rf"^\.It {code.value}$", MANUAL, re.MULTILINE)


@pytest.mark.parametrize("words", [[], ["nothing"], ["status", "--all"], ["status", "more"]])
def test_a_command_line_that_makes_no_sense_is_refused_as_such(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        secex.main(words)
    assert stopped.value.code == Exit.USAGE
    assert "usage: secex" in capsys.readouterr().err


@pytest.mark.parametrize("name", secex.VERBS)
def test_a_verb_has_help_with_an_example_and_its_place_in_the_manual(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        secex.main([name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  secex {name}" in text
    assert f".Ss secex {name}\n" in MANUAL
    for option in re.findall(r"^  (?:-\w, )?--([\w-]+)", text, re.MULTILINE):
        assert option == "help" or rf"\-{option.replace('-', chr(92) + '-')}" in MANUAL


def test_every_verb_is_a_file_and_none_is_forgotten() -> None:
    """What of cli/ has a run() is a verb."""
    files = {
        path for path in Path(secex.__file__).parent.glob("*.py") if "\ndef run(options" in path.read_text()
    }
    assert {path.stem for path in files} == {name.replace("-", "_") for name in secex.VERBS}


def loaded(*words: str) -> set[str]:
    script = (
        "import sys; from secex_firstboot.cli import secex\n"
        "try: secex.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_no_verb_and_a_verb_s_help_nothing_that_is_heavy() -> None:
    assert not {name for name in loaded("--help") if name.startswith("secex_firstboot.cli.")} - {
        "secex_firstboot.cli.secex",
        "secex_firstboot.cli.table",
        "secex_firstboot.cli.verb",
    }
    heavy = {"pydantic", "cryptography", "requests", "pyudev", "gnupg", "systemd", "ctypes"}
    heavy |= {f"secex_firstboot.{name}" for name in ("agent", "running", "owner", "builder", "storage")}
    for name in secex.VERBS:
        seen = loaded(name, "--help")
        assert f"secex_firstboot.cli.{name.replace('-', '_')}" in seen
        assert not seen & heavy


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        secex.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"secex {__version__}\n"


def test_a_reader_that_has_seen_enough_gets_no_complaint(tmp_path: Path) -> None:
    script = (
        "import sys, types; from secex_firstboot.cli import secex\n"
        "def run(options):\n    print('line\\n' * 100_000)\n    return 0\n"
        "secex.load = lambda name: types.SimpleNamespace(EXAMPLES='', arguments=lambda parser: 0, run=run)\n"
        "sys.exit(secex.main(['status']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == Exit.FAILED
