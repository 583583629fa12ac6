"""What a user's config may say about host keys: everything that works, and one document that must not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from harness import firstboot, pki, site, ultravisor
from harness.firstboot import Owner, Served, Site
from harness.guest import SERVICES_ADDRESS, Guest
from harness.se_image import SMALL

# Also the one whose root has blocks smaller than dm-integrity's usual sectors.
RECIPE = replace(SMALL, root_block_size=1024)
PARTS = (*(SMALL.root_content or ()), "./boot")
URL = f"http://{SERVICES_ADDRESS}"
SECURE_URL = f"https://{SERVICES_ADDRESS}"
CRL_URLS = {name: [f"{URL}/{name}.crl"] for name in ("root", "intermediate", "signing-key")}


@dataclass(frozen=True)
class Made:
    where: Site
    tls: site.Tls


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    chain = pki.make_chain(
        datetime.now(UTC),
        intermediate={"crl_urls": CRL_URLS["root"]},
        signing_key={"crl_urls": CRL_URLS["intermediate"]},
    )
    directory = tmp_path_factory.mktemp("host-keys")
    with firstboot.make_site(
        directory, RECIPE, chain=chain, document={"crl_urls": CRL_URLS["signing-key"]}
    ) as (
        where,
        _,
    ):
        firstboot.enlarge(where.image, where.disk, 1024)
        yield Made(where, site.make_tls(SERVICES_ADDRESS))


def pointer_config(owner: Owner, tls: site.Tls, crls: dict[str, bytes]) -> Served:
    """As OpenShift does it: a small config that names the large one, and whom to trust for it.

    The CRLs are where the certificates say.
    """
    hosts = owner.hosts
    proof = {name: owner.chain.certificates()[name] for name in ("intermediate.crt", "signing-key.crt")}
    config: dict[str, Any] = {
        "ignition": {"version": "3.3.0"},
        "kernelArguments": {"shouldExist": ["audit=0"], "shouldNotExist": ["rd.neednet=1"]},
        "storage": {
            "files": [
                {"path": "/etc/user-file", "contents": {"source": "data:,from%20the%20user%0A"}},
                site.host_key_file(hosts["customer-1"]),
                site.host_key_file(hosts["customer-2"], url=f"{SECURE_URL}/customer-2.crt"),
                *site.certificate_files(proof),
            ]
        },
    }
    content = json.dumps(config).encode()
    pointer = {
        "ignition": {
            "version": "3.3.0",
            "config": {"merge": [{"source": f"{SECURE_URL}/config.ign"}]},
            "security": {"tls": {"certificateAuthorities": [{"source": site.data_url(tls.authority)}]}},
        }
    }
    return Served(
        pointer,
        http={f"/{name}": crl for name, crl in crls.items()},
        https={"/config.ign": content, "/customer-2.crt": hosts["customer-2"].document.read_bytes()},
        tls=tls,
    )


def test_a_merged_config_over_https_with_its_own_ca_and_crls_fetched(made: Made, tmp_path: Path) -> None:
    where = made.where
    disk = copy_of(where.disk, tmp_path)
    with started(made, where.chain.crls(), disk, tmp_path / "console.log") as guest:
        built = firstboot.manifest_of(where.tree, PARTS)
        found = firstboot.wait_for_manifest(guest)
        guest.kill()
    assert "host key ibm-z-hostkey-customer-2: SHA-256" in guest.console
    assert "customer-2 from 10.0.2.100: attempt 1 of" in guest.console
    assert "WARNING: root gets integrity sectors of 512 bytes" in guest.console
    assert "WARNING: boot gets" not in guest.console
    assert found["./etc/user-file"]["size"] == len("from the user\n")
    assert firstboot.differences(built, found, only=PARTS)["unexplained"] == []
    sdboot = firstboot.read_sdboot(disk, tmp_path)
    for host in ("customer-1", "customer-2"):
        command_line = ultravisor.unpack(sdboot, where.hosts[host].key).command_line
        assert "audit=0" in command_line.split()
        assert "rd.neednet=1" not in command_line


def test_a_revoked_document_among_good_ones_stops_first_boot_with_the_disk_untouched(
    made: Made, tmp_path: Path
) -> None:
    where = made.where
    disk = copy_of(where.disk, tmp_path)
    revoked = where.hosts["customer-2"].certificate
    crls = where.chain.crls() | {"signing-key.crl": where.chain.signing_key.crl(revoked=[revoked])}
    with started(made, crls, disk, tmp_path / "console.log") as guest:
        guest.wait_for("the host-key document ibm-z-hostkey-customer-2 is revoked: get the current", 900)
        assert guest.wait(300) == "guest-shutdown"
        assert "personalise: " not in guest.console
    subprocess.run(["qemu-img", "compare", "-q", where.disk, disk], check=True)


@contextmanager
def started(made: Made, crls: dict[str, bytes], disk: Path, log: Path) -> Iterator[Guest]:
    """A first boot with the pointer config, where these CRLs are served."""
    where = made.where
    with (
        firstboot.serve(where, lambda owner: pointer_config(owner, made.tls, crls)) as network,
        firstboot.start(
            where, network, disk=disk, host_keys=[where.hosts["universal"].key], log=log
        ) as guest,
    ):
        yield guest


def copy_of(disk: Path, directory: Path) -> Path:
    """A disk that starts as ``disk`` is."""
    copy = directory / "copy.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk, copy], check=True)
    return copy
