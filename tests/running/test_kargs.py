"""Kernel arguments of the boot entry: those that first boot keeps are not to be touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import plain
from support.machine import put

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.running import kargs

ENTRY = "title A\noptions root=/dev/mapper/root quiet\nlinux /vmlinuz\n# a comment\noptions a=1\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path / "boot/vmlinuz", b"")
    put(tmp_path / "boot/loader/entries/a.conf", ENTRY.encode())
    return tmp_path


def entry(root: Path) -> str:
    return (root / "boot/loader/entries/a.conf").read_text()


def test_they_are_shown_and_nothing_is_written(root: Path) -> None:
    assert kargs.change(plain(root), [], []) == ["root=/dev/mapper/root", "quiet", "a=1"]
    assert entry(root) == ENTRY


def test_one_is_added_and_another_removed_and_the_rest_of_the_entry_stays(root: Path) -> None:
    expected = ["root=/dev/mapper/root", "a=1", "audit=1"]
    assert kargs.change(plain(root), ["audit=1", "a=1"], ["quiet"]) == expected
    assert entry(root) == f"title A\nlinux /vmlinuz\n# a comment\noptions {' '.join(expected)}\n"


@pytest.mark.parametrize(
    ("add", "remove", "says"),
    [
        (["init=/bin/sh"], [], "argument 1 of --append is one of init"),
        (["quiet", "root=LABEL=x"], [], "argument 2 of --append is one of root"),
        ([], ["root=/dev/mapper/root"], "argument 1 of --delete is one of root"),
        (["secex.generation=1"], [], "argument 1 of --append is one of secex"),
        (['a="'], [], "argument 1 of --append is no kernel argument"),
        (["a=1\noptions init=/x"], [], "argument 1 of --append is no kernel argument"),
    ],
)
def test_what_first_boot_keeps_is_refused(root: Path, add: list[str], remove: list[str], says: str) -> None:
    with pytest.raises(Refusal, match=says):
        kargs.change(plain(root), add, remove)
    assert entry(root) == ENTRY
