"""Real messages by the real gpg, and others put together from packets, as a host with the public key can."""

from __future__ import annotations

import bz2
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import warnings
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secex_firstboot.ignition import openpgp
from support import needs

_BLOCK = 16  # bytes, of AES


@cache
def can_unshare() -> bool:
    return bool(shutil.which("unshare")) and (
        subprocess.run(
            ["unshare", "--net", "--ipc", "--pid", "--fork", "true"], capture_output=True
        ).returncode
        == 0
    )


def confine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as possible: in a container, root may not make namespaces."""
    if os.geteuid() == 0 and not can_unshare():
        sandbox = openpgp._SANDBOX
        monkeypatch.setattr(openpgp, "_SANDBOX", sandbox[sandbox.index("setpriv") :])


def with_a_home() -> Iterator[Gpg]:
    """For a fixture: its path is short, as gpg-agent's socket lies below."""
    needs.require("gpg", "gpgconf")
    home = Path(tempfile.mkdtemp(prefix="pgp-", dir="/tmp"))
    yield Gpg(home)
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)
    shutil.rmtree(home, ignore_errors=True)


@dataclass(frozen=True)
class Gpg:
    home: Path

    def __call__(self, *words: str, stdin: bytes = b"") -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--trust-model", "always", *words]
        return subprocess.run(argv, input=stdin, capture_output=True, check=True).stdout

    def make_key(self, user: str, passphrase: str = "") -> bytes:
        loopback = ["--pinentry-mode", "loopback", "--passphrase", passphrase]
        self(*loopback, "--quick-generate-key", user, "future-default", "default", "never")
        return self(*loopback, "--armor", "--export-secret-keys", user)

    def encrypt(self, text: bytes, *words: str, to: tuple[str, ...] = ("image",)) -> bytes:
        return self(*words, *(f"--recipient={user}" for user in to), "--encrypt", stdin=text)

    def host(self, *words: str, to: tuple[str, ...] = ("image",)) -> Host:
        """Somebody who encrypts what he likes to the public keys of others."""
        message = self.encrypt(b"", *words, to=to)
        shown = self("--show-session-key", "--status-fd", "1", "--decrypt", stdin=message)
        found = re.search(rb"\[GNUPG:\] SESSION_KEY 9:([0-9A-F]{64})\n", shown)
        assert found
        return Host(session_keys(message), bytes.fromhex(found[1].decode()))


@dataclass(frozen=True)
class Host:
    """``session_key_packets`` say to the recipients what AES-256 key he uses."""

    session_key_packets: bytes
    session_key: bytes

    def encrypt(self, packets: bytes) -> bytes:
        """RFC 9580, section 5.13.1: as gpg does it, with a modification detection code."""
        clear = b"0123456789abcdefef" + packets + b"\xd3\x14"
        body = self._cfb(clear + hashlib.sha1(clear, usedforsecurity=False).digest())
        return self.session_key_packets + packet(18, b"\x01" + body)

    def encrypt_unprotected(self, packets: bytes) -> bytes:
        """RFC 9580, section 5.7, with its step back after the first block and two bytes."""
        start = self._cfb(b"0123456789abcdefef")
        return self.session_key_packets + packet(9, start + self._cfb(packets, start[2:]))

    def _cfb(self, text: bytes, initial: bytes = bytes(_BLOCK)) -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # newer versions of cryptography move CFB to where it is discouraged
            encryptor = Cipher(algorithms.AES(self.session_key), modes.CFB(initial)).encryptor()
        return encryptor.update(text) + encryptor.finalize()


def packet(tag: int, body: bytes) -> bytes:
    return bytes([0xC0 | tag, 255]) + len(body).to_bytes(4, "big") + body


def literal(text: bytes, mode: bytes = b"b") -> bytes:
    return packet(11, mode + b"\0" + bytes(4) + text)


def _deflated(packets: bytes) -> bytes:
    return zlib.compress(packets, wbits=-15)


COMPRESSIONS: dict[int, Callable[[bytes], bytes]] = {1: _deflated, 2: zlib.compress, 3: bz2.compress}


def compressed(packets: bytes, algorithm: int = 2, times: int = 1) -> bytes:
    for _ in range(times):
        packets = packet(8, bytes([algorithm]) + COMPRESSIONS[algorithm](packets))
    return packets


def armored(packets: bytes) -> bytes:
    digits = b64encode(packets)
    lines = b"\n".join(digits[start : start + 64] for start in range(0, len(digits), 64))
    checksum = b64encode(_crc24(packets).to_bytes(3, "big"))
    return b"-----BEGIN PGP MESSAGE-----\n\n" + lines + b"\n=" + checksum + b"\n-----END PGP MESSAGE-----\n"


def _crc24(text: bytes) -> int:
    """RFC 9580, section 6.1.1; gpg wants it where the digits end without padding."""
    crc = 0xB704CE
    for octet in text:
        crc ^= octet << 16
        for _ in range(8):
            crc = crc << 1 ^ (0x1864CFB if crc & 0x800000 else 0)
    return crc & 0xFFFFFF


def session_keys(message: bytes) -> bytes:
    """The packets that gpg puts before the encrypted data: old format, a length of one or two octets."""
    end = 0
    while message[end] in (0x84, 0x85, 0x8C):
        octets = 2 if message[end] == 0x85 else 1
        end += 1 + octets + int.from_bytes(message[end + 1 : end + 1 + octets], "big")
    return message[:end]


def flipped(message: bytes, place: int, bit: int = 0) -> bytes:
    place %= len(message)
    return message[:place] + bytes([message[place] ^ 1 << bit]) + message[place + 1 :]
