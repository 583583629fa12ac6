"""The service that grows root."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import elsewhere, plain

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.cli import firstboot
from secex_firstboot.running import grow


@pytest.mark.parametrize("provisioned", [False, True])
def test_only_a_system_that_first_boot_has_made_grows(tmp_path: Path, provisioned: bool) -> None:
    lines: list[str] = []
    context = Context("secex.grow=off", say=lines.append)
    if provisioned:
        (tmp_path / "etc/luks").mkdir(parents=True)
        (tmp_path / "etc/luks/root").touch()
        grow.in_background(context, plain(tmp_path))
        assert lines == ["the root file system keeps its size: growing is off"]
    else:
        with pytest.raises(Refusal, match="was not set up by secex-firstboot"):
            grow.in_background(context, plain(tmp_path))


def test_the_command_line_says_why_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere.move(monkeypatch, tmp_path)
    assert firstboot.main(["--grow"]) == 1
    assert capsys.readouterr().err == (
        "secex-firstboot: this system was not set up by secex-firstboot: there is nothing to grow here "
        "[SX-SYSTEM-01]\n"
    )
