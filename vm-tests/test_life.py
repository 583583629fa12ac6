"""Years of a guest in an hour: apt's kernel, a new initramfs, hosts that come and go, a start that hangs.

One provisioned guest goes through all of it, and each test is about what happened on its way.
"""

from __future__ import annotations

import json

import pytest
from harness import firstboot, repository, site
from harness.guest import SERVICES_ADDRESS, Guest, Network
from harness.life import LONG, Life, newest_is_up
from harness.se_ready import Recipe

from secex_firstboot.sdboot.initramfs import File, write_archive

# Room for a second kernel.
RECIPE = Recipe(boot_free=128, headroom=384, se_size=384)
DISK_SIZE = 2560  # MiB
HANGS = "rdinit=/usr/bin/cat"  # the first program reads the console for ever

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    release, packages = repository.newer_kernel()
    with firstboot.make_site(tmp_path_factory.mktemp("life"), RECIPE) as (where, network):
        firstboot.enlarge(where.image, where.disk, DISK_SIZE)
        with firstboot.start(
            where,
            network,
            host_keys=[where.hosts["universal"].key],
            log=where.directory / "first.log",
        ) as guest:
            firstboot.wait_for_system(guest, firstboot.FIRST_BOOT_TIMEOUT)
            firstboot.power_off(guest, where.identity)
        with site.web_server(packages) as port:
            life = Life(where, Network({80: port}), {"release": release})
            live(life)
    return life


def live(life: Life) -> None:
    seen = life.seen
    with life.start() as guest:
        seen["first image"] = life.up(guest)
        seen["kernel before"] = life.shell(guest, "uname -r")
        install_kernel(life, guest)
        seen["newer kernel"] = life.restart(guest)
        life.shell(guest, "secex hosts remove customer-2")
        make_initramfs(life, guest)
        seen["newer initramfs"] = life.restart(guest)
        seen["in the initramfs"] = life.shell(guest, f"lsinitrd -f {MARK} /boot/initrd.img-$(uname -r)")
        seen["kernel that has to stay"] = refused(life, guest, "secex-firstboot --kernel-goes=$(uname -r)")
        add_host(life, guest)
        seen["another host"] = life.restart(guest)
        life.power_off(guest)
    with life.start("customer-2") as guest:
        seen["there"] = life.up(guest)
        life.shell(guest, "secex hosts remove customer-1")
        seen["without the old ones"] = life.restart(guest)
        life.shell(guest, "secex kargs --append printk.time=1")
        seen["and no fallback for them"] = life.restart(guest)
        seen["hosts"] = json.loads(life.shell(guest, "secex hosts list --json"))["hosts"]
        life.power_off(guest)
    with life.start("customer-1") as guest:
        seen["on the old host"] = guest.wait(firstboot.BOOT_TIMEOUT)
    hang(life)
    with life.start("customer-2") as guest:
        seen["after it hung"] = life.up(guest)
        seen["zipl by hand"] = life.shell(guest, "zipl > /dev/null 2>&1; echo $?")
        configuration = ZIPL_CONFIGURATION.format(release=seen["release"])
        guest.send(configuration.encode(), "/etc/zipl.conf", life.where.identity)
        seen["zipl with a configuration"] = life.shell(guest, "zipl > /dev/null 2>&1; echo $?")
        life.shell(guest, "rm /etc/zipl.conf")  # with it the distribution's own hook would fail below
        seen["without the agent"] = without_agent(life, guest)
        seen["another update"] = life.shell(
            guest, "sed -i 's|rdinit=[^ ]*||' /boot/loader/entries/*.conf; secex update"
        )
        seen["at last"] = life.restart(guest)
        seen["removed"] = life.shell(guest, REMOVE)
        seen["entries"] = life.shell(guest, "ls /boot/loader/entries").split()


ZIPL_CONFIGURATION = """\
[defaultboot]
default = linux
[linux]
target = /boot
image = /boot/vmlinuz-{release}
ramdisk = /boot/initrd.img-{release}
parameters = "root=/dev/mapper/root"
"""
MARK = "etc/mark-of-the-test"
REMOVE = "apt-get -qq -y remove 'linux-image-6.12*' > /tmp/said 2>&1; echo $?; tail -n 5 /tmp/said"


def refused(life: Life, guest: Guest, command: str) -> str:
    done = guest.ssh(command, life.where.identity, timeout=LONG)
    return f"{done.returncode} {done.stderr}"


def install_kernel(life: Life, guest: Guest) -> None:
    """From the repository, as an administrator does it."""
    life.shell(
        guest,
        f"echo 'deb [trusted=yes] http://{SERVICES_ADDRESS}/ ./' > /etc/apt/sources.list"
        " && apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install linux-image-s390x",
    )


