"""A host-key document: the X.509 certificate that carries the public key of one IBM Z machine."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.hostkeys import form, key

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

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"  # RFC 7468
_BLOCK = re.compile(_BEGIN + rb"([A-Za-z0-9+/=\s]+)" + _END)
# id-alg-ml-kem-1024, 2.16.840.1.101.3.4.4.3, in DER: RFC 9935, section 3.
_ML_KEM_1024 = bytes.fromhex("0609608648016503040403")

_CURE = "give each host's document, as IBM offers it for download, as a file of its own"


@dataclass(frozen=True)
class Document:
    name: str
    certificate: x509.Certificate
    public_key: ec.EllipticCurvePublicKey

    @property
    def pem(self) -> bytes:
        """The certificate encoded anew, as one PEM block.

        This is what another program gets, never the file it was read from: that program could find another
        certificate in it than we did.
        """
        return self.certificate.public_bytes(Encoding.PEM)


def parse(name: str, content: bytes) -> Document:
    """Read a file that is exactly one certificate: in DER, or one PEM block with white space around at most.

    Nothing is verified here but that its key is a secp521r1 one. Raises Refusal naming the document and what
    is wrong with it.
    """
    try:
        certificate = _load(_der(name, content))
        fault = form.fault(certificate)
    except DECODING_ERRORS:
        raise _refusal(name, "is no X.509 certificate, neither PEM nor DER") from None
    if fault:
        raise _refusal(name, fault)
    try:
        public_key = certificate.public_key()
    except DECODING_ERRORS:  # of a kind that the library does not know
        public_key = None
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or public_key.curve.name != "secp521r1":
        raise _refusal(name, "has no secp521r1 key, so it is not one of an IBM Z host")
    return Document(name, certificate, public_key)


def _der(name: str, content: bytes) -> bytes:
    """The certificate's bytes in DER, which may still be anything."""
    begun = content.count(_BEGIN)
    if begun == 2 and _is_hybrid(content):
        raise _refusal(
            name,
            "is a hybrid (EC and ML-KEM-1024) document, which this version does not take",
            "give the host's document that has its EC key alone",
        )
    if begun > 1:
        raise _refusal(name, f"holds {begun} certificates, not one")
    if block := _BLOCK.fullmatch(content.strip()):
        return _base64(block)
    if _BLOCK.search(content):
        raise _refusal(
            name,
            "holds something else beside its certificate",
            f"{_CURE}: openssl x509 -in FILE makes it one",
        )
    return content


def _is_hybrid(content: bytes) -> bool:
    """As pvimg of s390-tools 2.44 takes them: a certificate for an EC key, and one for an ML-KEM-1024 key."""
    try:
        certificates = [_load(_base64(block)) for block in _BLOCK.finditer(content)]
    except DECODING_ERRORS:
        return False
    return any(_ML_KEM_1024 in certificate.tbs_certificate_bytes for certificate in certificates)


def _base64(block: re.Match[bytes]) -> bytes:
    return b64decode(b"".join(block[1].split()), validate=True)


def _load(der: bytes) -> x509.Certificate:
    certificate = x509.load_der_x509_certificate(der)  # which refuses trailing bytes
    if certificate.public_bytes(Encoding.DER) != der:
        raise ValueError("not in DER")
    return certificate


def _refusal(name: str, reason: str, cure: str = _CURE) -> Refusal:
    return Refusal("SX-HOSTKEY-07", f"the host-key document {name} {reason}", cure)


def key_hash(document: Document) -> bytes:
    """SHA-256 by which an SE header's key slot, and the host itself, name the host's key."""
    return key.key_hash(document.public_key)


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
            "SX-HOSTKEY-08",
            "no host-key document is for this machine, whose keys have the SHA-256 "
            + ", ".join(sorted(each.hex() for each in hashes)),
            "add this machine's document to the config: it could not start the system it sets up",
        )
