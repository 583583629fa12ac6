"""All hosts of the main job's guest are gone, with their keys; its owner has a recovery key, evidence, and a
new host.

The disk is as the hosts left it when they died, while first boot's system ran.
"""

from __future__ import annotations

import json
import subprocess
from base64 import b64encode
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from harness import commands, debian, firstboot, inside, owners_volume, recovery_key, site
from harness.guest import Disk, Guest, Network
from harness.site import Host

LEFT_WITH, MADE = 1, 2  # numbers of the boot images
DOCUMENT = "ibm-z-hostkey-customer-3"
USER_FILE = "640\nfrom the user"
MODULES = ("owner/__init__.py", "owner/recover.py", "contract/evidence.py", "basic/validation.py")


@dataclass(frozen=True)
class Rescue:
    """``directory``: the main job's; ``disk``: a copy of its guest's."""

    directory: Path
    disk: Disk
    logs: Path

    @cached_property
    def evidence(self) -> dict[str, Any]:
        kept: dict[str, Any] = json.loads((self.directory / "report.json").read_text())["evidence"]
        return kept

    def recover(self) -> dict[str, Any]:
        """On a trusted machine: a guest that has the disk, and is none of its hosts."""
        package = debian.REPOSITORY / "secex_firstboot"
        roots, proves = firstboot.trusted(self.directory).iterdir(), firstboot.proof_of_hosts(self.directory)
        facts = {
            "modules": {name: (package / name).read_text() for name in MODULES},
            "recovery key": recovery_key.private(self.directory).read_text(),
            "evidence": self.evidence,
            "documents": {DOCUMENT: base64(self.host("customer-3").document)},
            "roots": {path.name: base64(path) for path in roots},
            "proves": {path.name: base64(path) for path in proves},
        }
        file = self.logs / "facts"
        file.write_text(json.dumps(facts).ljust(1 << 20, "\0"))
        return inside.run(
            debian.REPOSITORY / "vm-tests/inside/recover.py",
            disks=[Disk(file, "facts", format="raw"), self.disk],
            log=self.logs / "recover.log",
            memory_mib=2048,
        )

    def host(self, name: str) -> Host:
        return Host(name, self.directory / "hostkeys")

    def start(self, host: str) -> Guest:
        volume = replace(owners_volume.disk(self.directory), snapshot=True)
        return Guest(
            disks=[self.disk, volume],
            host_keys=[self.host(host).key],
            network=Network(),
            console_log=self.logs / f"{host}.log",
        )

    def shell(self, guest: Guest, command: str) -> str:
        identity = site.make_ssh_identity(self.directory)
        done = guest.ssh(command, identity, timeout=firstboot.BOOT_TIMEOUT)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()


def base64(file: Path) -> str:
    return b64encode(file.read_bytes()).decode()


@pytest.fixture(scope="module")
def rescue(main_job: Path, tmp_path_factory: pytest.TempPathFactory) -> Rescue:
    logs = tmp_path_factory.mktemp("recovery")
    disk = logs / "disk.qcow2"
    left = main_job / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", left, "-F", "qcow2", disk], check=True)
    return Rescue(main_job, Disk(disk, "system"), logs)


@pytest.fixture(scope="module")
def recovered(rescue: Rescue) -> dict[str, Any]:
    return rescue.recover()


@pytest.fixture(scope="module")
def seen(rescue: Rescue, recovered: dict[str, Any]) -> dict[str, Any]:
    """On the new host."""
    with rescue.start("customer-3") as guest:
        firstboot.wait_for_system(guest, firstboot.BOOT_TIMEOUT)
        rescue.shell(guest, "systemctl start secex-firstboot-image.service")
        found = {
            "user file": rescue.shell(guest, "stat -c %a /etc/user-file; cat /etc/user-file"),
            "owner's volume": rescue.shell(guest, f"cat {owners_volume.WHERE}/file"),
            "status": json.loads(rescue.shell(guest, "secex status --json")),
            "update": json.loads(rescue.shell(guest, "secex update --json")),
            "evidence": json.loads(rescue.shell(guest, "secex evidence --json")),
        }
        rescue.shell(guest, "systemctl --no-block poweroff")
        assert guest.wait(firstboot.BOOT_TIMEOUT) == "guest-shutdown"
    return found


def test_the_evidence_is_that_of_the_owners_image(rescue: Rescue) -> None:
    """Which on the way from the publisher's has got the owner's host keys, and no other content."""
    file = rescue.logs / "evidence.json"
    file.write_text(json.dumps(rescue.evidence))
    for image in ("published.json", "se-ready.json"):
        commands.secex("evidence", file, f"--image={rescue.directory / image}")
    (image,) = rescue.evidence["images"]
    assert {len(key) for key in image["host_keys"]} == {128}


def test_a_disk_starts_on_a_host_that_it_was_never_for(
    recovered: dict[str, Any], seen: dict[str, Any]
) -> None:
    assert (recovered["left with"], recovered["made"]) == (LEFT_WITH, MADE)
    images = seen["status"]["boot_images"]
    assert (images["running"], images["starts"]) == (MADE, MADE)
    assert images["newest"] | {"generation": MADE, "state": "up"} == images["newest"]


def test_every_file_is_there(seen: dict[str, Any]) -> None:
    assert seen["user file"] == USER_FILE
    assert seen["owner's volume"] == owners_volume.CONTENT


def test_it_is_for_the_new_host_alone(rescue: Rescue, seen: dict[str, Any]) -> None:
    (host,) = seen["status"]["hosts"]
    assert (host["name"], host["kind"]) == (DOCUMENT, "hybrid")
    with rescue.start("customer-1") as guest:
        assert guest.wait(firstboot.BOOT_TIMEOUT) == "refused"


def test_an_update_finds_nothing_to_do_and_the_evidence_has_the_same_volumes(
    rescue: Rescue, seen: dict[str, Any]
) -> None:
    assert seen["update"] == {"changed": []}
    before, after = rescue.evidence, seen["evidence"]
    assert before["root_hashes"] == after["root_hashes"]
    volume = "file /etc/luks/root"
    assert before["images"][0]["inputs"][volume] == after["images"][0]["inputs"][volume]


def test_no_secret_lies_about_on_the_trusted_machine(recovered: dict[str, Any]) -> None:
    assert not [name for name in recovered["left behind"] if name.endswith(("key", "header"))]
