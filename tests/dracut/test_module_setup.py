"""What our dracut module leaves out, with dracut itself replaced by the few names it uses."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from support import REPOSITORY

MODULE = REPOSITORY / "dracut/module-setup.sh"
DRACUT = """\
instmods() { :; }
dwarning() { echo "warning: $*"; }
. "$1"
installkernel
echo "$omit_drivers"
"""
INSTALL = """\
dfatal() { echo "fatal: $*"; }
inst_multiple() { :; }
. "$1"
install || true
echo "dracut goes on"
"""
HOSTS = ("virtio_rng", "virtio_crypto")
"""Drivers of devices that are the host's, for random numbers and for encryption."""


def installkernel(tmp_path: Path, omitted: str = "", built_in: str = "") -> str:
    (tmp_path / "modules.builtin").write_text(built_in)
    environment = {
        "PATH": "/usr/bin:/bin",
        "initdir": str(tmp_path),
        "srcmods": str(tmp_path),
        "omit_drivers": omitted,
    }
    argv = ["bash", "-euc", DRACUT, "bash", str(MODULE)]
    return subprocess.run(argv, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("omitted", ["", "^floppy$|^nouveau$"])
def test_no_later_dracut_module_can_bring_a_driver_for_the_hosts_random_numbers(
    tmp_path: Path, omitted: str
) -> None:
    """dracut-install matches the names of modules with the extended regular expression."""
    expression = installkernel(tmp_path, omitted).strip()
    for name in HOSTS:
        assert re.search(expression, name)
    for name in ("virtio_blk", "virtio_net", "s390_trng", "virtio", "xvirtio_rng"):
        assert not re.search(expression, name)
    assert bool(re.search(expression, "floppy")) == bool(omitted)


def test_what_an_earlier_dracut_module_brought_is_removed(tmp_path: Path) -> None:
    drivers = tmp_path / "usr/lib/modules/6.12/kernel/drivers"
    files = ["char/hw_random/virtio-rng.ko.xz", "crypto/virtio/virtio_crypto.ko", "block/virtio_blk.ko.zst"]
    for name in files:
        (drivers / name).parent.mkdir(parents=True)
        (drivers / name).touch()
    installkernel(tmp_path)
    assert [name for name in files if (drivers / name).exists()] == ["block/virtio_blk.ko.zst"]


def test_a_kernel_that_has_such_a_driver_built_in_is_named_with_the_cure(tmp_path: Path) -> None:
    assert "warning" not in installkernel(tmp_path, built_in="kernel/drivers/x/virtio_blk.ko\n")
    said = installkernel(tmp_path, built_in="kernel/drivers/char/hw_random/virtio-rng.ko\n")
    assert "initcall_blacklist=virtio_rng_driver_init" in said
    assert said.count("warning") == 1


def test_without_the_agent_no_initramfs_is_made(tmp_path: Path) -> None:
    """Of a failure that a module's install() returns, dracut only says so, and goes on."""
    environment = {"PATH": str(tmp_path), "moddir": str(tmp_path), "initdir": str(tmp_path)}
    argv = ["/bin/bash", "-uc", INSTALL, "bash", str(MODULE)]  # there is no python3
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "fatal: secex-firstboot: tracing the agent's imports failed\n"
