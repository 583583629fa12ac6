"""Proving host-key documents genuine: an unbroken chain from a root of the image to each, nothing revoked.

The verdicts are those of IBM's genprotimg: libpv/cert.c of s390-tools, pv_verify_host_key_doc(). OpenSSL's
program builds and checks the chain from a root to IBM's host-key signing key. That key has no CA flag and the
documents do not name their issuer as it names itself, so the last step, to the documents, is made here.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding
from cryptography.x509.oid import ExtensionOID, NameOID

from secex_firstboot.basic import process
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.hostkeys import crl, form
from secex_firstboot.hostkeys.certificates import Material, to_pem
from secex_firstboot.hostkeys.document import DECODING_ERRORS, Document
from secex_firstboot.hostkeys.form import Item

_IBM = "International Business Machines Corporation"
_SIGNING_KEY = {
    NameOID.COUNTRY_NAME: ("US",),
    NameOID.STATE_OR_PROVINCE_NAME: ("New York",),
    NameOID.LOCALITY_NAME: ("Poughkeepsie", "Armonk"),
    NameOID.ORGANIZATION_NAME: (_IBM,),
    NameOID.COMMON_NAME: (_IBM,),
}
_SIGNING_KEY_UNIT = "Key Signing Service"  # how its OU ends

# openssl-verification-options(1), as pv_store_set_verify_param() sets them.
_LIKE_IBM = (
    *("-x509_strict", "-check_ss_sig", "-policy_check", "-crl_check", "-crl_check_all"),
    *("-purpose", "any"),
    *("-auth_level", "2"),  # 112 bits
    *("-verify_depth", "2"),  # intermediate CAs at most
    *("-no-CApath", "-no-CAstore"),  # -CAfile alone says whom to trust
)

# Critical extensions of a document that are known, and do not matter for a key that starts images.
_KNOWN = {
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.CRL_DISTRIBUTION_POINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
}

NEWER_CRLS_SECONDS = 30.0  # for looking for newer CRLs, where those that are given would do

_CLOCK = "get the current one, and check the guest's clock"
_CHAIN = "give the intermediate CAs' certificates that lead from it to a root in the image"
_ROOT = "only the image's own roots count: build an image with this one, if you trust it"

# X509_STORE_CTX_get_error(3): OpenSSL's code, what is wrong with a certificate, the cure.
_FAULTS = {
    2: ("has an issuer whose certificate is missing", _CHAIN),
    9: ("is not yet valid", _CLOCK),
    10: ("has expired", _CLOCK),
    18: ("is self-signed and no root of the image", _ROOT),
    19: ("is self-signed and no root of the image", _ROOT),
    20: ("has an issuer whose certificate is missing", _CHAIN),
    22: ("is more than two intermediate CAs away from a root", _CHAIN),
    23: ("is revoked", "get the current certificates and host-key documents from IBM"),
    66: ("has too weak a key", "get the current one"),
    67: ("has too weak a key", "get the current one"),
    68: ("is signed with too weak a hash", "get the current one"),
}
# The same for the CRL of a certificate's issuer; None: OpenSSL's words will do.
_CRL_FAULTS = {
    3: "is missing",
    8: "is not signed by it",
    11: "is not yet valid",
    12: "has expired",
    **dict.fromkeys((15, 16, 33, 35, 36, 44, 54), None),
}
_ERROR = re.compile(
    r"^(?:(?P<subject>.+)\n)?"
    r"(?:\[CRL path\] )?error (?P<code>\d+) at (?P<depth>\d+) depth lookup: (?P<text>.+)$",
    re.M,
)


class Revoked(Refusal):
    """A document's ``certificate`` is."""

    def __init__(self, id: str, message: str, cure: str, certificate: x509.Certificate) -> None:
        super().__init__(id, message, cure)
        self.certificate = certificate


