"""What host-key documents are judged by: certificates and certificate revocation lists (CRLs).

The image's own are trusted as far as the image is; its self-signed CA certificates are the only roots. Those
of the user's config fill in what lies between a root and the documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import is_regular
from secex_firstboot.hostkeys import form
from secex_firstboot.hostkeys.document import DECODING_ERRORS
from secex_firstboot.hostkeys.form import Item

FILE_LIMIT = 4 << 20  # bytes: a CA's CRL can have many thousand entries
_MOST = 64  # certificates and CRLs in a file, and in all of them
_BEGIN = b"-----BEGIN "  # of a PEM block: RFC 7468


@dataclass(frozen=True)
class Material:
    roots: tuple[x509.Certificate, ...]
    certificates: tuple[x509.Certificate, ...]  # all: IBM's host-key signing key, intermediate CAs, roots
    crls: tuple[x509.CertificateRevocationList, ...]


def load(image: Path, config: Iterable[tuple[str, bytes]] = ()) -> Material:
    """All of the files ``*.crt`` and ``*.crl`` in the directory ``image`` and in ``config``: (name, content).

    A file is DER, or PEM with one block or more. Raises Refusal naming the file and what is wrong with it.
    """
    trusted = [
        item for path in sorted(image.glob("*.cr[lt]")) for item in parse(path.name, path.read_bytes())
    ]
    given = [item for name, content in config for item in parse(name, content)]
    if len(trusted) + len(given) > _MOST:
        raise _too_many("the image and the config")
    roots = [item for item in trusted if isinstance(item, x509.Certificate) and _is_root(item)]
    # One may be in the image and in the config.
    certificates = dict.fromkeys(item for item in trusted + given if isinstance(item, x509.Certificate))
    return Material(tuple(roots), tuple(certificates), tuple(only_crls(trusted + given)))


def read_file(path: Path) -> bytes:
    """A small file that the user named. Raises Refusal."""
    if not is_regular(path):
        raise Refusal("SX-BUILD-36", f"{path} is missing or no regular file", "name the file to read")
    with path.open("rb") as stream:
        return stream.read(FILE_LIMIT + 1)


def parse(name: str, content: bytes) -> list[Item]:
    """The certificates and CRLs of a file; its name's suffix tells which of the two a DER file is."""
    if len(content) > FILE_LIMIT:
        raise Refusal("SX-HOSTKEY-01", f"{name} is larger than {FILE_LIMIT} bytes", "check what it is")
    is_crl = PurePath(name).suffix == ".crl"
    _, *blocks = content.split(_BEGIN)
    if len(blocks) > _MOST:
        raise _too_many(name)
    try:
        items = [_pem(_BEGIN + block) for block in blocks] or [_der(content, is_crl)]
        faults = [fault for item in items if (fault := form.fault(item))]
    except DECODING_ERRORS:
        raise Refusal(
            "SX-HOSTKEY-02",
            f"{name} holds something else than X.509 certificates and CRLs in PEM or DER",
            "use the files as they are offered for download",
        ) from None
    if faults:
        raise Refusal(
            "SX-HOSTKEY-03", f"{name}: a certificate or CRL {faults[0]}", "get it again from who offers it"
        )
    # OpenSSL would take it as one that never expires, genprotimg refuses it; RFC 5280, 5.1.2.5, asks for it.
    if any(crl.next_update_utc is None for crl in only_crls(items)):
        raise Refusal(
            "SX-HOSTKEY-04",
            f"the CRL {name} does not say when it expires (no nextUpdate)",
            "get the current one",
        )
    return items


def only_crls(items: Iterable[Item]) -> list[x509.CertificateRevocationList]:
    return [item for item in items if isinstance(item, x509.CertificateRevocationList)]


def to_pem(items: Sequence[Item]) -> bytes:
    return b"".join(item.public_bytes(Encoding.PEM) for item in items)


def _pem(block: bytes) -> Item:
    crl = block.startswith(_BEGIN + b"X509 CRL-----")
    return x509.load_pem_x509_crl(block) if crl else x509.load_pem_x509_certificate(block)


def _der(content: bytes, is_crl: bool) -> Item:
    return x509.load_der_x509_crl(content) if is_crl else x509.load_der_x509_certificate(content)


def _is_root(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    return constraints.ca and certificate.issuer == certificate.subject


def _too_many(where: str) -> Refusal:
    return Refusal(
        "SX-HOSTKEY-05",
        f"{where}: there are more than {_MOST} certificates and CRLs",
        "give those that lead from a root certificate to your host-key documents",
    )
