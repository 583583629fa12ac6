"""Guests of another Debian release than the one that all other tests have.

In processes that have systems of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import demo
import pytest
import test_ostree


def of_the_next_release(command: list[str]) -> None:
    subprocess.run([sys.executable, *command], env=os.environ | {"GUEST_SUITE": "forky"}, check=True)


@pytest.mark.long
def test_a_guest_of_the_next_debian_release_is_provisioned_with_root_on_ext4(tmp_path: Path) -> None:
    """Newer kernel, systemd, dracut, cryptsetup, Ignition, Python."""
    of_the_next_release([demo.__file__, f"--output={tmp_path}", "--root=ext4"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert [line for line, holds in report["proof"].items() if not holds] == []


@pytest.mark.long
def test_a_system_made_by_ostree_with_composefs_is_provisioned_and_upgraded(tmp_path: Path) -> None:
    """What its first boot and its first upgrade show, without what takes further guests."""
    its = (
        test_ostree.test_it_is_provisioned_and_starts_on_the_customers_host,
        test_ostree.test_every_file_of_etc_is_as_it_was_committed_or_ignitions_or_ours,
        test_ostree.test_every_file_of_the_deployment_is_as_it_was_committed,
        test_ostree.test_an_upgrade_by_ostree_alone_is_in_a_boot_image_with_a_fallback_and_comes_up,
        test_ostree.test_no_secret_is_let_out,
    )
    chosen = [f"{test_ostree.__file__}::{each.__name__}" for each in its]
    of_the_next_release(["-m", "pytest", "--long", f"--basetemp={tmp_path / 'its'}", *chosen])
