"""What the agent asks the real Ignition, that of the guests' system, run through qemu-user."""

from __future__ import annotations

import os
import re

import pytest
from harness import debian

from secex_firstboot.ignition.specification import newest_known


def test_it_says_the_newest_specification_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    system = debian.build()
    debian.register_binfmt()
    monkeypatch.setenv("QEMU_LD_PREFIX", str(system))
    monkeypatch.setenv("PATH", f"{system}/usr/lib/dracut/modules.d/30ignition:{os.environ['PATH']}")
    assert re.fullmatch(r"3\.[0-9]+\.0-experimental", newest_known() or "")
