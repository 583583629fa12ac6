"""A host's public key, as SE headers write it and name it.

Source: the SE header's tables in sdboot/image.py.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric import ec

COORDINATE_SIZE = 80  # bytes: secp521r1's 66, with zeros in front


def coordinates(key: ec.EllipticCurvePublicKey) -> bytes:
    """X and Y, big-endian."""
    point = key.public_numbers()
    return b"".join(value.to_bytes(COORDINATE_SIZE, "big") for value in (point.x, point.y))


def key_hash(key: ec.EllipticCurvePublicKey) -> bytes:
    """The SHA-256 by which a key slot, and the host itself, name the host whose key it is."""
    return hashlib.sha256(coordinates(key)).digest()
