"""The link of a deployment that libostree has renamed, as an older boot image looks for it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support import REPOSITORY, deployments

from secex_firstboot.roots import kinds

SCRIPT = REPOSITORY / "dracut/keep-deployment.sh"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """Of the initramfs, with the root file system below it."""
    (tmp_path / "sysroot").mkdir()
    deployments.make(tmp_path / "sysroot")
    (tmp_path / "etc/luks").mkdir(parents=True)
    ((_, content),) = (
        kinds.on(tmp_path / "sysroot", deployments.ARGUMENT).for_initramfs(deployments.ARGUMENT).items()
    )
    (tmp_path / "etc/luks/deployment").write_bytes(content)
    return tmp_path


def keep(top: Path) -> None:
    subprocess.run(["sh", SCRIPT, top], check=True)


def deployment(top: Path) -> Path:
    return kinds.on(top / "sysroot", deployments.ARGUMENT).place(Path("/etc"))


def test_a_link_that_is_there_stays(top: Path) -> None:
    before = sorted((top / "sysroot").rglob("*"))
    keep(top)
    assert sorted((top / "sysroot").rglob("*")) == before


def test_one_that_is_gone_with_all_of_its_number_leads_to_the_same_again(top: Path) -> None:
    """And as libostree makes it: the number is a link, which it replaces by a rename."""
    was = deployment(top)
    (top / "sysroot/ostree/boot.1").unlink()
    shutil.rmtree(top / "sysroot/ostree/boot.1.1")
    for _ in range(2):
        keep(top)
        assert deployment(top) == was
        assert (top / "sysroot/ostree/boot.1").is_symlink()


def test_one_that_is_gone_of_a_number_in_use_is_put_beside_those(top: Path) -> None:
    was, link = deployment(top), top / "sysroot" / deployments.LINK[1:]
    shutil.rmtree(link.parent)
    (link.parent.parent / "another").mkdir()
    keep(top)
    assert deployment(top) == was
    assert (link.parent.parent / "another").is_dir()
