"""An owner's recovery keys, made by the real gpg."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from secex_firstboot.basic.files import write_private
from secex_firstboot.ignition import openpgp
from support import openpgp_messages
from support.openpgp_messages import Gpg

_LONG_AGO = ("--faked-system-time", "20200101T000000!")


@dataclass(frozen=True)
class Owner:
    """``gpg`` has the private keys."""

    gpg: Gpg

    def key(self, name: str, *words: str, kind: str = "future-default", usage: str = "default") -> bytes:
        loopback = ["--pinentry-mode", "loopback", "--passphrase", ""]
        ends = "1y" if _LONG_AGO[0] in words else "never"
        self.gpg(*words, *loopback, "--quick-generate-key", name, kind, usage, ends)
        return self.public(name)

    def public(self, name: str) -> bytes:
        return self.gpg("--armor", "--export", name)

    def expired(self, name: str) -> bytes:
        return self.key(name, *_LONG_AGO)

    def revoke(self, name: str) -> bytes:
        listed = self.gpg("--with-colons", "--list-keys", name).decode()
        fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))
        certificate = self.gpg.home / f"openpgp-revocs.d/{fingerprint}.rev"
        self.gpg("--import", stdin=certificate.read_bytes().replace(b":-----BEGIN", b"-----BEGIN"))
        return self.public(name)

    def reads(self, message: bytes, work: Path) -> bytes:
        """What the owner's gpg makes of it, as ``secex recover`` asks it."""
        write_private(work / "message", message)
        return openpgp.decrypt_as_user(openpgp.read_message(work / "message"))


def owner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    """For a fixture."""
    openpgp_messages.confine(monkeypatch)
    for gpg in openpgp_messages.with_a_home():
        monkeypatch.setenv("GNUPGHOME", str(gpg.home))
        yield Owner(gpg)
