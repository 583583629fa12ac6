"""A system made by ostree: its first boot, and updates by ostree(1) alone."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness import debian, firstboot
from harness.firstboot import Owner, Served
from harness.guest import Disk
from harness.life import Life
from harness.se_ready import Recipe

RECIPE = Recipe(ref=debian.REF, boot_free=128, headroom=384, se_size=384)
DISK_SIZE = 2560  # MiB
USER_DATA = "/var/lib/user/data"


def configure(owner: Owner) -> Served:
    """A user with a home below /var/home, and a file in /var, beside what is in every config."""
    served = firstboot.plain_config(owner)
    config: dict[str, Any] = copy.deepcopy(served.config)
    for user in config["passwd"]["users"]:
        if user["name"] == "core":
            user["homeDir"] = "/var/home/core"
    config["storage"]["files"].append({"path": USER_DATA, "contents": {"source": "data:,data"}})
    return Served(config, served.http)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    directory = tmp_path_factory.mktemp("ostree")
    with firstboot.make_site(directory, RECIPE, configure) as (where, network):
        firstboot.enlarge(where.image, where.disk, DISK_SIZE)
        life = Life(where, network)
        with firstboot.start(
            where, network, host_keys=[where.hosts["universal"].key], log=where.directory / "first.log"
        ) as guest:
            firstboot.wait_for_system(guest, firstboot.FIRST_BOOT_TIMEOUT)
            life.seen["first boot"] = firstboot.look(guest, where.identity)
            life.power_off(guest)
        live(life)
    return life


def live(life: Life) -> None:
    seen, shell = life.seen, life.shell
    news = Disk(repository_disk(life.where.directory), "news", format="raw", read_only=True)
    with life.start(others=[news]) as guest:
        seen["second boot"] = life.up(guest)
        seen["system"] = firstboot.look(guest, life.where.identity)
        seen["user's"] = shell(guest, f"cat {USER_DATA}; echo; stat -c %U ~core; readlink -f ~core")
        # Ignition wanted it; libostree would have semodule(8) refresh a policy that is none, by bwrap(1).
        shell(guest, "rm /etc/selinux/config")
        shell(guest, "mount -o ro /dev/disk/by-id/virtio-news /mnt")
        shell(guest, f"ostree pull-local /mnt {debian.REF} && ostree admin upgrade")
        seen["upgraded"] = life.restart(guest) | {"release": shell(guest, RELEASE)}
        seen["update"] = shell(guest, "secex update")
        life.power_off(guest)


RELEASE = "cat /usr/lib/release || echo none"


def repository_disk(directory: Path) -> Path:
    """A disk with a repository, in which the branch has gone on: another file, and another initramfs."""
    disk = directory / "news.raw"
    with disk.open("wb") as stream:
        stream.truncate(1 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-d", debian.newer_repository(), disk], check=True)
    return disk


def test_it_is_provisioned_and_starts_on_the_customers_host(life: Life) -> None:
    first, second = life.seen["first boot"], life.seen["system"]
    assert (first.file, first.unit, first.user) == (second.file, second.unit, second.user)
    assert "ostree=" in second.command_line
    assert life.seen["user's"].splitlines() == ["data", "core", "/var/home/core"]


def test_an_upgrade_by_ostree_alone_is_in_a_boot_image_with_a_fallback_and_comes_up(life: Life) -> None:
    before, after = life.seen["second boot"], life.seen["upgraded"]
    assert (before["running"], before["fallback"]) == (1, None)
    assert (after["running"], after["newest"]["state"]) == (2, "up")
    assert after["fallback"]["generation"] == 1
    assert after["release"] == "2"
    assert life.seen["update"] == "the boot image is up to date"
