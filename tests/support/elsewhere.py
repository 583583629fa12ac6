"""Nothing of the machine that the tests run on is looked at or changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from secex_firstboot.agent import places
from secex_firstboot.contract import paths


def move(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All paths that the agent knows lie below ``tmp_path``."""
    for module in (paths, places):
        for name, value in vars(module).items():
            if isinstance(value, Path):
                monkeypatch.setattr(module, name, tmp_path / value.relative_to("/"))
