"""The step that fetches the host-key documents: what it says, and what it keeps of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from harness import pki
from support import TEST_VECTORS, host_keys, needs, recovery_keys
from support.machine import (
    CONFIG,
    FIRST_BOOT,
    HOST_KEY,
    Machine,
    observe,
    put,
)
from support.recovery_keys import Owner

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context
from secex_firstboot.agent.steps.hostkeys import HostKeys
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract import paths
from secex_firstboot.contract.dry_run import State
from secex_firstboot.hostkeys.key import EXPERIMENTAL
from secex_firstboot.ignition import ownership

VECTORS = TEST_VECTORS / "se-image"
HOST_A, HOST_B = ((VECTORS / f"host-{name}.crt").read_bytes() for name in "ab")
HYBRID = b"".join(
    each.public_bytes(Encoding.PEM)
    for each in x509.load_pem_x509_certificates(
        (TEST_VECTORS / "se-header-v2" / "host-hybrid.crt").read_bytes()
    )
)
DER_B = x509.load_pem_x509_certificate(HOST_B).public_bytes(Encoding.DER)


@pytest.fixture(autouse=True)
def runtime(machine: Machine) -> None:
    places.RUNTIME.mkdir(parents=True)


def fetch(**documents: bytes) -> None:
    """Perform the step with these documents in the config, without a proof."""
    give({f"ibm-z-hostkey-{name}": content for name, content in documents.items()})
    HostKeys().perform(Context("secex.hostkey_verify=no"))


def give(files: dict[str, bytes], *more: dict[str, Any]) -> None:
    """Make a merged config with these files below /etc/se-hostkeys, and ``more`` entries of files."""
    entries = [
        {
            "path": f"/etc/se-hostkeys/{name}",
            "contents": {"source": "data:;base64," + base64.b64encode(content).decode()},
        }
        for name, content in files.items()
    ]
    merged = {"ignition": {"version": "3.3.0"}, "storage": {"files": [*entries, *more]}}
    put(places.IGNITION_MERGED_CONFIG, json.dumps(merged))


def test_a_document_is_kept_as_it_was_parsed_and_not_as_it_came() -> None:
    fetch(a=b"\n" + HOST_A.replace(b"\n", b"\r\n"), b=DER_B)
    assert {path.name: path.read_bytes() for path in places.HOST_KEYS.iterdir()} == {
        "ibm-z-hostkey-a": HOST_A,
        "ibm-z-hostkey-b": HOST_B,
    }


def test_a_document_with_two_faces_is_not_kept() -> None:
    with pytest.raises(Refusal, match="ibm-z-hostkey-a holds something else beside its certificate"):
        fetch(a=DER_B + HOST_A)
    assert not places.HOST_KEYS.exists()


def test_what_the_host_can_change_on_its_way_is_warned_of_and_nothing_below_se_hostkeys() -> None:
    """Nothing but the document is fetched by this step: Ignition fetches the rest, later."""
    contents = {"source": "http://127.0.0.1:1/secret"}
    warnings: list[str] = []
    context = Context("secex.hostkey_verify=no", warn=warnings.append)
    give({"ibm-z-hostkey-a": HOST_A}, {"path": "/etc/se-hostkeys/more", "contents": contents})
    with pytest.raises(Refusal, match=r"storage\.files\[1\]\.contents comes over http without"):
        HostKeys().perform(context)
    assert not places.HOST_KEYS.exists()
    give({"ibm-z-hostkey-a": HOST_A}, {"path": "/etc/motd", "contents": contents})
    HostKeys().perform(context)
    assert warnings[0].startswith("storage.files[1].contents comes over http without verification.hash")


def test_hybrid_documents_are_kept_and_said_to_be_experimental() -> None:
    warnings: list[str] = []
    said: list[str] = []
    give({"ibm-z-hostkey-a": HYBRID})
    HostKeys().perform(Context("secex.hostkey_verify=no", warn=warnings.append, say=said.append))
    assert (places.HOST_KEYS / "ibm-z-hostkey-a").read_bytes() == HYBRID
    assert EXPERIMENTAL in warnings
    assert any(line.startswith("hybrid host key ibm-z-hostkey-a: ") for line in said)


def test_documents_of_two_kinds_are_not_kept() -> None:
    with pytest.raises(Refusal, match="classical: ibm-z-hostkey-a; hybrid: ibm-z-hostkey-b"):
        fetch(a=HOST_A, b=HYBRID)
    assert not places.HOST_KEYS.exists()


def test_more_hybrid_documents_than_an_image_takes_are_not_kept() -> None:
    """Said here, and not when the image is made."""
    documents = {f"h{number}": host_keys.certify_hybrid(f"h{number}") for number in range(5)}
    with pytest.raises(Refusal, match="5 hybrid host keys are given, an image takes 4"):
        fetch(**documents)
    assert not places.HOST_KEYS.exists()
    del documents["h0"]
    fetch(**documents)


def test_a_machine_that_takes_no_header_of_their_version_is_refused() -> None:
    put(places.THIS_HOSTS_HEADER_VERSIONS, "8000000000000000\n")
    with pytest.raises(Refusal, match="no SE header of version 0x200, which hybrid host keys need"):
        fetch(a=HYBRID)
    assert not places.HOST_KEYS.exists()
    fetch(a=HOST_A)


@needs.programs("openssl")
def test_revocation_lists_that_are_given_do_where_none_can_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens where the certificates say that the lists are: tcpmux(1) on the loopback."""
    url = ["http://127.0.0.1:1/a.crl"]
    chain = pki.make_chain(datetime.now(UTC), intermediate={"crl_urls": url}, signing_key={"crl_urls": url})
    monkeypatch.setattr(paths, "CERTIFICATES", tmp_path)
    (tmp_path / "root.crt").write_bytes(chain.certificates()["root.crt"])
    document = pki.pem(chain.document(pki.host_key("a").public_key()))
    given = {f"certs/{name}": content for name, content in chain.certificates().items()}
    lists = {f"certs/{name}": content for name, content in chain.crls().items()}
    said: list[str] = []
    give({"ibm-z-hostkey-a": document} | given | lists)
    HostKeys().perform(Context("", say=said.append))
    assert "a newer certificate revocation list, for 10 s at most, from 127.0.0.1: attempt 1 of 1" in said
    assert any(line.endswith("those that are given count") for line in said)
    assert (places.HOST_KEYS / "ibm-z-hostkey-a").read_bytes() == document


