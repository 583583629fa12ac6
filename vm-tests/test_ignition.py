"""What the agent asks the real Ignition, that of the guests' system, run through qemu-user."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from harness import debian

from secex_firstboot.agent.step import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition.specification import newest_known
from secex_firstboot.owner.check import config_file

VERSION = {"version": "3.3.0"}


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Path:
    tree = debian.build()
    debian.register_binfmt()
    monkeypatch.setenv("QEMU_LD_PREFIX", str(tree))
    return tree


def test_it_says_the_newest_specification_it_knows(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{system}/usr/lib/dracut/modules.d/30ignition:{os.environ['PATH']}")
    assert re.fullmatch(r"3\.[0-9]+\.0-experimental", newest_known() or "")


@pytest.fixture
def validate(system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ask ignition-validate of a config, as a workstation does: (what could not be told, warnings)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ignition-validate").symlink_to(system / "usr/bin/ignition-validate")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def validate(config: dict[str, Any]) -> tuple[list[str], list[str]]:
        warnings: list[str] = []
        path = tmp_path / "config.ign"
        path.write_text(json.dumps(config))
        return config_file.validate(path.read_bytes(), Context("", warn=warnings.append)), warnings

    return validate


def test_its_check_finds_nothing_wrong_with_a_good_config(validate: Any) -> None:
    assert validate({"ignition": VERSION}) == ([], [])


def test_what_its_check_refuses_is_a_refusal(validate: Any) -> None:
    with pytest.raises(Refusal, match=r"error at \$\.storage\.raid\.0\.level, .*: unrecognized raid level"):
        validate(
            {"ignition": VERSION, "storage": {"raid": [{"name": "a", "level": "x", "devices": ["/dev/a"]}]}}
        )


def test_what_its_check_warns_of_is_a_warning(validate: Any) -> None:
    untold, warnings = validate({"ignition": VERSION, "sytemd": {}})
    assert untold == []
    assert [line for line in warnings if "sytemd" in line]


def test_a_specification_that_its_check_does_not_know_is_no_verdict(validate: Any) -> None:
    (untold,), _ = validate({"ignition": {"version": "3.99.0"}})
    assert "does not know this specification" in untold
