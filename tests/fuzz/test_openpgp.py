"""Nested, spliced and altered OpenPGP messages, put together from real ones, for the real gpg.

The host has the image's public key and the owner's message, and does not know what is in it. Whatever the
host makes of them: nothing of the owner's text comes out but all of it, from the message as the owner made
it; and what is refused, is refused in a sentence that tells nothing.
"""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import strategies as st
from support import fuzzing, needs
from support.openpgp_messages import (
    Gpg,
    Host,
    armored,
    compressed,
    confine,
    flipped,
    literal,
    packet,
    session_keys,
)

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import in_memory
from secex_firstboot.ignition import openpgp, packets
from secex_firstboot.ignition.signers import Signers

SECRETS = [b"correct", b"horse", b"battery", b"staple", b"hunter2", b"swordfish", b"opensesame"]
OWNERS = b'{"ignition": {"version": "3.3.0"}, "a": "' + b" ".join(SECRETS) + b'"}'
HOSTS = b'{"ignition": {"version": "3.3.0"}, "storage": {"files": [{"path": "/etc/hosts"}]}}'

# What a disk is refused for before the private key is used: anybody can see it there.
VISIBLE = re.compile(
    "the config disk (is empty|holds no OpenPGP message):"
    "|the message on the config disk (is cut off|does not say how long it is|is larger than [0-9]+ bytes):"
    "|the OpenPGP data on the config disk is not an encrypted message:"
    "|there is something else behind the message on the config disk:"
    "|the armor of the message on the config disk is damaged:"
    "|the config is encrypted (with a passphrase|to key [0-9A-F]{16}[^:]*; the image's key is [0-9A-F]{16}):"
)


@dataclass(frozen=True)
class Site:
    """``owners`` are the owner's messages, ``others`` whatever else a host may come by.

    ``signed`` is what one of ``signers``, and somebody else, have signed, not encrypted.
    """

    gpg: Gpg
    host: Host
    key: Path
    owners: list[bytes]
    others: list[bytes]
    signed: list[bytes]
    signers: Signers

    def decrypt(self, message: bytes, padding: int = 0, signers: Signers | None = None) -> bytes:
        with tempfile.TemporaryDirectory(prefix="fz-", dir="/tmp") as directory:
            Path(directory).chmod(0o711)
            disk = Path(directory) / "disk"
            disk.write_bytes(message + bytes(padding))
            return openpgp.decrypt(openpgp.read_message(disk), self.key, Path(directory), signers)

    def what_gpg_says(self, message: bytes) -> bytes:
        """By itself, that is, of all layers at once; with a hidden recipient it also ends with an error."""
        argv = ["gpg", "--homedir", str(self.gpg.home), "--batch", "--decrypt"]
        return subprocess.run(argv, input=message, capture_output=True).stdout

    def pieces(self) -> st.SearchStrategy[bytes]:
        """Messages and parts of messages."""
        owners = st.sampled_from(self.owners)
        return st.one_of(
            owners,
            owners.map(lambda message: message[len(session_keys(message)) :]),
            owners.map(session_keys),
            st.sampled_from([*self.others, self.host.session_key_packets, literal(HOSTS)]),
            st.builds(packet, st.integers(0, 63), st.binary(max_size=20)),
            st.binary(max_size=20),
        )

    def messages(self) -> st.SearchStrategy[bytes]:
        return st.recursive(self.pieces(), self.around, max_leaves=4).filter(lambda made: len(made) < 20_000)

    def around(self, inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
        return st.one_of(
            inner.map(self.host.encrypt),
            inner.map(armored),
            st.builds(compressed, inner, st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 33])),
            st.builds(altered, inner, st.integers(-150, 300), st.integers(0, 7)),
            st.builds(lambda made, octets: made[:-octets], inner, st.integers(1, 60)),
            st.lists(inner, min_size=2, max_size=3).map(b"".join),
        )

    def inner_pieces(self) -> st.SearchStrategy[bytes]:
        """What may lie under an encryption, of what a signer has signed, and of the host's own."""
        signed = st.sampled_from([each for message in self.signed for each in in_packets(message)])
        whole = st.sampled_from(self.signed)
        return st.one_of(
            whole,
            whole.map(compressed),
            signed,
            st.builds(altered, whole | signed, st.integers(0, 300), st.integers(0, 7)),
            st.just(literal(HOSTS)),
            st.builds(packet, st.sampled_from([2, 4, 8, 11]), st.binary(max_size=20)),
        )


