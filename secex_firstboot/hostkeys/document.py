"""A host-key document: the X.509 certificate that carries the public key of one IBM Z machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from secex_firstboot.errors import Refusal
from secex_firstboot.sdboot import image

# What the cryptography library raises on something that is not X.509, or not of a kind it knows.
DECODING_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_KEY_LIST_LIMIT = 4096  # bytes: sysfs gives at most a page
_HASH = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True)
class Document:
    name: str
    certificate: x509.Certificate
    public_key: ec.EllipticCurvePublicKey


def parse(name: str, content: bytes) -> Document:
    """Read one certificate, PEM or DER. Nothing is verified here but that its key is a secp521r1 one.

    Raises Refusal naming the document and what is wrong with it.
    """
    try:
        certificate = _certificate(name, content)
        public_key = certificate.public_key()
        if not isinstance(public_key, ec.EllipticCurvePublicKey) or public_key.curve.name != "secp521r1":
            raise _refusal(name, "has no secp521r1 key, so it is not one of an IBM Z host")
        _ = certificate.extensions  # decoded, or stumbled over, when first asked for
        return Document(name, certificate, public_key)
    except DECODING_ERRORS:
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
    """SHA-256 by which an SE header's key slot, and the host itself, name the host's key."""
    return image.host_key_hash(document.public_key)


def distinct(documents: Iterable[Document]) -> list[Document]:
    """The first document of each host key: a host needs one key slot, however often it is named."""
    by_key: dict[bytes, Document] = {}
    for document in documents:
        by_key.setdefault(key_hash(document), document)
    return list(by_key.values())


def this_host_key_hashes(directory: Path) -> set[bytes]:
    """The hashes of the keys this machine has, as its ultravisor tells; none known: an empty set.

    ``directory`` is /sys/firmware/uv/keys, which is there if both kernel and firmware know the question. Its
    file ``all`` has a line of 64 hexadecimal digits a key, zeros where there is none: uv_keys_all() in
    arch/s390/kernel/uv.c.
    """
    try:
        with (directory / "all").open("rb") as file:
            lines = file.read(_KEY_LIST_LIMIT).split()
    except OSError:
        return set()
    return {bytes.fromhex(line.decode()) for line in lines if _HASH.fullmatch(line) and line.strip(b"0")}


def check_this_host(documents: Iterable[Document], hashes: set[bytes]) -> None:
    """Raise Refusal if this machine's key ``hashes`` are known and none of the documents is for it."""
    if hashes and hashes.isdisjoint(map(key_hash, documents)):
        raise Refusal(
            "no host-key document is for this machine, whose keys have the SHA-256 "
            + ", ".join(sorted(each.hex() for each in hashes)),
            "add this machine's document to the config: it could not start the system it sets up",
        )
