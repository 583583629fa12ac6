"""IBM's programs are found behind ours of the same names."""

from __future__ import annotations

from pathlib import Path

import pytest

from secex_firstboot.contract import paths
from secex_firstboot.sdboot import ibms


def install(directory: Path, name: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text("#!/bin/sh\n")
    (directory / name).chmod(0o755)
    return directory / name


def test_ours_are_passed_over_also_where_a_link_leads_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, sbin, usr_bin = tmp_path / "ours", tmp_path / "sbin", tmp_path / "bin"
    monkeypatch.setattr(paths, "INSTEAD_OF_IBMS", ours)
    monkeypatch.setenv("PATH", f"{ours}:{sbin}:{usr_bin}")
    own = install(ours, "pvimg")
    sbin.mkdir()
    (sbin / "pvimg").symlink_to(own)
    assert ibms.find("pvimg") is None
    assert ibms.find("pvimg") is None
    theirs = install(usr_bin, "pvimg")
    assert ibms.find("pvimg") == theirs
