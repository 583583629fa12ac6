"""The OpenPGP keys of which one has to sign a config for an image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import is_regular
from secex_firstboot.basic.process import run
from secex_firstboot.builder.config_key import keyring
from secex_firstboot.ignition.signers import Signers

_MOST = 16
_LIMIT = 256 << 10  # bytes of a file: one key, with the signatures of many others
_CURE = "export one public key that signs: gpg --armor --export-options export-minimal --export FINGERPRINT"

# GnuPG: doc/DETAILS, "Format of the colon listings". A capital says what the key can do as a whole, today.
_ABLE_TO_SIGN = re.compile(r"^pub:[^eridn]?:(?:[^:]*:){9}[a-zA-Z]*S[a-zA-Z]*:", re.M)
_FINGERPRINT = re.compile(r"^pub:.*\nfpr:+([0-9A-F]{40}):", re.M)


def given(files: Sequence[Path], *, bound: bool) -> Signers | None:
    """Those of files; None: a config may be anybody's. Raises Refusal if one is not one key to sign with."""
    if bound and not files:
        raise Refusal(
            "SX-BUILD-70", "nobody is named who could bind a config to the image", "--config-signer FILE"
        )
    if len(files) > _MOST:
        raise Refusal("SX-BUILD-71", f"more than {_MOST} may sign a config", "name fewer")
    return Signers(dict(map(_signer, files)), bound) if files else None


def _signer(path: Path) -> tuple[str, bytes]:
    """The fingerprint of its primary key; and the key without what others say of it, armored."""
    if not is_regular(path) or path.stat().st_size > _LIMIT:
        raise Refusal(
            "SX-BUILD-72", f"{path} is missing, no regular file, or larger than a public key", _CURE
        )
    with keyring() as gpg:
        shown = run([*gpg, "--with-colons", "--show-keys", str(path)], ok=(0, 2))
        if re.findall("^(pub|sec):", shown, re.M) != ["pub"]:
            raise Refusal("SX-BUILD-73", f"{path} is not one OpenPGP public key", _CURE)
        run([*gpg, "--import", str(path)], ok=(0, 2))
        listed = run([*gpg, "--with-colons", "--list-keys"])
        found = _FINGERPRINT.findall(listed)
        if len(found) != 1 or not _ABLE_TO_SIGN.search(listed):
            raise Refusal(
                "SX-BUILD-74",
                f"the key of {path} cannot sign: it has expired, was revoked, or is for other use",
                _CURE,
            )
        return found[0], run([*gpg, "--armor", "--export-options", "export-minimal", "--export"]).encode()
