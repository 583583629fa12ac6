"""Certificate chains and revocation lists (CRLs) in the shape of those behind IBM's host-key documents.

The certification authorities are pretended, what they sign is real. Times are days from ``now``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey, MLKEM1024PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from cryptography.x509.oid import NameOID

IBM = "International Business Machines Corporation"
_OIDS = {
    "C": NameOID.COUNTRY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "L": NameOID.LOCALITY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "CN": NameOID.COMMON_NAME,
}

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
AuthorityKey = x509.AuthorityKeyIdentifier | bytes | None  # bytes: the key identifier; empty: the right one
Extensions = Sequence[tuple[x509.ExtensionType, bool]]  # and whether it is critical
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | MLKEM1024PublicKey


def name(**attributes: str) -> x509.Name:
    """``name(C="US", CN="A")``: the attributes in this order."""
    return x509.Name([x509.NameAttribute(_OIDS[key], value) for key, value in attributes.items()])


def signing_key_name(order: Sequence[str] = ("C", "ST", "L", "O", "CN", "OU"), **changes: str) -> x509.Name:
    """The subject of IBM's host-key signing key; ``changes`` replace attributes, ``order`` sorts them."""
    attributes = {"C": "US", "ST": "New York", "L": "Poughkeepsie", "O": IBM, "CN": IBM}
    attributes |= {"OU": "IBM Z Host Key Signing Service", **changes}
    return name(**{key: attributes[key] for key in order})


@cache
def ec_key(who: str) -> ec.EllipticCurvePrivateKey:
    """A key of its own for everybody, the same each time; quick to make."""
    return ec.generate_private_key(ec.SECP256R1())


