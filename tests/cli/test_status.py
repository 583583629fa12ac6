"""``secex status``, as a person and as a program reads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support import REPOSITORY, guest_root, json_schemas

from secex_firstboot.agent import machine
from secex_firstboot.agent.step import Context
from secex_firstboot.agent.steps import STEPS
from secex_firstboot.cli import secex
from secex_firstboot.cli import status as verb
from secex_firstboot.cli.verb import Exit
from secex_firstboot.contract.dry_run import Observation, State
from secex_firstboot.contract.key_kind import KeyKind
from secex_firstboot.contract.settings import Fallback
from secex_firstboot.running import status, system
from secex_firstboot.running.status import BootImages, Growth, Header, Host, Mapping, Status, Versions, Volume

SCHEMA = json_schemas.of("status")
MIB = 1 << 20
HASH = "0123456789abcdef" * 4
RUNNING = Status(
    root="/",
    running=True,
    sealed=True,
    this_machine=(HASH,),
    hosts=(
        Host("ibm-z-hostkey-with-a-name-that-is-long", KeyKind.CLASSICAL, HASH, "2027-01-01", True),
        Host("ibm-z-hostkey-\x1b[31m", None, None, None, None),
    ),
    volumes=(
        Volume(
            "root",
            "/etc/luks/root",
            Header("uuid", "aes-xts-plain64", "hmac(sha256)", 4096),
            Mapping("/dev/mapper/root", 2048 * MIB, True),
        ),
        Volume("my-data", "/etc/luks/my-data.header", None, None),
    ),
    growth=Growth("background", True, 2040 * MIB, 2048 * MIB),
    boot_images=BootImages(2, 2, guest_root.IMAGES.newest, guest_root.IMAGES.fallback, Fallback.TRY),
    versions=Versions("0.1.0", "6.12.1", ("6.12.1",), "106-6", "257"),
    first_boot=guest_root.REPORT,
    untold=("/etc/luks/my-data.header: is larger than 16777216 bytes",),
)


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that is all well."""
    seen = [Observation(step.described, State.DONE, "as told") for step in STEPS]
    monkeypatch.setattr(system, "check_provisioned", lambda root, nothing: None)
    monkeypatch.setattr(status, "gather", lambda root, context: RUNNING)
    monkeypatch.setattr(machine, "dry_run", lambda context: seen)
    monkeypatch.setattr(Context, "phase", "provisioned")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return guest_root.make(tmp_path)


def valid(output: str) -> dict[str, Any]:
    printed = json.loads(output)
    jsonschema.validate(printed, SCHEMA, jsonschema.Draft202012Validator)
    assert isinstance(printed, dict)
    return printed


@pytest.mark.usefixtures("running")
def test_a_running_guest_is_told_as_the_schema_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert secex.main(["status", "--json"]) == 0
    printed = valid(capsys.readouterr().out)
    assert printed["schema"] == verb.SCHEMA
    assert {row["state"] for row in printed["dry_run"]["steps"]} == {"done"}
    assert printed["volumes"][0]["mapping"]["as_recorded"] is True
    assert printed["first_boot"] == guest_root.REPORT.model_dump()


def test_a_mounted_root_is_told_as_the_schema_says(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert secex.main(["status", "--json", "--root", str(root)]) == 0
    printed = valid(capsys.readouterr().out)
    assert (printed["running"], printed["dry_run"]) == (False, None)
    assert printed["root"] == str(root)
    assert any("dry run" in line for line in printed["untold"])


def test_the_schema_refuses_what_is_not_in_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secex.main(["status", "--json", "--root", str(root)])
    printed = valid(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    changes: list[dict[str, Any]] = [{"schema": 2}, {"hosts": [{}]}, {"growth": None}]
    for wrong in [*changes, {"this_machine": ["x"]}, {"new": 1}]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(printed | wrong, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.usefixtures("running")
def test_a_page_fits_a_terminal_and_does_not_command_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert secex.main(["status"]) == 0
    page = capsys.readouterr().out
    assert all(len(line) <= 100 for line in page.splitlines())
    assert "\x1b" not in page and r"\x1b[31m" in page
    for said in (
        f"{len(STEPS)} of {len(STEPS)} steps are done",
        HASH,
        "this machine",
        "aes-xts-plain64 with hmac(sha256), sectors of 4096 bytes, header /etc/luks/root",
        "2040 of 2048 MiB, grown to the end; when: background",
        "WARNING: a warning",
        "kernel 6.12.1, dracut 106-6, systemd 257",
        "not told    /etc/luks/my-data.header: is larger",
    ):
        assert said in page


@pytest.mark.usefixtures("running")
def test_a_step_that_is_not_done_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = [Observation(step.described, State.DONE, "as told") for step in STEPS]
    seen[0] = Observation(STEPS[0].described, State.REFUSED, "not this: do that")
    monkeypatch.setattr(machine, "dry_run", lambda context: seen)
    assert secex.main(["status"]) == 0
    page = capsys.readouterr().out
    assert "platform: refused: not this: do that" in page
    assert f"{len(STEPS) - 1} of {len(STEPS)} steps are done" in page


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_where_first_boot_has_not_been_one_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert secex.main(["status", "--root", str(tmp_path), *options]) == Exit.REFUSED
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        "secex: this system was not set up by secex-firstboot: it has no status to show [SX-SYSTEM-01]\n"
    )


def test_it_works_where_what_only_a_guest_has_is_not_installed(root: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfor name in ('pyudev', 'systemd', 'systemd.daemon', 'systemd.journal'):\n"
        "    sys.modules[name] = None\n"
        "from secex_firstboot.cli import secex, status\n"
        "print(secex.main(['status', '--root', sys.argv[1]]))\n"
        "print(status._dry_run())\n"
        "print(secex.main(['status', '--root', sys.argv[1] + '/none']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, root], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    *page, code, without, refused = done.stdout.splitlines()
    assert page[0].startswith("guest ")
    assert (code, refused) == ("0", "3")
    assert "is not installed" in without