def verify(
    documents: Sequence[Document],
    material: Material,
    *,
    now: datetime,
    fetch_crl: crl.FetchCrl | None,
    scratch: Path,
) -> None:
    """Raise Refusal, naming the document or certificate, unless every document is genuine and valid ``now``.

    CRLs are fetched from the certificates' distribution points, too, so that a newer one is not missed;
    ``fetch_crl`` None means offline. ``scratch`` is a directory for a moment's files.
    """
    signer, key = _signing_key(material.certificates)
    issued = [half for document in documents for half in document.halves()]
    for name, certificate in issued:
        _check_issued(name, certificate, signer, key, now)

    def missing(crls: crl.Crls) -> crl.NoCrl | None:
        """Judges with these CRLs; what it returns, other CRLs may mend."""
        try:
            _check_chain(signer, material, crls, now, scratch)
            _check_not_revoked(issued, crl.usable(signer, key, crls, now))
        except crl.NoCrl as refusal:
            return refusal
        return None

    lack, trouble = missing(material.crls), ""
    if fetch_crl:
        subjects = [*(certificate for _, certificate in issued), *material.certificates]
        fetched, trouble = crl.fetch(subjects, fetch_crl, None if lack else NEWER_CRLS_SECONDS)
        if not lack:  # what is of no issuer here must not take the place of what is
            fetched = [each for each in fetched if _is_crl_of_any(each, material.certificates)]
        if fetched:
            lack = missing([*material.crls, *fetched])
    if lack:
        raise crl.NoCrl(lack.id, f"{lack.message}. {trouble}" if trouble else lack.message, lack.cure)


def _is_crl_of_any(found: x509.CertificateRevocationList, certificates: Sequence[x509.Certificate]) -> bool:
    keys = [key for certificate in certificates if (key := _key(certificate))]
    return any(found.is_signature_valid(key) for key in keys)


def _key(certificate: x509.Certificate) -> crl.SigningKey | None:
    """The certificate's key, if it is of a kind that signs here."""
    try:
        key = certificate.public_key()
    except DECODING_ERRORS:
        return None
    return key if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) else None


def _signing_key(certificates: Sequence[x509.Certificate]) -> tuple[x509.Certificate, crl.SigningKey]:
    found = [certificate for certificate in certificates if _is_signing_key(certificate.subject)]
    cure = "give the one certificate that IBM offers beside the host-key documents of your machines"
    if len(found) != 1:
        raise Refusal(
            "SX-HOSTKEY-28",
            f"{len(found)} certificates of IBM's host-key signing key are given instead of one",
            cure,
        )
    key = _key(found[0])
    if not key:
        raise Refusal(
            "SX-HOSTKEY-29",
            "the certificate of IBM's host-key signing key has no RSA or elliptic-curve key",
            cure,
        )
    return found[0], key


def _is_signing_key(subject: x509.Name) -> bool:
    """libpv/cert.c, has_ibm_signing_subject()."""
    values = {attribute.oid: attribute.value for attribute in subject}
    return (
        len(list(subject)) == len(_SIGNING_KEY) + 1
        and all(values.get(oid) in accepted for oid, accepted in _SIGNING_KEY.items())
        and str(values.get(NameOID.ORGANIZATIONAL_UNIT_NAME)).endswith(_SIGNING_KEY_UNIT)
    )


def _check_issued(
    name: str, certificate: x509.Certificate, signer: x509.Certificate, key: crl.SigningKey, now: datetime
) -> None:
    """libpv/cert.c, pv_verify_host_key()."""
    unknown = form.unknown_critical(certificate.extensions, _KNOWN)
    if not _is_signed(certificate, key):
        fault, cure = "is not signed by the IBM host-key signing key that is given", "get both from IBM again"
    elif not crl.names_issuer(certificate.extensions, signer):
        fault, cure = "names another authority key than IBM's host-key signing key", "get both from IBM again"
    elif unknown:
        fault, cure = f"has a critical extension that is not known here ({unknown})", "use a newer version"
    elif now < certificate.not_valid_before_utc:
        fault, cure = _FAULTS[9]
    elif now >= certificate.not_valid_after_utc:
        fault, cure = _FAULTS[10]
    else:
        return
    raise Refusal("SX-HOSTKEY-30", f"the host-key document {name} {fault}", cure)


