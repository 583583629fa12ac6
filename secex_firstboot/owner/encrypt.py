"""``secex encrypt``: a config as the message that an image's first boot opens. Its size tells little."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import secret_directory
from secex_firstboot.basic.process import ToolError, run
from secex_firstboot.contract.metadata import Metadata
from secex_firstboot.hostkeys import certificates
from secex_firstboot.ignition.signers import FOR_IMAGE

_LEAST = 64 << 10  # bytes
_BLOCK = 512  # bytes: what a disk consists of

# Nothing of gpg.conf: another recipient there would read the config, compression would undo the padding.
_GPG = ("gpg", "--batch", "--yes", "--quiet", "--no-options")
_PRIMARY = r"^{}:(?:.*\n)(?:grp:.*\n)?fpr:+([0-9A-F]{{40,64}}):"


@dataclass(frozen=True)
class Signing:
    """``key`` as gpg's --local-user takes it, ``fingerprint`` of its primary key.

    ``expires``: 30d, 8w, 6m or 1y from now, or at the end of a day (UTC), 2027-12-31.
    """

    key: str
    fingerprint: str
    expires: str | None = None

    def options(self, config_key: str) -> list[str]:
        bound = ["--sign", f"--local-user={self.key}", f"--sig-notation={FOR_IMAGE}={config_key}"]
        return [*bound, "--digest-algo=SHA512", *self._until()]

    def _until(self) -> list[str]:
        if not self.expires:
            return []
        day = self.expires.replace("-", "")
        return [f"--default-sig-expire={self.expires if day == self.expires else f'{day}T235959'}"]


@dataclass(frozen=True)
class Recipient:
    """The key that configs for an image are encrypted to: its file as it was read, and its fingerprint."""

    public: bytes
    fingerprint: str


def recipient(file: Path, metadata: Metadata | None) -> Recipient:
    """Raises Refusal if it is not one public key, or not that of the metadata."""
    public = certificates.read_file(file)
    with secret_directory() as home:
        (home / "key").write_bytes(public)
        listed = run(
            [*_GPG, f"--homedir={home}", "--with-colons", "--show-keys", home / "key"], ok=range(256)
        )
    found = re.findall(_PRIMARY.format("pub"), listed, re.MULTILINE)
    if len(found) != 1:
        raise Refusal(
            "SX-OWNER-05",
            f"{file} has {len(found)} OpenPGP public keys",
            "--key names the NAME.pub.asc that came with the image",
        )
    if metadata and metadata.config_key != found[0]:
        raise Refusal(
            "SX-OWNER-06",
            f"{file} is key {found[0]}, and the image's metadata name {metadata.config_key or 'none'}",
            "get both again from who published the image; one that is not sealed has none: secex seal",
        )
    return Recipient(public, found[0])


def signing(key: str, expires: str | None, metadata: Metadata | None) -> Signing:
    """With a private key that the user's gpg has, or a smart card. Raises Refusal."""
    try:
        listed = run([*_GPG, "--with-colons", "--list-secret-keys", "--", key])
    except ToolError:
        listed = ""
    found = re.findall(_PRIMARY.format("sec"), listed, re.MULTILINE)
    if len(found) != 1:
        raise Refusal(
            "SX-OWNER-07",
            f"gpg has {len(found)} private keys for {key}",
            "name one by its fingerprint: gpg --list-secret-keys",
        )
    signers = metadata.config_signers if metadata else ()
    if signers and found[0] not in signers:
        raise Refusal(
            "SX-OWNER-08",
            f"the image takes no config that key {found[0]} has signed",
            f"sign with one of {', '.join(signers)}",
        )
    return Signing(key, found[0], expires)


def padded(text: bytes) -> bytes:
    """With white space behind it, which Ignition takes, up to a power of two: one of eleven sizes.

    The largest that there may be is itself a power of two, ignition.openpgp.CONFIG_LIMIT.
    """
    return text.ljust(max(_LEAST, 1 << (len(text) - 1).bit_length()), b" ")


def encrypt(text: bytes, key: Recipient, signer: Signing | None) -> bytes:
    """The message, armored, with zeros behind it: what the config disk has on it."""
    with secret_directory() as work:
        (work / "key").write_bytes(key.public)
        (work / "config").write_bytes(padded(text))
        # Who does not sign needs no keyring.
        who = signer.options(key.fingerprint) if signer else [f"--homedir={work}"]
        run(
            [
                *_GPG,
                *who,
                *("--encrypt", f"--recipient-file={work / 'key'}", "--compress-algo=none"),
                *("--armor", f"--output={work / 'message'}"),
                work / "config",
            ],
            environment=_terminal(),
        )
        message = (work / "message").read_bytes()
    return message + bytes(-len(message) % _BLOCK)


def _terminal() -> dict[str, str]:
    """Where pinentry asks, which has no other terminal than ours: gpg-agent(1)."""
    return {"GPG_TTY": os.ttyname(0)} if "GPG_TTY" not in os.environ and os.isatty(0) else {}
