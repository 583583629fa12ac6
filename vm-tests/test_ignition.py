"""What the agent asks the real Ignition, that of the guests' system."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from harness import debian

from secex_firstboot.ignition.specification import newest_known


def test_it_says_the_newest_specification_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = debian.build()
    program = system / "usr/lib/dracut/modules.d/30ignition/ignition"
    wrapper = tmp_path / "ignition"
    wrapper.write_text(f'#!/bin/sh\nexec qemu-s390x-static -L {system} {program} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert re.fullmatch(r"3\.[0-9]+\.0-experimental", newest_known() or "")
