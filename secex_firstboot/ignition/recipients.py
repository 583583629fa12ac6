"""OpenPGP public keys that something is encrypted to: each file is one key and nothing else.

What a key may consist of: RFC 9580, section 10.1 (transferable public keys), the same as RFC 4880's 11.1.
Whether it can be encrypted to, gpg says: see ``openpgp.encrypt``.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection
from dataclasses import dataclass

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import in_memory
from secex_firstboot.ignition import packets
from secex_firstboot.ignition.packets import Packets

LIMIT = 64 << 10  # bytes of a file
MOST = 8

_ARMOR = re.compile(
    rb"\s*-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(?:[^\s:]+: [^\r\n]*\r?\n)*[ \t]*\r?\n"
    rb"([A-Za-z0-9+/\r\n]+={0,2})[ \t\r\n]*(?:\n=[A-Za-z0-9+/]{4}\s*)?"
    rb"-----END PGP PUBLIC KEY BLOCK-----\s*"
)
_PUBLIC_KEY, _SIGNATURE, _USER_ID, _PUBLIC_SUBKEY, _USER_ATTRIBUTE = 6, 2, 13, 14, 17
_BEHIND = {_SIGNATURE, _USER_ID, _PUBLIC_SUBKEY, _USER_ATTRIBUTE}
_SECRET = {5, 7}  # key, subkey
_EXPORT = "gpg --armor --export KEY makes one"


@dataclass(frozen=True)
class Recipient:
    """``packets``: the key's, in binary, as they were read here; so gpg reads no other."""

    name: str
    packets: bytes
    primary: bytes
    """The first of them alone: the key itself, without what is said of it."""

    @property
    def armored(self) -> bytes:
        """Encoded anew, as ``parse`` reads it."""
        body = base64.encodebytes(self.packets)
        return b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n" + body + b"-----END PGP PUBLIC KEY BLOCK-----\n"


def parse(name: str, content: bytes) -> Recipient:
    """Read a file, which has to be one armored public key. Raises Refusal with what is wrong with it."""
    if len(content) > LIMIT:
        raise _refusal(
            name, f"is larger than {LIMIT} bytes", "export it with --export-options export-minimal"
        )
    if b"PRIVATE KEY BLOCK" in content:
        raise _secret(name)
    armor = _ARMOR.fullmatch(content)
    if not armor:
        raise _refusal(name, "is no armored OpenPGP public key, or more than one")
    try:
        binary = base64.b64decode(b"".join(armor[1].split()), validate=True)
    except binascii.Error:
        raise _refusal(name, "is damaged") from None
    return Recipient(name, binary, _primary(name, binary))


def check(recipients: Collection[Recipient]) -> None:
    """Raise Refusal for too many, and for a key that is there twice."""
    if len(recipients) > MOST:
        raise Refusal("SX-RECOVER-01", f"there are more than {MOST} recovery keys", "leave some out")
    seen: dict[bytes, str] = {}
    for each in recipients:
        if other := seen.get(each.primary):
            raise _refusal(each.name, f"is the same key as {other}", "leave one of them out")
        seen[each.primary] = each.name


def _primary(name: str, binary: bytes) -> bytes:
    """Raises Refusal if these are not the packets of one public key."""
    with in_memory("public-key") as file:
        packets.write(file, binary)
        walk = Packets(file, limit=LIMIT)
        try:
            first, _ = walk.next()
            end = walk.position
            behind = []
            while not walk.at_end:
                behind.append(walk.next()[0])
        except Refusal:  # which speaks of a config
            raise _refusal(name, "is damaged") from None
    if _SECRET & {first, *behind}:
        raise _secret(name)
    if first != _PUBLIC_KEY or _PUBLIC_KEY in behind:
        raise _refusal(name, "is not exactly one public key")
    if not _BEHIND.issuperset(behind):
        raise _refusal(name, "has packets that belong to no public key")
    return binary[:end]


def _secret(name: str) -> Refusal:
    return _refusal(name, "holds a PRIVATE key", f"keep that to yourself, and give the public one: {_EXPORT}")


def _refusal(name: str, what: str, cure: str = _EXPORT) -> Refusal:
    return Refusal("SX-RECOVER-02", f"the recovery key {name} {what}", cure)
