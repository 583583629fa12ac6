"""All hosts of a guest are gone, with their keys; its owner has a recovery key, evidence, and a new host."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import debian, firstboot, inside, site
from harness.firstboot import Owner, Served, Site
from harness.guest import Disk, Network
from harness.life import Life

DISK_SIZE = 1280  # MiB
USER_FILE = "/etc/user-file"
CONTENT = "what the owner wants back"
THIRD = "customer-3"
MODULES = ("owner/__init__.py", "owner/recover.py", "contract/evidence.py")

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("recovery")
    with (
        _recovery_key() as (public, secret),
        firstboot.make_site(directory, configure=lambda owner: _config(owner, public)) as (where, network),
    ):
        evidence = _live(where, network)
        recovered = _recover(where, secret, evidence)
    life = Life(where, Network(), {"evidence": evidence, "recovered": recovered})
    with life.start(THIRD) as guest:
        life.seen["up"] = life.up(guest)
        life.seen["user file"] = life.shell(guest, f"cat {USER_FILE}")
        life.seen["written later"] = life.shell(guest, "cat /root/later")
        life.seen["hosts"] = json.loads(life.shell(guest, "secex hosts list --json"))["hosts"]
        life.seen["update"] = json.loads(life.shell(guest, "secex update --json"))
        life.seen["evidence afterwards"] = json.loads(life.shell(guest, "secex evidence --json"))
        life.power_off(guest)
    with life.start("customer-1") as guest:
        life.seen["on the old host"] = guest.wait(firstboot.BOOT_TIMEOUT)
    return life.seen


@contextmanager
def _recovery_key() -> Iterator[tuple[bytes, str]]:
    """A fresh one: the public key, and the private one; its directory has a short path, for gpg-agent."""
    home = Path(tempfile.mkdtemp(prefix="gpg-", dir="/tmp"))
    gpg = ["gpg", "--homedir", str(home), "--batch", "--pinentry-mode", "loopback", "--passphrase", ""]
    try:
        subprocess.run(
            [*gpg, "--quick-generate-key", "recovery", "future-default", "default", "never"], check=True
        )
        public, secret = (
            subprocess.run(
                [*gpg, "--armor", f"--export{kind}", "recovery"], check=True, capture_output=True
            ).stdout
            for kind in ("", "-secret-keys")
        )
        yield public, secret.decode()
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)
        shutil.rmtree(home, ignore_errors=True)


def _config(owner: Owner, public: bytes) -> Served:
    served = firstboot.plain_config(owner)
    served.config["storage"]["files"] += [
        {
            "path": "/etc/se-hostkeys/recovery/owner.asc",
            "contents": {"source": site.data_url(public)},
        },
        {"path": USER_FILE, "contents": {"source": site.data_url(CONTENT.encode())}},
    ]
    return served


def _live(where: Site, network: Network) -> dict[str, Any]:
    """First boot, and something that the owner writes; the evidence."""
    firstboot.enlarge(where.image, where.disk, DISK_SIZE)
    key = where.hosts["universal"].key
    log = where.directory / "first.log"
    with firstboot.start(where, network, host_keys=[key], log=log) as guest:
        firstboot.wait_for_system(guest, firstboot.FIRST_BOOT_TIMEOUT)
        life = Life(where, network)
        life.shell(guest, f"echo '{CONTENT}' > /root/later; sync")
        evidence: dict[str, Any] = json.loads(life.shell(guest, "secex evidence --json"))
        life.power_off(guest)
    return evidence


def _recover(where: Site, secret: str, evidence: dict[str, Any]) -> dict[str, Any]:
    """On a trusted machine: a guest that has the disk, and is none of its hosts."""
    third = site.make_host(THIRD, where.directory / "hostkeys", where.chain)
    certificates = where.chain.certificates() | where.chain.crls()
    package = debian.REPOSITORY / "secex_firstboot"
    facts = {
        "modules": {name: (package / name).read_text() for name in MODULES},
        "recovery key": secret,
        "evidence": evidence,
        "documents": {f"ibm-z-hostkey-{THIRD}": third.document.read_text()},
        "roots": {"root.crt": certificates.pop("root.crt").decode()},
        "proves": {name: content.decode() for name, content in certificates.items()},
    }
    file = where.directory / "facts"
    file.write_text(json.dumps(facts).ljust(1 << 20, "\0"))
    return inside.run(
        debian.REPOSITORY / "vm-tests/inside/recover.py",
        disks=[Disk(file, "facts", format="raw"), Disk(where.disk, "system")],
        log=where.directory / "recover.log",
        memory_mib=2048,
    )


def test_a_disk_starts_on_a_host_that_it_was_never_for(seen: dict[str, Any]) -> None:
    assert (seen["recovered"]["left with"], seen["recovered"]["made"]) == (1, 2)
    assert seen["up"]["running"] == 2
    assert seen["up"]["newest"]["state"] == "up"


def test_every_file_is_there(seen: dict[str, Any]) -> None:
    assert seen["user file"] == seen["written later"] == CONTENT


def test_it_is_for_the_new_host_alone(seen: dict[str, Any]) -> None:
    assert [each["name"] for each in seen["hosts"]] == [f"ibm-z-hostkey-{THIRD}"]
    assert seen["hosts"][0]["verdict"] == "valid"
    assert seen["on the old host"] != "guest-shutdown"


def test_an_update_finds_nothing_to_do_and_the_evidence_has_the_same_volumes(seen: dict[str, Any]) -> None:
    assert seen["update"] == {"changed": []}
    before, after = seen["evidence"], seen["evidence afterwards"]
    assert before["root_hashes"] == after["root_hashes"]
    volume = "file /etc/luks/root"
    assert before["images"][0]["inputs"][volume] == after["images"][0]["inputs"][volume]


def test_no_secret_lies_about_on_the_trusted_machine(seen: dict[str, Any]) -> None:
    assert not [name for name in seen["recovered"]["left behind"] if name.endswith(("key", "header"))]
