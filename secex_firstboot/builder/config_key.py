"""The OpenPGP key that configs for an image are encrypted to: fresh for each build, or given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import is_regular, secret_directory
from secex_firstboot.basic.process import run

_NAME = "SE-ready image"
_CURE = "export one: gpg --armor --export-secret-keys FINGERPRINT; or leave it out, for a fresh one"


@dataclass(frozen=True)
class ConfigKey:
    """``private`` goes into the image alone, ``public`` beside it; both armored."""

    fingerprint: str
    private: bytes
    public: bytes


def key_pair(given: Path | None = None) -> ConfigKey:
    """A fresh key, or the one of a file. Raises Refusal if that is not one private key without passphrase."""
    with keyring() as gpg:
        if given is None:
            run([*gpg, "--passphrase=", "--quick-generate-key", _NAME, "default", "default", "never"])
        else:
            _take(gpg, given)
        listed = run([*gpg, "--with-colons", "--list-secret-keys"])
        fingerprints = re.findall(r"^sec:.*\n(?:grp:.*\n)?fpr:+([0-9A-F]{40,64}):", listed, re.M)
        if len(fingerprints) != 1:
            raise Refusal("SX-BUILD-16", f"{given} has {len(fingerprints)} OpenPGP private keys", _CURE)
        if not re.search(r"^(?:sec|ssb):[^eri]?:(?:[^:]*:){9}[a-zA-Z]*e", listed, re.M):
            raise Refusal("SX-BUILD-17", f"the key of {given} is none to encrypt to", _CURE)
        return ConfigKey(
            fingerprints[0],
            run([*gpg, "--armor", "--export-secret-keys"]).encode(),
            run([*gpg, "--armor", "--export"]).encode(),
        )


def _take(gpg: list[str], given: Path) -> None:
    if not is_regular(given):
        raise Refusal("SX-BUILD-18", f"{given} is missing or no regular file", _CURE)
    run([*gpg, "--passphrase=", "--import", str(given)], ok=(0, 2))


@contextmanager
def keyring() -> Iterator[list[str]]:
    """gpg with a home of its own, and without its agent behind it in the end."""
    with secret_directory() as home:
        try:
            yield ["gpg", f"--homedir={home}", "--batch", "--quiet", "--yes", "--pinentry-mode=loopback"]
        finally:
            run(["gpgconf", f"--homedir={home}", "--kill", "all"])
