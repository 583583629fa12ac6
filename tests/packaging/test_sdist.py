"""Who has the sdist has everything to build, package and test."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from support import REPOSITORY

# What setuptools adds.
ADDED = {"PKG-INFO", "setup.cfg"}
BUILD = "import sys; from setuptools.build_meta import build_sdist; print(build_sdist(sys.argv[1]))"


@pytest.fixture
def tracked() -> set[str]:
    listing = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(listing, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no git here")
    if done.returncode:
        pytest.skip("this is not a git checkout")
    names = set(done.stdout.split("\0")) - {"", "build"}  # build: a link, in some work trees
    return {name for name in names if (REPOSITORY / name).exists()}


def test_the_sdist_has_every_file_of_the_repository(tracked: set[str], tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="it builds the sdist")
    tree = tmp_path / "tree"
    for name in tracked:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run([sys.executable, "-c", BUILD, tmp_path], cwd=tree, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    assert {name for name in files if ".egg-info/" not in name} - ADDED == tracked
