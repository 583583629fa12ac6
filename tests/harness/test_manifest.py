"""What the tests in the guest compare the provisioned root by."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import REPOSITORY, needs

MANIFEST = REPOSITORY / "vm-tests" / "dracut" / "manifest.py"


def manifest(tree: Path, output: Path) -> str:
    subprocess.run([sys.executable, "-I", str(MANIFEST), str(tree), str(output)], check=True)
    return output.read_text()


def make(tree: Path) -> Path:
    (tree / "boot").mkdir(parents=True)
    (tree / "boot" / "kernel").write_bytes(b"kernel")
    (tree / "etc").mkdir()
    (tree / "etc" / "motd").write_text("hello")
    (tree / "etc" / "one").write_text("same")
    (tree / "etc" / "two").hardlink_to(tree / "etc" / "one")
    (tree / "etc" / "copy").write_text("same")
    (tree / "etc" / "link").symlink_to("motd")
    (tree / "etc" / "directory").symlink_to("../boot")
    os.mkfifo(tree / "etc" / "fifo")
    return tree


def test_two_identical_trees_have_identical_manifests(tmp_path: Path) -> None:
    trees = [make(tmp_path / name) for name in ("first", "second")]
    first, second = (manifest(tree, tmp_path / "out") for tree in trees)
    assert first == second
    assert first.count("\n") == 10


def replace_link(tree: Path) -> None:
    (tree / "etc" / "link").unlink()
    (tree / "etc" / "link").symlink_to("one")


def break_hard_link(tree: Path) -> None:
    (tree / "etc" / "two").unlink()
    (tree / "etc" / "two").write_text("same")


def link_by_another_name(tree: Path) -> None:
    break_hard_link(tree)
    (tree / "etc" / "copy").unlink()
    (tree / "etc" / "copy").hardlink_to(tree / "etc" / "one")


def set_attribute(tree: Path) -> None:
    try:
        os.setxattr(tree / "etc" / "motd", "user.test", b"value")
    except OSError:
        pytest.skip("needs a temporary directory with extended attributes")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte": lambda tree: (tree / "etc" / "motd").write_text("hellO"),
    "a byte on boot": lambda tree: (tree / "boot" / "kernel").write_bytes(b"kernal"),
    "a mode": lambda tree: (tree / "etc" / "motd").chmod(0o4755),
    "a directory's mode": lambda tree: (tree / "etc").chmod(0o711),
    "an extended attribute": set_attribute,
    "a broken hard link": break_hard_link,
    "another hard link": link_by_another_name,
    "a symbolic link": replace_link,
    "a missing file": lambda tree: (tree / "etc" / "motd").unlink(),
    "an added file": lambda tree: (tree / "etc" / "new").touch(),
    "an added directory": lambda tree: (tree / "etc" / "new").mkdir(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_shows(tmp_path: Path, change: Callable[[Path], object]) -> None:
    tree = make(tmp_path / "tree")
    before = manifest(tree, tmp_path / "out")
    change(tree)
    assert manifest(tree, tmp_path / "out") != before


@needs.root
def test_another_owner_shows(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree")
    before = manifest(tree, tmp_path / "out")
    os.chown(tree / "etc" / "motd", 1000, 1000)
    assert manifest(tree, tmp_path / "out") != before