def make_initramfs(life: Life, guest: Guest) -> None:
    """By the trigger of dracut, which other packages activate; what is new in it is a file."""
    life.shell(
        guest,
        f"echo it is there > /{MARK}; echo 'install_items+=\" /{MARK} \"' > /etc/dracut.conf.d/90-mark.conf;"
        " dpkg-trigger --by-package=dracut update-initramfs && dpkg --configure --pending",
    )


def add_host(life: Life, guest: Guest) -> None:
    """Its document is proven anew, by what lies there already."""
    document = site.Host("customer-2", life.where.directory / "hostkeys").document
    file = "/root/customer-2.crt"
    guest.send(document.read_bytes(), file, life.where.identity)
    life.shell(guest, f"secex hosts add {file}")


def without_agent(life: Life, guest: Guest) -> str:
    """What an update says of an initramfs that was made without it."""
    archive = life.where.directory / "other.img"
    write_archive(archive, {"/init": File(b"#!/bin/sh\n", 0o755)})
    guest.send(archive.read_bytes(), "/boot/other.img", life.where.identity)
    entries = "/boot/loader/entries/*.conf"
    life.shell(guest, f"cp -r /boot/loader /root; sed -i 's|^initrd .*|initrd /other.img|' {entries}")
    said = refused(life, guest, "secex update")
    life.shell(guest, "cp -r /root/loader /boot; rm /boot/other.img")
    return said


def hang(life: Life) -> None:
    with life.start("customer-2") as guest:
        life.up(guest)
        life.shell(guest, f"sed -i 's|^options .*|& {HANGS}|' /boot/loader/entries/*.conf; secex update")
        guest.ssh("systemctl --no-block reboot", life.where.identity)
        guest.wait_for(rf"Kernel command line: .*{HANGS}", LONG)
        guest.wait_for("Run /usr/bin/cat as init process", LONG)
        guest.kill()


def test_a_kernel_that_apt_installs_is_what_the_next_start_has(life: Life) -> None:
    found, before = life.seen["newer kernel"], life.seen["first image"]
    assert newest_is_up(before)
    assert newest_is_up(found)
    assert (before["running"], found["running"]) == (1, 2)
    assert found["kernel"] == found["newest"]["kernel"] == life.seen["release"]
    assert found["fallback"]["kernel"] == life.seen["kernel before"] != life.seen["release"]


def test_an_initramfs_that_a_package_has_made_anew_is_what_the_next_start_has(life: Life) -> None:
    found = life.seen["newer initramfs"]
    assert newest_is_up(found)
    assert found["newest"]["inputs"]["initramfs 0"] != found["fallback"]["inputs"]["initramfs 0"]
    assert life.seen["in the initramfs"] == "it is there"


def test_the_kernel_of_the_fallback_is_not_removed(life: Life) -> None:
    assert "is that of the boot image that runs, or to fall back to" in life.seen["kernel that has to stay"]
    assert life.seen["kernel that has to stay"].startswith("1 ")


def test_a_guest_moves_to_another_host_and_does_not_start_on_the_old_one_any_more(life: Life) -> None:
    for stage in ("another host", "there", "without the old ones", "and no fallback for them"):
        assert newest_is_up(life.seen[stage])
    assert [each["name"] for each in life.seen["hosts"]] == ["ibm-z-hostkey-customer-2"]
    assert life.seen["on the old host"] == "refused"


def test_after_a_start_that_hung_before_its_root_the_last_good_image_is_up(life: Life) -> None:
    found, before = life.seen["after it hung"], life.seen["and no fallback for them"]
    assert found["newest"]["state"] == "failed"
    assert found["running"] == found["starts"] == before["running"]


def test_zipl_by_hand_does_not_unmake_the_guest(life: Life) -> None:
    assert life.seen["zipl by hand"] != "0"
    assert life.seen["zipl with a configuration"] != "0"
    assert newest_is_up(life.seen["at last"])


def test_an_initramfs_without_the_agent_is_no_update(life: Life) -> None:
    assert "has no secex-firstboot" in life.seen["without the agent"]
    assert life.seen["without the agent"].startswith("3 ")


def test_a_kernel_that_is_removed_loses_its_boot_entry(life: Life) -> None:
    assert life.seen["removed"].splitlines()[0] == "0", life.seen["removed"]
    assert any(life.seen["release"] in name for name in life.seen["entries"])
    assert "debian.conf" not in life.seen["entries"]  # the image's