def in_packets(message: bytes) -> list[bytes]:
    """Each encoded anew."""
    with in_memory("message") as file:
        packets.write(file, message)
        reader, found = packets.Packets(file), []
        while not reader.at_end:
            tag, body = reader.next()
            found.append(packet(tag, b"".join(reader.content(body))))
    return found


def altered(message: bytes, place: int, bit: int) -> bytes:
    return flipped(message, place, bit) if message else message


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    needs.require("gpg", "gpgconf")
    home = Path(tempfile.mkdtemp(prefix="pgp-", dir="/tmp"))
    gpg = Gpg(home)
    key = home / "ignition.asc"
    key.write_bytes(gpg.make_key("image"))
    gpg.make_key("other")
    owners = [
        gpg.encrypt(OWNERS, *words, to=to)
        for words in ([], ["--compress-algo=none"], ["--local-user=other", "--sign"], ["--throw-keyids"])
        for to in (("image",), ("other", "image"))
    ]
    passphrase = ["--pinentry-mode=loopback", "--passphrase=x"]
    others = [gpg.encrypt(HOSTS, to=("other",)), gpg(*passphrase, "--symmetric", stdin=HOSTS)]
    others += [gpg("--local-user=other", "--sign", stdin=HOSTS), gpg("--export", "image")]
    gpg.make_key("signer")
    signed = [
        gpg("--compress-algo=none", f"--local-user={user}", "--sign", stdin=text)
        for user, text in (("signer", OWNERS), ("other", HOSTS))
    ]
    listed = gpg("--with-colons", "--list-keys", "signer").decode()
    fingerprint = re.findall(r"^fpr:+([0-9A-F]{40}):", listed, re.M)[0]
    signers = Signers({fingerprint: gpg("--export", "signer")})
    yield Site(gpg, gpg.host(), key, owners, others, signed, signers)
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(autouse=True)
def confined(monkeypatch: pytest.MonkeyPatch) -> None:
    confine(monkeypatch)


def test_nothing_of_the_owners_text_comes_of_anything_but_the_owners_message(site: Site) -> None:
    texts = [message[len(session_keys(message)) :] for message in site.owners]
    mine = [*site.owners, *map(armored, site.owners), site.host.encrypt(literal(HOSTS))]

    def check(example: tuple[bytes, int]) -> None:
        message, padding = example
        try:
            text = site.decrypt(message, padding)
        except Refusal as refusal:
            assert VISIBLE.match(str(refusal)) or str(refusal) == str(openpgp.refused())
            assert message not in mine
            return
        armor = re.match(rb"-----BEGIN[^\n]*\n(?:[^\n]+\n)*\s*\n([^-=]*=*)\s", message)
        binary = base64.b64decode(armor[1]) if armor else message
        if any(word in text for word in SECRETS):
            assert text == OWNERS
            assert binary.endswith(tuple(texts))
        assert text == site.what_gpg_says(binary)

    examples = st.sampled_from(mine) | site.messages()
    fuzzing.run(st.tuples(examples, st.sampled_from([0, 1, 4096])), check, share=0.4, batch_size=20)


def test_whatever_of_the_owners_is_within_the_hosts_message_gets_one_sentence(site: Site) -> None:
    """The outer layer is whole and opens; the inner one is altered anywhere, in any company."""
    owners = st.builds(altered, st.sampled_from(site.owners), st.integers(-150, 300), st.integers(0, 7))
    neighbours = st.lists(site.pieces(), max_size=2).map(b"".join)
    within = st.tuples(neighbours, owners | owners.map(compressed) | owners.map(armored), neighbours)

    def check(parts: tuple[bytes, bytes, bytes]) -> None:
        with pytest.raises(Refusal) as refused:
            site.decrypt(site.host.encrypt(b"".join(parts)))
        assert str(refused.value) == str(openpgp.refused())

    fuzzing.run(within, check, share=0.3, batch_size=20)


def test_nothing_comes_of_any_message_but_what_a_signer_has_signed(site: Site) -> None:
    """As a host that could look into the owner's message: it has the parts, and any key but the signer's."""

    def check(parts: list[bytes]) -> None:
        within = b"".join(parts)
        try:
            text = site.decrypt(site.host.encrypt(within), signers=site.signers)
        except Refusal as refusal:
            assert str(refusal) == str(openpgp.refused())
            assert within != site.signed[0]
            return
        assert text == OWNERS

    examples = st.just(site.signed[:1]) | st.lists(site.inner_pieces(), min_size=1, max_size=4)
    fuzzing.run(examples, check, share=0.3, batch_size=20)
