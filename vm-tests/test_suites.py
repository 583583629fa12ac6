"""The main job in a guest of another Debian release than the one that all other tests have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import demo
import pytest


@pytest.mark.long
def test_a_guest_of_the_next_debian_release_is_provisioned_with_root_on_ext4(tmp_path: Path) -> None:
    """Newer kernel, systemd, dracut, cryptsetup, Ignition, Python; in a process that has its own system."""
    subprocess.run(
        [sys.executable, demo.__file__, f"--output={tmp_path}", "--root=ext4"],
        env=os.environ | {"GUEST_SUITE": "forky"},
        check=True,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert [line for line, holds in report["proof"].items() if not holds] == []
