"""An image of a commit in an ostree repository, deployed by the real ostree(1)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from harness.site import Host
from support import needs, se_tree
from support.builds import CONTEXT, look, made_of, partition

from secex_firstboot.basic.console import Console
from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.builder import build, ostree
from secex_firstboot.builder.outputs import Outputs
from secex_firstboot.contract import parameters
from secex_firstboot.contract.metadata import Metadata

pytestmark = [
    needs.programs("ostree", "chattr", "mkfs.ext4", "debugfs", "veritysetup", "qemu-img", "sfdisk", "gpg"),
    needs.root,
]
REF = "linux/s390x"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least tree, laid out as libostree wants it: kernel and initramfs below /usr/lib/modules."""
    directory = tmp_path_factory.mktemp("ostree")
    tree = se_tree.make(directory / "tree")
    modules = tree / "usr/lib/modules" / se_tree.RELEASE
    modules.mkdir(parents=True)
    (tree / f"boot/vmlinuz-{se_tree.RELEASE}").rename(modules / "vmlinuz")
    (tree / f"boot/initrd.img-{se_tree.RELEASE}").rename(modules / "initramfs.img")
    shutil.rmtree(tree / "var")
    (tree / "etc").rename(tree / "usr/etc")
    for name in ("var", "sysroot", "tmp", "proc"):
        (tree / name).mkdir()
    (tree / "ostree").symlink_to("sysroot/ostree")
    repo = f"--repo={directory / 'repo'}"
    subprocess.run(["ostree", repo, "init", "--mode=archive"], check=True)
    subprocess.run(["ostree", repo, "commit", f"--branch={REF}", f"--tree=dir={tree}"], check=True)
    return directory / "repo"


@pytest.fixture(scope="module")
def built(repository: Path, hosts: dict[str, Host], tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    outputs = Outputs(tmp_path_factory.mktemp("built") / "linux")
    build.build(CONTEXT, made_of(repository, hosts, ref=REF, options="quiet"), outputs)
    return outputs


def ask(built: Outputs, volume: str, request: str, scratch: Path) -> str:
    """What debugfs(8) answers of one of the file systems."""
    raw, part = scratch / "disk.raw", scratch / volume
    subprocess.run(["qemu-img", "convert", "-O", "raw", built.image, raw], check=True)
    size = Metadata.load(built.metadata).volumes[volume].size
    with raw.open("rb") as stream:
        stream.seek(partition(built, volume))
        part.write_bytes(stream.read(size))
    command: list[str | Path] = ["debugfs", "-R", request, part]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_image_starts_the_deployment(built: Outputs, hosts: dict[str, Host]) -> None:
    made = Metadata.load(built.metadata)
    assert made.boot_entry.release == se_tree.RELEASE
    words = made.boot_entry.options.split()
    assert {"quiet", "rw", *map(str, parameters.NEEDED)} <= {*words}
    assert parameters.value(made.boot_entry.options, parameters.OSTREE).startswith("/ostree/boot.")
    found = look(built, verify=True, hosts=(hosts["first"],))
    assert found.damage == []


def test_what_the_rules_mend_is_the_deployments_etc(built: Outputs, tmp_path: Path) -> None:
    link = parameters.value(Metadata.load(built.metadata).boot_entry.options, parameters.OSTREE)
    fstab = ask(built, "root", f"cat {link}/etc/fstab", tmp_path)
    assert "/dev/mapper/boot /boot ext4" in fstab
    assert "/dev/mapper/root" not in fstab


def test_libostree_finds_partition_se_a_place_and_its_own_settings(built: Outputs, tmp_path: Path) -> None:
    assert "/se/" in ask(built, "root", "ls -p /", tmp_path)
    config = ask(built, "root", "cat /ostree/repo/config", tmp_path)
    assert "bootprefix=true" in config
    assert "bootloader" not in config


def test_a_deployment_that_takes_its_time_is_told(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = tmp_path / "bin/ostree"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\n[ $2 != deploy ] || sleep 1.2; exec {shutil.which("ostree")} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    console = Console(interval=0)
    ostree.deploy(
        Context("", say=console.say, progress=console.progress), repository, REF, "", tmp_path / "root"
    )
    assert f"deploying {REF}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ref": "other/branch"}, "other/branch of .* cannot be deployed"),
        ({"ref": "c5" * 32}, "a commit has no name for its stateroot: give one: --stateroot NAME"),
        ({"ref": "--help"}, "ref: String should match"),
        ({"ref": REF, "stateroot": "../up"}, "stateroot: String should match"),
    ],
)
def test_what_is_no_commit_is_refused(
    repository: Path, hosts: dict[str, Host], tmp_path: Path, changes: dict[str, str], says: str
) -> None:
    with pytest.raises(Refusal, match=says):
        build.build(CONTEXT, made_of(repository, hosts, **changes), Outputs(tmp_path / "linux"))
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_no_repository_is_refused(
    tree: Path, hosts: dict[str, Host], tmp_path: Path
) -> None:
    with pytest.raises(Refusal, match="is no ostree repository"):
        build.build(CONTEXT, made_of(tree, hosts, ref=REF), Outputs(tmp_path / "linux"))
