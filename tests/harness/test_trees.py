"""The cache of the guests' trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import debian


def test_trees_that_were_used_lately_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "CACHE", tmp_path)
    (tmp_path / "newer-layer-0123456789abcdef").mkdir()
    trees = [debian._cached("layer", str(number), Path.mkdir) for number in range(4)]
    for tree in trees:
        os.utime(tree, (1, 1))
    assert debian._cached("layer", "0", Path.mkdir) == trees[0]
    assert trees[0].stat().st_mtime == 1
    newest = debian._cached("layer", "4", Path.mkdir)
    assert trees[0].exists()
    assert newest.exists()
    assert sum(tree.exists() for tree in trees) == 3
    assert (tmp_path / "newer-layer-0123456789abcdef").exists()
