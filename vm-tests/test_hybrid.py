"""A guest for two hosts with hybrid (quantum-safe) keys: first boot, an update, and the other host.

The guest's cryptography library knows no ML-KEM: OpenSSL's program makes the key slots. What opens them
shares no code with that, and no machine has seen them.
"""

from __future__ import annotations

import json

import pytest
from harness import firstboot
from harness.life import Life, newest_is_up
from harness.se_ready import Recipe

DISK_SIZE = 2048  # MiB

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    with firstboot.make_site(tmp_path_factory.mktemp("hybrid"), Recipe(), hybrid=True) as (where, network):
        firstboot.enlarge(where.image, where.disk, DISK_SIZE)
        log = where.directory / "first.log"
        keys = [where.hosts["universal"].key]
        with firstboot.start(where, network, host_keys=keys, log=log) as guest:
            firstboot.wait_for_system(guest, firstboot.FIRST_BOOT_TIMEOUT)
            firstboot.power_off(guest, where.identity)
        life = Life(where, network, {"first boot": log.read_text(errors="replace")})
        live(life)
    return life


def live(life: Life) -> None:
    seen = life.seen
    with life.start("customer-1") as guest:
        seen["first image"] = life.up(guest)
        seen["hosts"] = json.loads(life.shell(guest, "secex hosts list --json"))["hosts"]
        life.shell(guest, "secex kargs --append printk.time=1")
        seen["update"] = life.restart(guest)
        life.power_off(guest)
    with life.start("customer-2") as guest:
        seen["there"] = life.up(guest)
        life.power_off(guest)
    with life.start("universal") as guest:
        seen["another host"] = guest.wait(firstboot.BOOT_TIMEOUT)


def test_first_boot_says_that_hybrid_keys_are_experimental(life: Life) -> None:
    assert "hybrid host keys are experimental" in life.seen["first boot"]
    assert "sdboot built with built-in" in life.seen["first boot"]


def test_each_host_starts_the_guest_and_no_other_does(life: Life) -> None:
    assert newest_is_up(life.seen["first image"])
    assert newest_is_up(life.seen["there"])
    assert life.seen["another host"] == "refused"


def test_an_update_is_for_the_same_hosts(life: Life) -> None:
    assert newest_is_up(life.seen["update"])
    assert life.seen["update"]["running"] == life.seen["first image"]["running"] + 1


def test_the_hosts_are_told_to_be_hybrid(life: Life) -> None:
    hosts = {each["name"]: each for each in life.seen["hosts"]}
    assert sorted(hosts) == ["ibm-z-hostkey-customer-1", "ibm-z-hostkey-customer-2"]
    assert {each["kind"] for each in hosts.values()} == {"hybrid"}
    assert {len(each["hash"]) for each in hosts.values()} == {128}
