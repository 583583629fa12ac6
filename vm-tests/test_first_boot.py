"""The main job in a real guest, from the SE-ready image to the second boot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import demo
import jsonschema
import pytest
from harness import debian, owners_volume


@pytest.fixture(scope="module")
def report(main_job: Path) -> dict[str, object]:
    report = json.loads((main_job / "report.json").read_text())
    assert isinstance(report, dict)
    return report


def test_the_guest_is_provisioned_and_starts_again_on_the_customers_host(report: dict[str, object]) -> None:
    proof = report["proof"]
    assert isinstance(proof, dict)
    assert [line for line, holds in proof.items() if not holds] == []
    assert len(proof) >= 10


def test_the_second_boot_needs_no_header_on_the_disk(report: dict[str, dict[str, object]]) -> None:
    """They were zeroed in between; the volumes opened with the headers inside sdboot all the same."""
    assert report["second boot"]["unit"] == "active\nit runs\nmore"


@pytest.mark.long
def test_every_file_of_the_built_root_is_as_it_was(
    report: dict[str, dict[str, dict[str, list[str]]]],
) -> None:
    """Those of a smaller root, see SMALL, are compared in many tests."""
    different = report["files"]["different"]
    assert different["unexplained"] == []
    assert "./etc/user-file" in different["Ignition"]
    assert "./etc/luks/root" in different["agent"]


def test_boot_images_for_hybrid_hosts_are_made_by_what_the_system_has_and_said_to_be_experimental(
    main_job: Path,
) -> None:
    """Its cryptography library knows no ML-KEM: OpenSSL's program makes the key slots. What opens them here
    shares no code with that, and no machine has seen them."""
    console = (main_job / "console-1.log").read_text(errors="replace")
    assert "hybrid host keys are experimental" in console
    assert "sdboot built with built-in" in console


def test_first_boot_fits_in_a_guest_with_1_gib(report: dict[str, dict[str, int]]) -> None:
    assert 0 < report["agent"]["peak_memory_mib"] < report["agent"]["total_memory_mib"] <= 1024


@pytest.mark.long
def test_a_dry_run_half_way_says_what_is_done_and_what_comes(report: dict[str, dict[str, object]]) -> None:
    steps = report["dry run half way"]["steps"]
    assert isinstance(steps, list)
    states = {row["step"]: row["state"] for row in steps}
    assert states["platform"] == states["config"] == "done"
    assert states["hostkeys"] == states["verity"] == "ready"
    assert states["encrypt root"] == states["seal"] == "waiting"


def test_a_dry_run_in_the_provisioned_system_says_that_all_is_done(
    report: dict[str, dict[str, object]],
) -> None:
    steps = report["dry run afterwards"]["steps"]
    assert isinstance(steps, list)
    assert {row["state"] for row in steps} == {"done"}


def test_the_provisioned_system_has_no_local_login(report: dict[str, object]) -> None:
    """Though what forbids them on root was gone, see demo.spoil: the boot image has it, too."""
    console = report["console"]
    assert isinstance(console, dict)
    assert set(console["units"].values()) == {"masked"}
    assert console == console | {
        "local sshd": "",
        "enabled by presets": "disabled",
        "running": "",
        "sysrq": "0",
        "console log level": "4",
        "prompt": False,
        "emergency mode ends in": "guest-shutdown",
    }


def test_each_guest_makes_its_own_ssh_host_key(report: dict[str, dict[str, str]]) -> None:
    keys = report["console"]["host keys"].split()
    assert keys == [f"/etc/ssh/ssh_host_ed25519_key{suffix}" for suffix in ("", ".pub")]
    assert not list(debian.build().glob("etc/ssh/ssh_host_*"))


def test_a_later_boot_has_no_network_in_its_initramfs(report: dict[str, str]) -> None:
    assert report["network in the initramfs"] == ""


def test_a_provisioned_guest_powers_off_when_it_is_told_to(report: dict[str, str]) -> None:
    assert report["first power-off"] == "guest-shutdown"


def test_what_a_power_cut_at_the_end_left_is_gone_once_the_system_has_started(report: dict[str, str]) -> None:
    assert report["traces"] == "/etc/luks/sealed"


def test_a_volume_of_the_owners_opens_with_the_header_on_root_whatever_the_host_writes(
    report: dict[str, object],
) -> None:
    """The host's header has a null cipher: the owner's key opens it, and what is written then is plain."""
    assert report["owner's volume"] == {
        "cipher on the disk": "cipher_null-ecb",
        "opens by itself": "yes",
        "cipher": "aes-xts-plain64",
        "content": owners_volume.CONTENT,
        "unit": "luks,headless=yes,header=/etc/luks/my-data.header",
        "secrets": "600\n600",
        "with a foreign header": ["active\nopen", owners_volume.WRITTEN_LATER],
        "with another mode on record": "failed",
    }


def test_an_update_is_made_by_itself_once_something_has_changed_and_is_what_the_next_start_has(
    report: dict[str, Any],
) -> None:
    assert report["update"] == {"before": [], "by itself": ["changed: command line"], "after": []}
    first, second = (report[boot]["command_line"].split() for boot in ("first boot", "second boot"))
    assert demo.ADDED_ARGUMENT not in first
    assert {demo.ADDED_ARGUMENT, "secex.generation=2"} <= {*second}


def test_after_an_update_that_does_not_come_up_the_last_good_image_is_up_and_says_so(
    report: dict[str, Any],
) -> None:
    tried, third = report["broken update"], report["third boot"]
    assert (tried["before"], tried["after"]) == ([], [])
    assert tried["by itself"] == ["changed: command line"]
    assert tried["ends in"] == "guest-panic"
    assert "secex.generation=2" in third["command_line"].split()
    images = third["images"]
    assert (images["running"], images["starts"], images["fallback"]["state"]) == (2, 2, "up")
    assert (images["newest"]["generation"], images["newest"]["state"]) == (3, "failed")
    assert "boot image 3" in third["motd"]
    assert "was tried and did not come up" in third["motd"]
    assert "is up to date, but did not come up" in third["up to date"]


def test_the_host_finds_nothing_of_it_on_its_disk(main_job: Path) -> None:
    disk = Path(owners_volume.disk(main_job).path)
    assert owners_volume.holds(disk, "aes-xts-plain64")  # in the header: what is there is found
    assert not owners_volume.holds(disk, owners_volume.CONTENT)
    assert not owners_volume.holds(disk, owners_volume.WRITTEN_LATER)


def test_in_the_running_system_root_grows_to_the_end_of_its_volume(report: dict[str, dict[str, str]]) -> None:
    growth = report["growth"]
    assert growth["state"] == "inactive"  # and not "failed"
    assert "all that it can use" in growth["journal"]
    assert "nothing left to grow" in growth["noted"]
    assert int(growth["volume"]) * 0.9 < int(growth["file system"]) <= int(growth["volume"])


def test_a_provisioned_guest_says_how_it_stands(report: dict[str, Any]) -> None:
    status, hosts = report["status"]["json"], report["status"]["hosts"]
    assert isinstance(status, dict), status
    schema = json.loads((debian.REPOSITORY / "docs/status.schema.json").read_text())
    jsonschema.validate(status, schema, jsonschema.Draft202012Validator)
    assert status["untold"] == []
    assert status["running"] and status["sealed"]
    assert {row["state"] for row in status["dry_run"]["steps"]} == {"done"}
    assert {host["name"]: (host["kind"], host["hash"]) for host in status["hosts"]} == {
        f"ibm-z-hostkey-{name}": ("hybrid", hosts[name]) for name in ("customer-1", "customer-2")
    }
    assert status["first_boot"] == report["agent"]
    assert status["versions"]["kernel"] in status["versions"]["kernels"]
    assert all(status["versions"].values())


def test_the_status_of_volumes_is_that_of_mappings_and_detached_headers(report: dict[str, Any]) -> None:
    status = report["status"]["json"]
    volumes = {volume["name"]: volume for volume in status["volumes"]}
    assert list(volumes) == ["boot", "root", owners_volume.NAME]
    for name, volume in volumes.items():
        assert volume["file"] == f"/etc/luks/{name}" + ".header" * (name == owners_volume.NAME)
        assert volume["mapping"]["path"] == f"/dev/mapper/{name}"
        assert volume["mapping"]["as_recorded"] is True
        assert volume["header"]["cipher"] == "aes-xts-plain64"
        integrity = "none" if name == owners_volume.NAME else "hmac(sha256)"
        assert volume["header"]["integrity"] == integrity
        assert volume["header"]["sector_size"] in (512, 4096)
    growth = status["growth"]
    assert (growth["setting"], growth["grown"]) == ("background", True)
    assert growth["volume_size"] == volumes["root"]["mapping"]["size"] == int(report["growth"]["volume"])
    assert growth["volume_size"] * 0.9 < growth["file_system_size"] <= growth["volume_size"]


def test_the_status_for_people_fits_a_terminal(report: dict[str, Any]) -> None:
    page = report["status"]["page"]
    assert page and all(len(line) <= 100 for line in page)
    assert report["status"]["hosts"]["customer-1"] in "".join(line.strip() for line in page)
    assert report["status"]["without a first boot"] == 3


def test_the_work_directory_of_a_demo_is_what_the_readme_says(report: object) -> None:
    assert Path(demo.OUTPUT).parts[-2:] == ("build", "demo")