def _is_signed(certificate: x509.Certificate, key: crl.SigningKey) -> bool:
    signature, content = certificate.signature, certificate.tbs_certificate_bytes
    try:
        algorithm, digest = certificate.signature_algorithm_parameters, certificate.signature_hash_algorithm
        if isinstance(key, rsa.RSAPublicKey) and isinstance(algorithm, AsymmetricPadding) and digest:
            key.verify(signature, content, algorithm, digest)
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(algorithm, ec.ECDSA):
            key.verify(signature, content, algorithm)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _check_not_revoked(issued: Sequence[tuple[str, x509.Certificate]], crls: crl.Crls) -> None:
    for name, certificate in issued:
        if not any(crl.covers(each, certificate) for each in crls):
            raise crl.NoCrl(
                "SX-HOSTKEY-31",
                f"the CRL of IBM's host-key signing key does not cover the document {name}",
                crl.CURE,
            )
        serial = certificate.serial_number
        if any(each.get_revoked_certificate_by_serial_number(serial) for each in crls):
            fault, cure = _FAULTS[23]
            raise Revoked("SX-HOSTKEY-32", f"the host-key document {name} {fault}", cure, certificate)


def _check_chain(
    signer: x509.Certificate, material: Material, crls: crl.Crls, now: datetime, scratch: Path
) -> None:
    if not material.roots:
        raise Refusal(
            "SX-HOSTKEY-33", "the image has no root certificate to trust", "put the CA's root into the image"
        )
    with tempfile.TemporaryDirectory(dir=scratch, prefix="certificates-") as private:  # mode 0700
        arguments: list[str | Path] = []
        files: dict[str, Sequence[Item]] = {
            "CAfile": material.roots,
            "untrusted": material.certificates,
            "CRLfile": crls,
        }
        for option, items in files.items():
            if items:  # OpenSSL takes no empty file
                arguments += [f"-{option}", _write(Path(private, option), items)]
        at = ["-attime", str(int(now.timestamp()))]
        leaf = _write(Path(private, "signing-key"), [signer])
        try:
            output = process.run(
                ["openssl", "verify", *_LIKE_IBM, *at, *arguments, "-show_chain", "-nameopt", "RFC2253", leaf]
            )
        except process.ToolError as error:
            raise _refusal(error) from None
    if output.count("\ndepth=") < 3:
        raise Refusal(
            "SX-HOSTKEY-34",
            "there is no intermediate CA between a root and IBM's host-key signing key",
            _CHAIN,
        )


def _write(path: Path, items: Sequence[Item]) -> Path:
    path.write_bytes(to_pem(items))
    return path


def _refusal(error: process.ToolError) -> FirstbootError:
    """OpenSSL's first complaint, or, where it did not get as far as a verdict, its error."""
    found = _ERROR.search(error.output)
    if not found:
        return Refusal(error.id, error.message, "get the certificates and CRLs again from who offers them")
    code, text = int(found["code"]), found["text"]
    whose = found["subject"] if int(found["depth"]) else "IBM's host-key signing key"
    if not found["subject"]:  # what is wrong is with none of them alone
        return Refusal(
            "SX-HOSTKEY-35", f"the chain of IBM's host-key signing key cannot be trusted ({text})", _CHAIN
        )
    if code in _CRL_FAULTS:
        fault = _CRL_FAULTS[code] or f"is of no use ({text})"
        return crl.NoCrl("SX-HOSTKEY-36", f"the CRL of the issuer of {whose} {fault}", crl.CURE)
    fault, cure = _FAULTS.get(code, (f"cannot be trusted ({text})", _CHAIN))
    return Refusal("SX-HOSTKEY-37", f"the certificate of {whose} {fault}", cure)
