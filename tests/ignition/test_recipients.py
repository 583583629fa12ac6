"""Keys that a message is left for: which files are one, and whom gpg encrypts to."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import recovery_keys
from support.recovery_keys import Owner

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition import openpgp, recipients
from secex_firstboot.ignition.recipients import Recipient

PLAIN = b"what opens the disk" * 1000
USER_ID = b"\xb4\x01a"


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    yield from recovery_keys.owner(monkeypatch)


def armored(binary: bytes) -> bytes:
    return Recipient("", binary, b"").armored


def refused(content: bytes) -> str:
    with pytest.raises(Refusal, match=r"the recovery key owner\.asc ") as caught:
        recipients.parse("owner.asc", content)
    return caught.value.message.removeprefix("the recovery key owner.asc ")


def test_only_its_owner_opens_what_is_encrypted_to_a_key(owner: Owner, tmp_path: Path) -> None:
    first, second = (recipients.parse(name, owner.key(name)) for name in ("first", "second"))
    message = openpgp.encrypt(PLAIN, [first, second], Path("/tmp"))
    assert owner.reads(message, tmp_path) == PLAIN
    owner.gpg("--yes", "--delete-secret-keys", *fingerprints(owner, "first"))
    assert owner.reads(message, tmp_path) == PLAIN
    owner.gpg("--yes", "--delete-secret-keys", *fingerprints(owner, "second"))
    with pytest.raises(Refusal, match="gpg has no key that opens it, or it was altered: it is for key "):
        owner.reads(message, tmp_path)


def fingerprints(owner: Owner, name: str) -> list[str]:
    listed = owner.gpg("--with-colons", "--list-keys", name).decode().splitlines()
    return [next(line.split(":")[9] for line in listed if line.startswith("fpr:"))]


def test_a_changed_message_is_refused(owner: Owner, tmp_path: Path) -> None:
    message = bytearray(openpgp.encrypt(PLAIN, [recipients.parse("a", owner.key("a"))], Path("/tmp")))
    message[-30] ^= 1
    with pytest.raises(Refusal, match="it was altered"):
        owner.reads(bytes(message), tmp_path)


def test_what_is_in_a_message_does_not_show_in_its_length(owner: Owner) -> None:
    key = recipients.parse("a", owner.key("a"))
    lengths = {len(openpgp.encrypt(plain, [key], Path("/tmp"))) for plain in (bytes(9999), PLAIN[:9999])}
    assert len(lengths) == 1


def test_a_key_that_nothing_can_be_encrypted_to_is_refused(owner: Owner) -> None:
    owner.key("revoked")
    keys = {
        "expired.asc": owner.expired("expired"),
        "revoked.asc": owner.revoke("revoked"),
        "for signatures.asc": owner.key("signs", kind="ed25519", usage="sign"),
    }
    for name, content in keys.items():
        key = recipients.parse(name, content)
        with pytest.raises(Refusal, match=f"gpg does not encrypt to {name}: use a recovery key that has not"):
            openpgp.encrypt(PLAIN, [key], Path("/tmp"))


def test_a_file_is_one_public_key_and_nothing_else(owner: Owner) -> None:
    good = owner.key("good")
    found = recipients.parse("owner.asc", good.replace(b"\n", b"\r\n"))
    assert recipients.parse("owner.asc", found.armored) == found
    assert refused(good + good) == "is no armored OpenPGP public key, or more than one"
    assert refused(good + b"more") == "is no armored OpenPGP public key, or more than one"
    assert refused(found.packets) == "is no armored OpenPGP public key, or more than one"
    assert refused(armored(found.packets * 2)) == "is not exactly one public key"
    assert refused(armored(USER_ID + found.packets)) == "is not exactly one public key"
    assert refused(armored(found.packets[:-1])) == "is damaged"
    assert refused(armored(found.packets + b"\xcb\x01a")) == "has packets that belong to no public key"
    assert refused(b"-----BEGIN" + bytes(recipients.LIMIT)) == f"is larger than {recipients.LIMIT} bytes"
    body = base64.b64encode(found.packets)
    assert refused(good.replace(body[:8], body[:7])) == "is damaged"


def test_a_private_key_is_refused_also_without_its_own_armor(owner: Owner) -> None:
    owner.key("mine")
    secret = owner.gpg("--pinentry-mode", "loopback", "--passphrase", "", "--export-secret-keys", "mine")
    assert refused(armored(secret)) == "holds a PRIVATE key"
    assert refused(b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n") == "holds a PRIVATE key"


def test_no_key_is_there_twice_nor_are_there_too_many(owner: Owner) -> None:
    key, other = (recipients.parse(name, owner.key(name)) for name in ("a", "b"))
    recipients.check([key, other])
    again = recipients.parse("c", key.armored)
    with pytest.raises(Refusal, match="the recovery key c is the same key as a: leave one"):
        recipients.check([key, other, again])
    with pytest.raises(Refusal, match=re.escape("more than 8 recovery keys")):
        recipients.check([key] * 9)
