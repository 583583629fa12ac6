"""Who may send a config: the keys in the image of which one must have signed it, and whether one has.

A signature is one packet, and gpg says of that packet and of the very text that Ignition gets whether it is
good. What the signer has said with it is read here from the same packet, from its hashed part alone: all else
can be changed by anybody. Formats: RFC 9580, section 5.2.3 (the same as RFC 4880's).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from secex_firstboot.basic.files import exists
from secex_firstboot.contract import paths

# What a signer says of a config, as gpg --sig-notation: the fingerprint of the config key of its image.
FOR_IMAGE = "config-key@secex-firstboot"

_VERSION, _BINARY = 4, 0  # of a signature; over a text as it is
_NOTATION = 20


@dataclass(frozen=True)
class Signers:
    """``keys``: OpenPGP public keys, by the fingerprint of each one's primary key.

    ``bound``: a config has to say that it is for this image.
    """

    keys: Mapping[str, bytes]
    bound: bool = False

    @classmethod
    def of_image(cls, directory: Path) -> Self | None:
        """None of an image that takes a config from anybody. One with an empty directory takes none."""
        if not exists(directory):
            return None
        keys = {path.stem: path.read_bytes() for path in sorted(directory.glob("*.asc"))}
        return cls(keys, exists(directory / paths.BOUND))

    def files(self) -> dict[Path, bytes]:
        """For the image's initramfs, as ``of_image`` reads them."""
        files = {paths.CONFIG_SIGNERS / f"{fingerprint}.asc": key for fingerprint, key in self.keys.items()}
        return files | ({paths.CONFIG_SIGNERS / paths.BOUND: b""} if self.bound else {})

    def accept(self, signature: bytes, image_keys: Collection[str]) -> bool:
        """Whether a signature, if it is good, is one for an image with these keys (fingerprints).

        ``signature`` is the body of its packet.
        """
        try:
            named = [value for name, value in _notations(signature) if name == FOR_IMAGE.encode()]
        except (ValueError, IndexError):
            return False
        ours = {each.encode() for each in image_keys}
        return not ours.isdisjoint(named) if named else not self.bound

    def have_made(self, code: int, status: str) -> bool:
        """Whether gpg says of one signature, and of nothing else, that it is good and of one of them."""
        found = _GOOD.fullmatch(status)
        return code == 0 and found is not None and found["primary"] in self.keys


def status_line(*keywords: str) -> str:
    """A regular expression for one of these lines of gpg's status."""
    return rf"\[GNUPG:\] (?:{'|'.join(keywords)})(?: [^\n]*)?\n"


# GnuPG: doc/DETAILS for the lines; g10/mainproc.c, check_sig_and_print(), for their order. An expired or
# revoked key, or an expired signature, has another line in place of GOODSIG. 8, 9, 10: SHA-256, -384, -512.
_KEYS = f"(?:{status_line('KEY_CONSIDERED')})*"
_GOOD = re.compile(
    f"{status_line('NEWSIG')}{_KEYS}{status_line('SIG_ID')}{_KEYS}{status_line('GOODSIG')}"
    f"(?:{status_line('NOTATION_NAME', 'NOTATION_FLAGS', 'NOTATION_DATA', 'POLICY_URL')})*"
    r"\[GNUPG:\] VALIDSIG [0-9A-F]{40} \S+ \d+ \d+ 4 0 \d+ (?:8|9|10) 00 (?P<primary>[0-9A-F]{40})\n"
    f"{_KEYS}(?:{status_line('TRUST_UNDEFINED', 'TRUST_FULLY', 'TRUST_ULTIMATE')})?"
    f"(?:{status_line('VERIFICATION_COMPLIANCE_MODE')})?"
)


def _notations(signature: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and value of each in the hashed part. Raises ValueError or IndexError if it makes no sense."""
    if signature[0] != _VERSION or signature[1] != _BINARY:
        raise ValueError
    hashed, _ = _taken(signature[6:], int.from_bytes(signature[4:6], "big"))
    while hashed:
        subpacket, hashed = _subpacket(hashed)
        if subpacket[0] & 0x7F == _NOTATION:
            name, rest = _taken(subpacket[9:], int.from_bytes(subpacket[5:7], "big"))
            value, rest = _taken(rest, int.from_bytes(subpacket[7:9], "big"))
            if rest:
                raise ValueError
            yield name, value


def _subpacket(area: bytes) -> tuple[bytes, bytes]:
    """The first one, its type and body; and what follows it."""
    first = area[0]
    if first < 192:
        return _taken(area[1:], first)
    if first < 255:
        return _taken(area[2:], (first - 192 << 8) + area[1] + 192)
    return _taken(area[5:], int.from_bytes(area[1:5], "big"))


def _taken(area: bytes, size: int) -> tuple[bytes, bytes]:
    if len(area) < size:
        raise ValueError
    return area[:size], area[size:]
