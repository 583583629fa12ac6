"""Host-key documents of a few hosts, each the same whenever it is asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec
from harness import pki

NOW = datetime.now(UTC)
CHAIN = pki.make_chain(NOW)


@cache
def key(who: str) -> ec.EllipticCurvePublicKey:
    return ec.generate_private_key(ec.SECP521R1()).public_key()


@cache
def certify(who: str, **options: float) -> bytes:
    """The host's document; with options as for pki.Authority.certify another one."""
    return pki.pem(CHAIN.document(key(who), **options))


@cache
def certify_hybrid(who: str, **options: float) -> bytes:
    return CHAIN.hybrid_document(key(who), pki.ml_kem_key(who).public_key(), **options)


def forged(who: str = "b") -> bytes:
    """Signed by somebody else."""
    return pki.pem(pki.make_root(NOW, "Another CA").certify(pki.name(CN="A host"), key(who)))
