"""A host's public key, as SE headers write it and name it: an EC key, alone or with an ML-KEM one beside it.

Source: the SE header's tables in sdboot/image.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from secex_firstboot.contract.key_kind import KeyKind

COORDINATE_SIZE = 80  # bytes: secp521r1's 66, with zeros in front
_LISTED_SIZE = 32  # bytes
_P = 2**521 - 1  # secp521r1's field

EXPERIMENTAL = (
    "hybrid host keys are experimental: no machine, and no program of IBM's, has seen an image for them"
)


@dataclass(frozen=True)
class HostKey:
    """``ml_kem``: the raw ML-KEM-1024 public key of a hybrid one."""

    ec: ec.EllipticCurvePublicKey
    ml_kem: bytes = b""

    @property
    def kind(self) -> KeyKind:
        return KeyKind.HYBRID if self.ml_kem else KeyKind.CLASSICAL


def coordinates(key: ec.EllipticCurvePublicKey) -> bytes:
    """X and Y, big-endian."""
    point = key.public_numbers()
    return b"".join(value.to_bytes(COORDINATE_SIZE, "big") for value in (point.x, point.y))


def key_hash(key: HostKey) -> bytes:
    """By which a key slot names the host whose key it is: SHA-256, of a hybrid key SHA-512."""
    content = coordinates(key.ec) + key.ml_kem
    return (hashlib.sha512 if key.ml_kem else hashlib.sha256)(content).digest()


def listed_hash(key: HostKey) -> bytes:
    """As much of the hash as the machine itself lists."""
    return key_hash(key)[:_LISTED_SIZE]


def shared_point(own: ec.EllipticCurvePrivateKey, other: ec.EllipticCurvePublicKey) -> bytes:
    """The coordinates of the point that a key agreement on secp521r1 gives.

    The library gives X alone, and two points for an X, P and its negative. Q, the other's, tells them apart:
    P + Q has the X that the agreement with our private key and one more gives.
    """
    x = own.exchange(ec.ECDH(), other)
    next_one = ec.derive_private_key(own.private_numbers().private_value + 1, other.curve)
    sum_x = int.from_bytes(next_one.exchange(ec.ECDH(), other), "big")
    q = other.public_numbers()
    for sign in (b"\2", b"\3"):
        found = ec.EllipticCurvePublicKey.from_encoded_point(other.curve, sign + x)
        p = found.public_numbers()
        # The formula for the sum of two points, its denominator on the other side.
        if ((q.y - p.y) ** 2 - (p.x + q.x + sum_x) * (q.x - p.x) ** 2) % _P == 0:
            return coordinates(found)
    raise ValueError("no point has this X")
