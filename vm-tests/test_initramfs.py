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


@pytest.fixture(scope="module")
def modules() -> set[str]:
    """The names of the kernel modules in it."""
    archive = subprocess.run(
        ["zstd", "-dc", debian.initramfs(debian.build())], check=True, capture_output=True
    ).stdout
    listing = subprocess.run(
        ["cpio", "--list", "--quiet"], input=archive, check=True, capture_output=True, text=True
    ).stdout
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
