"""What a certificate or CRL has to be, whoever signed it: RFC 5280, where the library is lax."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

Item = x509.Certificate | x509.CertificateRevocationList

_SEQUENCE, _VERSION = 0x30, 0xA0  # DER's tags


def fault(item: Item) -> str:
    """What is wrong with it, or nothing.

    Also decodes what the library decodes when first asked for: raises document.DECODING_ERRORS.
    """
    _ = item.issuer, item.extensions
    if isinstance(item, x509.Certificate):
        _ = item.subject
        if item.serial_number < 0:  # RFC 5280, 4.1.2.2; there are CAs with zero
            return "has a negative serial number"
    elif any(isinstance(each.value, x509.DeltaCRLIndicator) for each in item.extensions):
        return "is a delta CRL"  # 5.2.4: nothing without its base; OpenSSL would take it for a whole one
    if _inner_algorithm(item) != _outer_algorithm(item):  # 4.1.1.2 and 5.1.1.2
        return "names two signature algorithms"
    return ""


def public_key_info(certificate: x509.Certificate) -> bytes:
    """Its SubjectPublicKeyInfo, in DER: 4.1. A version need not be told."""
    elements = list(_elements(_content(certificate.tbs_certificate_bytes)))
    return elements[6 if elements[0][0] == _VERSION else 5]


def unknown_critical(extensions: x509.Extensions, known: Collection[x509.ObjectIdentifier]) -> str:
    """The first critical extension that is not ``known``, in dotted form: 4.2 and 5.2 want a refusal."""
    unknown = (each.oid.dotted_string for each in extensions if each.critical and each.oid not in known)
    return next(unknown, "")


def _outer_algorithm(item: Item) -> bytes:
    """Certificate and CertificateList: what is signed, the algorithm, the signature."""
    _, algorithm, _ = _elements(_content(item.public_bytes(Encoding.DER)))
    return algorithm


def _inner_algorithm(item: Item) -> bytes:
    """The first SEQUENCE: before it are the version and, of a certificate, the serial number."""
    signed = item.tbs_certificate_bytes if isinstance(item, x509.Certificate) else item.tbs_certlist_bytes
    return next(element for element in _elements(_content(signed)) if element[0] == _SEQUENCE)


def _elements(der: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(der):
        end = start + sum(_header(der[start : start + 8]))
        yield der[start:end]
        start = end


def _content(der: bytes) -> bytes:
    return der[_header(der)[0] :]


def _header(der: bytes) -> tuple[int, int]:
    """Bytes of the tag and length, and of the content, of the element that ``der`` starts with."""
    if der[1] < 0x80:
        return 2, der[1]
    size = der[1] & 0x7F
    return 2 + size, int.from_bytes(der[2 : 2 + size], "big")
