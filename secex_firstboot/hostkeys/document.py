"""A host-key document: the X.509 certificate that carries the public key of one IBM Z machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from secex_firstboot.errors import Refusal

_COORDINATE = 80  # bytes: how the SE header stores each of X and Y, left-padded


@dataclass(frozen=True)
class Document:
    name: str
    der: bytes
    public_key: ec.EllipticCurvePublicKey
    subject: str  # RFC 4514
    not_before: datetime
    not_after: datetime


def parse(name: str, content: bytes) -> Document:
    """Read one certificate, PEM or DER. Nothing is verified here but that its key is a secp521r1 one.

    Raises Refusal naming the document and what is wrong with it.
    """
    try:
        certificate = _certificate(name, content)
        public_key = certificate.public_key()
        if not isinstance(public_key, ec.EllipticCurvePublicKey) or public_key.curve.name != "secp521r1":
            raise _refusal(name, "has no secp521r1 key, so it is not one of an IBM Z host")
        return Document(
            name=name,
            der=certificate.public_bytes(Encoding.DER),
            public_key=public_key,
            subject=certificate.subject.rfc4514_string(),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )
    except (ValueError, UnsupportedAlgorithm):
        raise _refusal(name, "is no X.509 certificate, neither PEM nor DER") from None


def _certificate(name: str, content: bytes) -> x509.Certificate:
    if b"-----BEGIN " not in content:
        return x509.load_der_x509_certificate(content)
    certificates = x509.load_pem_x509_certificates(content)
    if len(certificates) > 1:
        raise _refusal(name, f"holds {len(certificates)} certificates, not one")
    return certificates[0]


def _refusal(name: str, reason: str) -> Refusal:
    return Refusal(
        f"the host-key document {name} {reason}",
        "give each host's document, as IBM offers it for download, as a file of its own",
    )


def key_hash(document: Document) -> bytes:
    """SHA-256 by which an SE header's key slot names the host: over X and Y in 80 bytes each."""
    numbers = document.public_key.public_numbers()
    return hashlib.sha256(
        numbers.x.to_bytes(_COORDINATE, "big") + numbers.y.to_bytes(_COORDINATE, "big")
    ).digest()


def distinct(documents: Iterable[Document]) -> list[Document]:
    """The first document of each host key: a host needs one key slot, however often it is named."""
    by_key: dict[bytes, Document] = {}
    for document in documents:
        by_key.setdefault(key_hash(document), document)
    return list(by_key.values())
