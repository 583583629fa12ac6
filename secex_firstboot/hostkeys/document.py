"""A host-key document: the X.509 certificate that carries the public key of one IBM Z machine.

A hybrid one, as s390-tools 2.44 takes it, is two: of an EC key, and of an ML-KEM-1024 key.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePath

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.key_kind import KeyKind
from secex_firstboot.contract.paths import HOST_KEY_PREFIX
from secex_firstboot.hostkeys import form, key, ml_kem
from secex_firstboot.hostkeys.key import HostKey

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
# rust/pvimg/src/pv_utils/uv_keys.rs: the lines of a machine's own list, a key and its backup each.
_LINES = {0: KeyKind.CLASSICAL, 1: KeyKind.CLASSICAL, 4: KeyKind.HYBRID, 5: KeyKind.HYBRID}
_MASK = re.compile(rb"[0-9a-f]{1,16}\n?")

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"  # RFC 7468
_BLOCK = re.compile(_BEGIN + rb"([A-Za-z0-9+/=\s]+)" + _END)
_FILE = re.compile(rb"(?:" + _BLOCK.pattern + rb"\s*){1,2}")

_CURE = "give each host's document, as IBM offers it for download, as a file of its own"


@dataclass(frozen=True)
class Document:
    """``certificates``: one, or that of the EC key and that of the ML-KEM key."""

    name: str
    certificates: tuple[x509.Certificate, ...]
    key: HostKey

    @property
    def expires(self) -> datetime:
        return min(each.not_valid_after_utc for each in self.certificates)

    @property
    def pem(self) -> bytes:
        """The certificates encoded anew, a PEM block each.

        This is what another program gets, never the file it was read from: that program could find another
        certificate in it than we did.
        """
        return b"".join(each.public_bytes(Encoding.PEM) for each in self.certificates)

    def halves(self) -> Iterator[tuple[str, x509.Certificate]]:
        """What to call each certificate, and it."""
        if self.key.kind is KeyKind.CLASSICAL:
            yield self.name, self.certificates[0]
        else:
            names = (f"{self.name} (hybrid, its {half} certificate)" for half in ("EC", "ML-KEM"))
            yield from zip(names, self.certificates, strict=True)


def parse(name: str, content: bytes) -> Document:
    """Read a file that is exactly one certificate, in DER or PEM, or two in PEM; with white space around PEM
    at most.

    Nothing is verified here but that the first certificate's key is a secp521r1 one, and that of a second an
    ML-KEM-1024 one. Raises Refusal naming the document and what is wrong with it.
    """
    try:
        certificates = tuple(map(_load, _ders(name, content)))
        fault = next(filter(None, map(form.fault, certificates)), "")
    except DECODING_ERRORS:
        raise _refusal(name, "is no X.509 certificate, neither PEM nor DER") from None
    if fault:
        raise _refusal(name, fault)
    return Document(name, certificates, _key(name, certificates))


def _key(name: str, certificates: tuple[x509.Certificate, ...]) -> HostKey:
    try:
        curve = certificates[0].public_key()
    except DECODING_ERRORS:  # of a kind that the library does not know
        curve = None
    if not isinstance(curve, ec.EllipticCurvePublicKey) or curve.curve.name != "secp521r1":
        raise _refusal(name, "has no secp521r1 key, so it is not one of an IBM Z host")
    if len(certificates) == 1:
        return HostKey(curve)
    second = ml_kem.public_key(form.public_key_info(certificates[1]))
    if not second:
        raise _refusal(name, "has no ML-KEM-1024 key in its second certificate, so it is no hybrid one")
    return HostKey(curve, second)


def _ders(name: str, content: bytes) -> list[bytes]:
    """Each certificate's bytes in DER, which may still be anything."""
    begun = content.count(_BEGIN)
    if begun > 2:
        raise _refusal(name, f"holds {begun} certificates, not one, nor a hybrid one's two")
    if _FILE.fullmatch(content.strip()):
        return [b64decode(b"".join(block[1].split()), validate=True) for block in _BLOCK.finditer(content)]
    if _BLOCK.search(content):
        raise _refusal(
            name,
            "holds something else beside its certificate",
            f"{_CURE}: openssl x509 -in FILE makes it one",
        )
    return [content]