@cache
def rsa_key(who: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def host_key(who: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP521R1())


@cache
def ml_kem_key(who: str) -> MLKEM1024PrivateKey:
    return MLKEM1024PrivateKey.generate()


@dataclass(frozen=True)
class Authority:
    """One that signs: its private key and its certificate."""

    key: PrivateKey
    certificate: x509.Certificate
    now: datetime

    def __reduce__(self) -> tuple[Callable[..., Authority], tuple[object, ...]]:
        """For pickle, which does not know keys and certificates."""
        key = self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        return _unpickle, (key, self.certificate.public_bytes(Encoding.DER), self.now)

    def certify(
        self,
        subject: x509.Name,
        key: PublicKey,
        *,
        ca: bool = False,
        start: float = -1,
        end: float = 365,
        issuer: x509.Name | None = None,
        authority_key: AuthorityKey = b"",
        crl_urls: Sequence[str] = (),
        addresses: Sequence[IPv4Address | IPv6Address] = (),
        more: Extensions = (),
    ) -> x509.Certificate:
        """A certificate for ``key``; its authority key identifier is left out if that is None."""
        builder = x509.CertificateBuilder(
            issuer_name=issuer or self.certificate.subject,
            subject_name=subject,
            public_key=key,
            serial_number=x509.random_serial_number(),
            not_valid_before=self.now + timedelta(days=start),
            not_valid_after=self.now + timedelta(days=end),
        )
        for extension, critical in (*_extensions(key, ca, crl_urls), *more):
            builder = builder.add_extension(extension, critical)
        if addresses:
            names = x509.SubjectAlternativeName([x509.IPAddress(address) for address in addresses])
            builder = builder.add_extension(names, critical=False)
        if identifier := self._identifier(authority_key):
            builder = builder.add_extension(identifier, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def _identifier(self, authority_key: AuthorityKey) -> x509.AuthorityKeyIdentifier | None:
        if isinstance(authority_key, bytes):
            own = _key_id(self.key.public_key())
            return x509.AuthorityKeyIdentifier(authority_key or own, None, None)
        return authority_key

    def subordinate(self, subject: x509.Name, key: PrivateKey, **options: Any) -> Authority:
        return Authority(key, self.certify(subject, key.public_key(), **options), self.now)

    def crl(
        self,
        *,
        revoked: Iterable[x509.Certificate] = (),
        start: float = -1,
        end: float | None = 30,
        issuer: x509.Name | None = None,
        authority_key: AuthorityKey = b"",
        signed_by: PrivateKey | None = None,
        more: Extensions = (),
    ) -> bytes:
        """A CRL in DER. ``end`` None: it has no nextUpdate, as RFC 5280 does not allow."""
        key = signed_by or self.key
        last_update = self.now + timedelta(days=start)
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=issuer or self.certificate.subject,
            last_update=last_update,
            next_update=self.now + timedelta(days=30 if end is None else end),
        ).add_extension(x509.CRLNumber(1), critical=False)
        if identifier := self._identifier(authority_key):
            builder = builder.add_extension(identifier, critical=False)
        for extension, critical in more:
            builder = builder.add_extension(extension, critical)
        for certificate in revoked:
            entry = x509.RevokedCertificateBuilder(certificate.serial_number, last_update)
            builder = builder.add_revoked_certificate(entry.build())
        der = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
        return _without_next_update(der, key) if end is None else der


def _unpickle(key: bytes, certificate: bytes, now: datetime) -> Authority:
    private = load_der_private_key(key, None)
    assert isinstance(private, PrivateKey)
    return Authority(private, x509.load_der_x509_certificate(certificate), now)


@dataclass(frozen=True)
class Chain:
    """root > intermediate CA > IBM's host-key signing key, which certifies host keys; and a CRL of each."""

    root: Authority
    intermediate: Authority
    signing_key: Authority
    crl_options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def document(self, key: PublicKey, **options: Any) -> x509.Certificate:
        """A host-key document."""
        subject = name(C="US", O=IBM, CN="A host")
        # Like the genuine ones since IBM moved, it does not name the issuer as the signing key names itself.
        return self.signing_key.certify(subject, key, **{"issuer": signing_key_name(L="Armonk"), **options})

    def hybrid_document(
        self, key: ec.EllipticCurvePublicKey, ml_kem: MLKEM1024PublicKey, **options: Any
    ) -> bytes:
        """A quantum-safe one, PEM."""
        return b"".join(pem(self.document(each, **options)) for each in (key, ml_kem))

    def certificates(self) -> dict[str, bytes]:
        """Each certificate, PEM, by the name of the file it may be in."""
        return {f"{name}.crt": pem(authority.certificate) for name, authority in self._authorities()}

    def crls(self) -> dict[str, bytes]:
        """Each CRL, DER, by the name of the file it may be in."""
        options = self.crl_options
        return {
            f"{name}.crl": authority.crl(**options.get(name, {})) for name, authority in self._authorities()
        }

    def _authorities(self) -> Iterator[tuple[str, Authority]]:
        yield from [
            ("root", self.root),
            ("intermediate", self.intermediate),
            ("signing-key", self.signing_key),
        ]


def make_root(now: datetime, common_name: str = "A Root CA", **options: Any) -> Authority:
    key, subject = ec_key(common_name), name(C="US", O="A CA", CN=common_name)
    unsigned = Authority(key, _Unsigned(subject), now)  # type: ignore[arg-type]
    return unsigned.subordinate(subject, key, **{"ca": True, **options})


@dataclass(frozen=True)
class _Unsigned:
    """Stands in for the certificate of a root that is about to make its own."""

    subject: x509.Name


def make_chain(
    now: datetime,
    *,
    root: dict[str, Any] | None = None,
    intermediate: dict[str, Any] | None = None,
    signing_key: dict[str, Any] | None = None,
    crls: dict[str, dict[str, Any]] | None = None,
) -> Chain:
    """A chain that is fine but for what the options change: those of Authority.certify and Authority.crl."""
    top = make_root(now, **(root or {}))
    subject = name(C="US", O="A CA", CN="An intermediate CA")
    middle = {"subject": subject, "key": ec_key("intermediate"), "ca": True, **(intermediate or {})}
    signer = {"subject": signing_key_name(), "key": rsa_key("signing key"), **(signing_key or {})}
    second = top.subordinate(**middle)
    return Chain(top, second, second.subordinate(**signer), crls or {})


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _extensions(
    key: PublicKey, ca: bool, crl_urls: Sequence[str]
) -> Iterator[tuple[x509.ExtensionType, bool]]:
    yield x509.BasicConstraints(ca=ca, path_length=None), True
    yield x509.SubjectKeyIdentifier(_key_id(key)), False
    usage = {
        "digital_signature": not ca,
        "key_cert_sign": ca,
        "crl_sign": True,
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "encipher_only": False,
        "decipher_only": False,
    }
    yield x509.KeyUsage(**usage), True
    if crl_urls:
        names = [x509.UniformResourceIdentifier(url) for url in crl_urls]
        yield x509.CRLDistributionPoints([x509.DistributionPoint(names, None, None, None)]), False


def _key_id(key: PublicKey) -> bytes:
    return x509.SubjectKeyIdentifier.from_public_key(key).digest


def _without_next_update(der: bytes, key: PrivateKey) -> bytes:
    """The same CRL, signed again without that field: RFC 5280, section 5.1.

    tbsCertList: version, signature, issuer, thisUpdate, nextUpdate, and more.
    """
    return resigned(der, key, lambda fields: fields[:4] + fields[5:])


def resigned(der: bytes, key: PrivateKey, edit: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """The same certificate or CRL, signed again with other fields in what is signed, each in DER."""
    (whole,) = _elements(der)
    signed, algorithm, _ = _elements(_content(whole))
    signed = _element(0x30, b"".join(edit(_elements(_content(signed)))))
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    else:
        signature = key.sign(signed, ec.ECDSA(hashes.SHA256()))
    return _element(0x30, signed + algorithm + _element(0x03, b"\0" + signature))


def _header(der: bytes) -> tuple[int, int]:
    """Size of the tag and length, and of the content, of the DER element that ``der`` starts with."""
    if der[1] < 0x80:
        return 2, der[1]
    size = der[1] & 0x7F
    return 2 + size, int.from_bytes(der[2 : 2 + size], "big")


def _content(der: bytes) -> bytes:
    return der[_header(der)[0] :]


def _elements(der: bytes) -> list[bytes]:
    elements = []
    while der:
        end = sum(_header(der))
        elements.append(der[:end])
        der = der[end:]
    return elements


def _element(tag: int, content: bytes) -> bytes:
    size = len(content)
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    length = digits if size < 0x80 else bytes([0x80 + len(digits)]) + digits
    return bytes([tag]) + length + content
