"""What the initramfs that dracut really built must not hold. No guest is needed to see that."""

from __future__ import annotations

import re
import subprocess

import pytest
from harness import debian

# Drivers for what is the host's. It is asked for random numbers that count as entropy, or given keys.
LEFT_OUT = {
    "virtio_rng": "the host's random numbers",
    "virtio_crypto": "the host encrypts",
}
# dracut's modules that map, assemble or fetch disks by what lies on them or comes over the network: that is
# the host's word, and so would be which device gets what name.
MAPS_DISKS = {
    *("btrfs", "dmraid", "lvm", "lvmmerge", "lvmthinpool-monitor", "mdraid", "multipath", "nvdimm"),
    *("cifs", "fcoe", "fcoe-uefi", "iscsi", "nbd", "nfs", "nvmf", "virtfs", "virtiofs"),
    *("crypt-gpg", "crypt-loop", "ecryptfs", "overlay-root", "overlayfs", "resume", "systemd-repart"),
}


@pytest.fixture(scope="module")
def archive() -> bytes:
    image = debian.initramfs(debian.build())
    return subprocess.run(["zstd", "-dc", image], check=True, capture_output=True).stdout


def cpio(archive: bytes, *arguments: str) -> str:
    return subprocess.run(
        ["cpio", "--quiet", *arguments], input=archive, check=True, capture_output=True
    ).stdout.decode()


@pytest.fixture(scope="module")
def modules(archive: bytes) -> set[str]:
    """The names of the kernel modules in it."""
    listing = cpio(archive, "--list")
    found = re.findall(r"/([^/\n]+)\.ko(?:\.\w+)?$", listing, re.MULTILINE)
    return {name.replace("-", "_") for name in found}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_driver_for_what_is_the_hosts_is_not_in_the_initramfs(modules: set[str], name: str) -> None:
    assert {"virtio_blk", "dm_crypt", "dm_integrity"} <= modules
    assert name not in modules, LEFT_OUT[name]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_the_system_has_that_driver_so_that_it_could_have_been_there(name: str) -> None:
    tree = debian.build() / "usr/lib/modules"
    assert list(tree.rglob(f"{name.replace('_', '[-_]')}.ko*"))


def test_nothing_maps_disks_but_what_the_agent_needs(archive: bytes) -> None:
    has = set(cpio(archive, "--extract", "--to-stdout", "usr/lib/dracut/modules.txt").split())
    assert {"crypt", "dm", "secex-firstboot"} <= has
    assert not has & MAPS_DISKS


def test_the_system_has_what_would_map_disks_so_that_it_could_have_been_there() -> None:
    directories = (debian.build() / "usr/lib/dracut/modules.d").iterdir()
    assert {path.name.lstrip("0123456789") for path in directories} >= MAPS_DISKS


@pytest.mark.parametrize("program", ["cryptsetup", "wipefs", "mkfs.ext4", "mkfs.xfs"])
def test_ignition_finds_what_it_makes_volumes_with(archive: bytes, program: str) -> None:
    assert re.search(rf"^(?:\./)?usr/s?bin/{re.escape(program)}$", cpio(archive, "--list"), re.MULTILINE)


@pytest.mark.long
def test_the_module_stays_small() -> None:
    """To compare, an initramfs without it is made, which takes minutes."""
    assert 0 < debian.added_to_initramfs() <= 13 << 20


def test_of_python_the_agent_is_in_it_and_as_byte_code(archive: bytes) -> None:
    """Which modules those are: tests/dracut/test_trace_imports.py."""
    listing = cpio(archive, "--list")
    assert re.search(r"/secex_firstboot/agent/machine\.pyc$", listing, re.MULTILINE)
    assert not re.search(r"/secex_firstboot/(owner|running|builder)/", listing)
    # Below /etc is what Debian's sitecustomize is a link to.
    assert not re.search(r"^usr/[^\n]*/python3[^\n]*\.py$", listing, re.MULTILINE)
