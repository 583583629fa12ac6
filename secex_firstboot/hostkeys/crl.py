"""Certificate revocation lists: which of those at hand count for IBM's host-key signing key, and fetching."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtensionOID, NameOID

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.hostkeys import certificates, form
from secex_firstboot.hostkeys.document import DECODING_ERRORS

# URL, seconds it may take -> content of at most certificates.FILE_LIMIT bytes, or Refusal. None: patiently.
FetchCrl = Callable[[str, float | None], bytes]
Crls = Sequence[x509.CertificateRevocationList]
SigningKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

CURE = "add the issuer's current CRL to the config, or give the guest a network to fetch it"
_MOST_ISSUERS, _MOST_URLS = 8, 2  # that are asked for CRLs, and at how many places each
_KNOWN = {ExtensionOID.ISSUING_DISTRIBUTION_POINT, ExtensionOID.AUTHORITY_KEY_IDENTIFIER}

# The order in which IBM's CRLs have the attributes of the signing key's subject.
_CRL_ORDER = (
    NameOID.COUNTRY_NAME,
    NameOID.ORGANIZATION_NAME,
    NameOID.ORGANIZATIONAL_UNIT_NAME,
    NameOID.LOCALITY_NAME,
    NameOID.STATE_OR_PROVINCE_NAME,
    NameOID.COMMON_NAME,
)


class NoCrl(Refusal):
    """A CRL is missing or of no use: another one may help."""


def usable(signer: x509.Certificate, key: SigningKey, crls: Crls, now: datetime) -> Crls:
    """The signing key's CRLs that are valid now, at least one. Raises NoCrl.

    libpv/cert.c of s390-tools, pv_store_ctx_find_valid_crls().
    """
    names = _issuer_names(signer.subject)
    found = [(crl, _fault(crl, signer, key, now)) for crl in crls if crl.issuer in names]
    valid = [crl for crl, fault in found if not fault]
    if not valid:
        fault = found[0][1] if found else "is missing"
        raise NoCrl("SX-HOSTKEY-06", f"the CRL of IBM's host-key signing key {fault}", CURE)
    return valid


def _issuer_names(subject: x509.Name) -> list[x509.Name]:
    """How the signing key may call itself in its CRLs; IBM moved from Poughkeepsie to Armonk, its CRLs not.

    libpv/cert.c, quirk_X509_STORE_ctx_get1_crls().
    """
    moved = x509.Name(
        x509.NameAttribute(attribute.oid, "Poughkeepsie")
        if attribute.oid == NameOID.LOCALITY_NAME
        else attribute
        for attribute in subject
    )
    names = [subject, moved]
    return names + [x509.Name(name.get_attributes_for_oid(oid)[0] for oid in _CRL_ORDER) for name in names]


def _fault(
    crl: x509.CertificateRevocationList, signer: x509.Certificate, key: SigningKey, now: datetime
) -> str:
    if not crl.is_signature_valid(key):
        return "is not signed by it"
    if unknown := _unknown_critical(crl):
        return f"has a critical extension that is not known here ({unknown})"
    if not names_issuer(crl.extensions, signer):
        return "names another authority key"
    if now < crl.last_update_utc:
        return "is not yet valid"
    if crl.next_update_utc is None or now >= crl.next_update_utc:
        return "has expired"
    return ""


def _unknown_critical(crl: x509.CertificateRevocationList) -> str:
    """Of the CRL or of one of its entries: RFC 5280, 5.2 and 5.3."""
    try:
        found = [crl.extensions, *(entry.extensions for entry in crl)]
    except DECODING_ERRORS:
        return "one that cannot be decoded"
    return next(filter(None, (form.unknown_critical(each, _KNOWN) for each in found)), "")


def covers(crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> bool:
    """Whether a certificate that is no CA's would be in this CRL if it were revoked: RFC 5280, 6.3.3 (b)."""
    try:
        scope = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint).value
    except x509.ExtensionNotFound:
        return True
    if (
        scope.only_contains_ca_certs
        or scope.only_contains_attribute_certs
        or scope.only_some_reasons
        or scope.indirect_crl
        or scope.relative_name
    ):
        return False
    return not scope.full_name or not set(scope.full_name).isdisjoint(_point_names(certificate))


def names_issuer(extensions: x509.Extensions, issuer: x509.Certificate) -> bool:
    """What an authority key identifier, if there is one, says of its issuer is so: X509_check_akid(3)."""
    try:
        authority = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        return True
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        own = None
    named = [
        name.value for name in authority.authority_cert_issuer or () if isinstance(name, x509.DirectoryName)
    ]
    return (
        authority.key_identifier in (None, own)
        and authority.authority_cert_serial_number in (None, issuer.serial_number)
        and (not named or named[0] == issuer.issuer)
    )


def fetch(
    of: Iterable[x509.Certificate], get: FetchCrl, seconds: float | None
) -> tuple[list[x509.CertificateRevocationList], str]:
    """The CRLs that the distribution points of these certificates offer, and why the last that failed did.

    Of several URLs of an issuer, the first that answers is enough. All together take ``seconds`` at most, or
    as long as ``get`` is patient.
    """
    crls: list[x509.CertificateRevocationList] = []
    trouble = ""
    end = None if seconds is None else time.monotonic() + seconds
    for urls in [*dict.fromkeys(_urls(certificate) for certificate in of)][:_MOST_ISSUERS]:
        for url in urls[:_MOST_URLS]:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return crls, trouble
            try:
                crls += certificates.only_crls(certificates.parse("fetched.crl", get(url, left)))
                break
            except Refusal as refusal:
                trouble = refusal.message
    return crls, trouble


def _urls(certificate: x509.Certificate) -> tuple[str, ...]:
    return tuple(
        name.value
        for name in _point_names(certificate)
        if isinstance(name, x509.UniformResourceIdentifier)
        and name.value.lower().startswith(("http://", "https://"))
    )


def _point_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """The names of the points at which its issuer's CRLs are."""
    try:
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except x509.ExtensionNotFound:
        return []
    return [name for point in points for name in point.full_name or ()]