# --- what it says of what it sees ---


def test_hostkeys_wait_for_the_merged_config(machine: Machine) -> None:
    assert observe(machine, HostKeys()).state is State.WAITING


def test_a_config_that_names_no_host_key_is_refused(machine: Machine) -> None:
    put(places.IGNITION_MERGED_CONFIG, CONFIG % '{"path": "/etc/motd"}')
    with pytest.raises(Refusal, match="names no host key"):
        observe(machine, HostKeys())


def test_hostkeys_are_done_when_every_document_is_there(machine: Machine) -> None:
    put(places.IGNITION_MERGED_CONFIG, CONFIG % f"{HOST_KEY % 'a'}, {HOST_KEY % 'b'}")
    assert observe(machine, HostKeys()).detail == (
        "fetch ibm-z-hostkey-a, ibm-z-hostkey-b; "
        "no recovery keys: nothing is left that opens the disk on another host"
    )
    put(places.HOST_KEYS / "ibm-z-hostkey-a")
    assert observe(machine, HostKeys()).state is State.READY
    put(places.HOST_KEYS / "ibm-z-hostkey-b")
    assert observe(machine, HostKeys()).done


def test_no_document_is_kept_unless_all_are_good(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "device_numbers", lambda disk: frozenset())
    context = Context(f"{FIRST_BOOT} secex.hostkey_verify=no")
    good = (VECTORS / "host-a.crt").read_text().replace("\n", "%0A").replace(" ", "%20")
    entry = '{"path": "/etc/se-hostkeys/ibm-z-hostkey-%s", "contents": {"source": "data:,%s"}}'
    put(places.IGNITION_MERGED_CONFIG, CONFIG % f"{entry % ('a', good)}, {entry % ('b', 'garbage')}")
    with pytest.raises(Refusal, match="ibm-z-hostkey-b"):
        HostKeys().perform(context)
    assert not places.HOST_KEYS.exists()
    put(places.IGNITION_MERGED_CONFIG, CONFIG % (entry % ("a", good)))
    HostKeys().perform(context)
    assert (places.HOST_KEYS / "ibm-z-hostkey-a").read_bytes() == (VECTORS / "host-a.crt").read_bytes()
    assert observe(machine, HostKeys()).done


# --- the owner's recovery keys ---


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    yield from recovery_keys.owner(monkeypatch)


def test_a_recovery_key_is_kept_once_it_could_be_encrypted_to(machine: Machine, owner: Owner) -> None:
    key = owner.key("owner")
    give({"ibm-z-hostkey-a": HOST_A, "recovery/owner.asc": key.replace(b"\n", b"\r\n")})
    assert observe(machine, HostKeys()).detail == "fetch ibm-z-hostkey-a; recovery keys: owner.asc"
    HostKeys().perform(Context("secex.hostkey_verify=no"))
    assert [path.name for path in places.RECOVERY_KEYS.iterdir()] == ["owner.asc"]
    assert observe(machine, HostKeys()).done


def test_one_that_is_not_to_be_used_is_refused_before_anything_is_kept(owner: Owner) -> None:
    for key in (owner.expired("expired"), b"no key"):
        give({"ibm-z-hostkey-a": HOST_A, "recovery/owner.asc": key})
        with pytest.raises(Refusal, match=r"owner\.asc"):
            HostKeys().perform(Context("secex.hostkey_verify=no"))
        assert not places.HOST_KEYS.exists()
        assert not places.RECOVERY_KEYS.exists()
