"""The root file system of a running system, where /sysroot is read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY

PROGRAM = """
import sys
from pathlib import Path
from secex_firstboot.roots.kinds import Ostree
from secex_firstboot.running import system

top = Path(sys.argv[1])
system.root = lambda: Ostree(top / "sysroot", top, "link")
root = system.writable_root()
(root.volume / "written").touch()
print(*sys.argv[2:])
"""
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift'


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare, of util-linux")
def test_it_is_written_in_a_namespace_of_ones_own_and_stays_read_only_outside(tmp_path: Path) -> None:
    program, sysroot = tmp_path / "program.py", tmp_path / "sysroot"
    program.write_text(PROGRAM)
    sysroot.mkdir()
    inside = f'{READ_ONLY} && "$@" && ! touch {sysroot}/outside'
    user = ["--user", "--map-root-user"] if os.geteuid() else []
    namespace = ["unshare", *user, "--mount", "sh", "-c", inside, "sh"]
    command: list[str | Path] = [
        *namespace,
        sysroot,
        sys.executable,
        program,
        tmp_path,
        "update",
        "--option=a b",
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "update --option=a b\n"
    assert {path.name for path in sysroot.iterdir()} == {"written"}
    assert "Read-only file system" in done.stderr