def _load(der: bytes) -> x509.Certificate:
    certificate = x509.load_der_x509_certificate(der)  # which refuses trailing bytes
    if certificate.public_bytes(Encoding.DER) != der:
        raise ValueError("not in DER")
    return certificate


def _refusal(name: str, reason: str, cure: str = _CURE) -> Refusal:
    return Refusal("SX-HOSTKEY-07", f"the host-key document {name} {reason}", cure)


def system_name(name: str) -> str:
    """As documents are called in /etc/se-hostkeys, for a file of this name: ibm-z-hostkey-NAME."""
    plain = PurePath(name).name
    if plain.startswith(HOST_KEY_PREFIX):
        return plain
    return HOST_KEY_PREFIX + plain.removesuffix(".crt")


def key_hash(document: Document) -> bytes:
    """The hash by which an SE header's key slot names the host's key."""
    return key.key_hash(document.key)


def distinct(documents: Iterable[Document]) -> list[Document]:
    """The first document of each host key: a host needs one key slot, however often it is named."""
    by_key: dict[bytes, Document] = {}
    for document in documents:
        by_key.setdefault(key_hash(document), document)
    return list(by_key.values())


def check_one_kind(documents: Collection[Document]) -> None:
    """Raise Refusal if they are of two kinds: an SE header has key slots of one."""
    found = {each: [one.name for one in documents if one.key.kind is each] for each in KeyKind}
    if all(found.values()):
        raise Refusal(
            "SX-HOSTKEY-39",
            "a boot image is for host keys of one kind, and the documents are of two: "
            + "; ".join(f"{each}: {', '.join(names)}" for each, names in found.items()),
            "give the documents of all hosts in the same kind, in a provisioned system by secex hosts add"
            " --replace",
        )


def this_host_key_hashes(directory: Path) -> dict[bytes, KeyKind | None]:
    """The hashes of the keys this machine has, as its ultravisor tells, and of what kind each is, if that is
    known; none known: empty.

    ``directory`` is /sys/firmware/uv/keys, which is there if both kernel and firmware know the question. Its
    file ``all`` has a line of 64 hexadecimal digits a key, zeros where there is none: uv_keys_all() in
    arch/s390/kernel/uv.c.
    """
    try:
        with (directory / "all").open("rb") as file:
            lines = file.read(_KEY_LIST_LIMIT).split()
    except OSError:
        return {}
    return {
        bytes.fromhex(line.decode()): _LINES.get(number)
        for number, line in enumerate(lines)
        if _HASH.fullmatch(line) and line.strip(b"0")
    }


def is_of(document: Document, machine: Collection[bytes]) -> bool:
    """Whether the document is for the machine that lists these hashes."""
    return key.listed_hash(document.key) in machine


def check_this_host(documents: Iterable[Document], hashes: Mapping[bytes, KeyKind | None]) -> None:
    """Raise Refusal if this machine's key ``hashes`` are known and none of the documents is for it."""
    if hashes and not any(is_of(each, hashes) for each in documents):
        listed = sorted(f"{found.hex()} ({each or 'of unknown kind'})" for found, each in hashes.items())
        raise Refusal(
            "SX-HOSTKEY-08",
            f"no host-key document is for this machine, whose keys have the hash {', '.join(listed)}",
            "add this machine's document to the config: it could not start the system it sets up",
        )


def check_header_version(documents: Sequence[Document], file: Path) -> None:
    """Raise Refusal if this machine says that it takes no boot image for keys of their kind.

    ``file`` is /sys/firmware/uv/query/supp_se_hdr_ver: a hexadecimal number of 64 bits, of which the one that
    is n-th from the left, from 0, stands for version 0x100 * (n + 1).
    """
    try:
        with file.open("rb") as stream:
            found = _MASK.fullmatch(stream.read(_KEY_LIST_LIMIT))
    except OSError:
        return
    wanted = documents[0].key.kind
    if found and not int(found[0], 16) >> (64 - (wanted.header_version >> 8)) & 1:
        raise Refusal(
            "SX-HOSTKEY-40",
            f"this machine takes no SE header of version {wanted.header_version:#x}, which {wanted} host keys"
            " need",
            "give host-key documents of the other kind, or start on another machine",
        )
