"""The verdicts on host-key documents, each on a chain of our own: the refused and the accepted neighbour.

They are those of IBM's genprotimg 2.35, which was given chains like these, but where RFC 5280 is stricter.
Taken there and refused here are a signing key directly under a root, CRLs of the CAs without nextUpdate,
unknown critical extensions of a document or of the signing key's CRL, delta CRLs, CRLs for a part of the
documents, and negative serial numbers. In one thing both are laxer than pvimg, as genuine documents need it:
how a document names its issuer. As with both, what is fetched comes on top of what is given: no valid CRL
hides what another one revokes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from harness import pki, site
from harness.pki import Chain, ec_key, host_key, make_chain, make_root, pem, rsa_key, signing_key_name
from hypothesis import given as drawn
from hypothesis import settings, strategies
from support import needs

from secex_firstboot.basic import process
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.hostkeys import certificates, document
from secex_firstboot.hostkeys.crl import FetchCrl
from secex_firstboot.hostkeys.download import Client, Network, Request
from secex_firstboot.hostkeys.verify import verify
from secex_firstboot.ignition.config import Proxy, Timeouts

pytestmark = needs.programs("openssl")

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = 1 / 86400  # in days
CHAIN = make_chain(NOW)
HOST = host_key("host").public_key()
DOCUMENT = CHAIN.document(HOST)
SIGNER = CHAIN.signing_key.certificate


@dataclass
class Given:
    """What lies before the judge; each case changes something of a good one."""

    documents: dict[str, bytes]
    config: dict[str, bytes]
    image: dict[str, bytes]

    @classmethod
    def of(cls, chain: Chain) -> Given:
        config = chain.certificates() | chain.crls()
        return cls({"hkd-1": pem(chain.document(HOST))}, config, {"root.crt": config.pop("root.crt")})

    def judge(self, directory: Path, fetch_crl: FetchCrl | None = None) -> None:
        """Raises Refusal or returns; also checks that nothing is left behind, and that a cure is told."""
        image, scratch = directory / "certs", directory / "scratch"
        image.mkdir(parents=True)
        scratch.mkdir()
        for name, content in self.image.items():
            (image / name).write_bytes(content)
        try:
            verify(
                [document.parse(name, content) for name, content in self.documents.items()],
                certificates.load(image, self.config.items()),
                now=NOW,
                fetch_crl=fetch_crl,
                scratch=scratch,
            )
        except Refusal as refusal:
            assert refusal.cure
            raise
        finally:
            assert not list(scratch.iterdir())


def hkd(**options: object) -> Given:
    """A document that differs in these options of Authority.certify."""
    return hkd_is(CHAIN.document(HOST, **options))


def hkd_is(document: x509.Certificate) -> Given:
    given = Given.of(CHAIN)
    given.documents["hkd-1"] = pem(document)
    return given


def authority(issuer: x509.Name, serial: int, key: bytes | None = None) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier(key, [x509.DirectoryName(issuer)], serial)


def signed_as(**attributes: str) -> Given:
    return chain(signing_key={"subject": signing_key_name(**attributes)})


def chain(**options: dict[str, Any]) -> Given:
    return Given.of(make_chain(NOW, **options))


def crl(whose: str, **options: object) -> Given:
    """A CRL that differs in these options of Authority.crl."""
    return chain(crls={whose: options})


def without(*names: str) -> Given:
    given = Given.of(CHAIN)
    for name in names:
        del given.config[name]
    return given


def added(**files: bytes) -> Given:
    """More files in the config, named ``x_crt`` for x.crt."""
    given = Given.of(CHAIN)
    given.config |= {name.replace("_", "."): content for name, content in files.items()}
    return given


def revoking(whose: str, revoked: x509.Certificate) -> Given:
    """The CRL of an authority of CHAIN revokes one certificate."""
    authority = {"root": CHAIN.root, "intermediate": CHAIN.intermediate, "signing-key": CHAIN.signing_key}[
        whose
    ]
    given = hkd_is(DOCUMENT)
    given.config[f"{whose}.crl"] = authority.crl(revoked=[revoked])
    return given


def tampered(certificate: x509.Certificate) -> bytes:
    """In DER, with the last bit of its signature flipped."""
    der = bytearray(certificate.public_bytes(Encoding.DER))
    der[-1] ^= 1
    return bytes(der)


def intermediates(count: int) -> Given:
    """A chain with so many intermediate CAs."""
    above, files = CHAIN.root, {"root.crl": CHAIN.root.crl()}
    for number in range(count):
        name = f"intermediate-{number}"
        above = above.subordinate(pki.name(C="US", CN=name), ec_key(name), ca=True)
        files |= {f"{name}.crt": pem(above.certificate), f"{name}.crl": above.crl()}
    signer = above.subordinate(signing_key_name(), rsa_key("signing key"))
    files |= {"signing-key.crt": pem(signer.certificate), "signing-key.crl": signer.crl()}
    return Given(hkd_is(signer.certify(pki.name(CN="A host"), HOST)).documents, files, Given.of(CHAIN).image)


def trusting(*roots: x509.Certificate, **config: bytes) -> Given:
    """These are the image's certificates; ``config`` as for added()."""
    given = added(**config)
    given.image = {f"{number}.crt": pem(root) for number, root in enumerate(roots)}
    return given


def make_impostor() -> x509.Certificate:
    """A root that calls itself like CHAIN's, with a key of its own."""
    other = make_root(NOW, "Another Root CA")
    impostor = pki.Authority(other.key, CHAIN.root.certificate, NOW)
    return impostor.certify(CHAIN.root.certificate.subject, other.key.public_key(), ca=True)


def two_documents(first: x509.Certificate, second: x509.Certificate) -> Given:
    given = hkd_is(first)
    given.documents["hkd-2"] = pem(second)
    return given


def resigned(field: int, new: bytes) -> Given:
    """The document with another field in what is signed (version, serial number, algorithm), signed anew."""
    der = DOCUMENT.public_bytes(Encoding.DER)
    edited = pki.resigned(
        der, CHAIN.signing_key.key, lambda fields: [*fields[:field], new, *fields[field + 1 :]]
    )
    given = Given.of(CHAIN)
    given.documents["hkd-1"] = edited
    return given


def scope(**fields: Any) -> tuple[x509.ExtensionType, bool]:
    """The issuing distribution point of a CRL that is for a part of the certificates only."""
    scopes = {"user_certs": False, "ca_certs": False, "attribute_certs": False}
    only = {f"only_contains_{name}": fields.pop(name, value) for name, value in scopes.items()}
    rest = {"full_name": None, "relative_name": None, "only_some_reasons": None, "indirect_crl": False}
    return x509.IssuingDistributionPoint(**(rest | only | fields)), True


def uri(text: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(text)]


def partial(url: str, **fields: Any) -> Given:
    """The document's CRL is at ``url``; the signing key's CRL is for a part of its certificates only."""
    given = hkd(crl_urls=[url])
    given.config["signing-key.crl"] = CHAIN.signing_key.crl(more=[scope(**fields)])
    return given


def extended(*, critical: bool, whose: str = "signing-key", kind: x509.ExtensionType | None = None) -> Given:
    """A CRL has one more extension, of a kind that nobody knows if no other is given."""
    return crl(whose, more=[(kind or UNKNOWN, critical)])


def with_an_entry_extension(*, critical: bool) -> Given:
    """In the entry of another certificate that the signing key has revoked."""
    another = CHAIN.document(HOST)
    given = hkd_is(DOCUMENT)
    entry = x509.RevokedCertificateBuilder(another.serial_number, NOW).add_extension(UNKNOWN, critical)
    builder = x509.CertificateRevocationListBuilder(SIGNER.subject, NOW, NOW + timedelta(1))
    crl = builder.add_revoked_certificate(entry.build()).sign(CHAIN.signing_key.key, hashes.SHA256())
    given.config["signing-key.crl"] = crl.public_bytes(Encoding.DER)
    return given


def named(subject: x509.Name, crl_issuer: x509.Name) -> Given:
    return chain(signing_key={"subject": subject}, crls={"signing-key": {"issuer": crl_issuer}})


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.2.99"), b"\5\0")
DELTA = x509.DeltaCRLIndicator(1)
SHA_512_WITH_RSA = bytes.fromhex("300d06092a864886f70d01010d0500")
SHA_256_WITH_RSA = bytes.fromhex("300d06092a864886f70d01010b0500")
ANY_POLICY = x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("2.5.29.32.0"), None)])
REQUIRED, NOT_REQUIRED = (
    x509.PolicyConstraints(require_explicit_policy=certificates_before, inhibit_policy_mapping=None)
    for certificates_before in (0, 5)
)

OTHER = make_chain(NOW, signing_key={"key": rsa_key("another signing key")})
CRL_ORDER = ("C", "O", "OU", "L", "ST", "CN")
POUGHKEEPSIE, ARMONK = signing_key_name(), signing_key_name(L="Armonk")

ACCEPTED: dict[str, Callable[[], Given]] = {
    "everything as it should be": lambda: Given.of(CHAIN),
    "two documents": lambda: two_documents(DOCUMENT, CHAIN.document(host_key("another").public_key())),
    "a document twice": lambda: two_documents(DOCUMENT, DOCUMENT),
    "a document that expires in a second": lambda: hkd(end=SECOND),
    "a document valid since now": lambda: hkd(start=0),
    "a document without authority key id": lambda: hkd(authority_key=None),
    "a document with its authority's issuer and serial number": lambda: hkd(
        authority_key=authority(SIGNER.issuer, SIGNER.serial_number)),
    "a document that names another issuer": lambda: hkd(issuer=pki.name(CN="Somebody")),
    "a document that names its issuer": lambda: hkd(issuer=POUGHKEEPSIE),
    "another document revoked": lambda: revoking("signing-key", CHAIN.document(HOST)),
    "a signing key with an elliptic-curve key": lambda: chain(signing_key={"key": ec_key("signing key")}),
    "a signing key that expires in a second": lambda: chain(signing_key={"end": SECOND}),
    "a signing key valid since now": lambda: chain(signing_key={"start": 0}),
    "the signing key twice": lambda: added(again_crt=pem(SIGNER)),
    "another certificate of IBM": lambda: added(ibm_crt=pem(
        CHAIN.intermediate.certify(signing_key_name(OU="Other Service"), ec_key("x").public_key()))),
    "another certificate revoked by the intermediate CA": lambda: revoking("intermediate", DOCUMENT),
    "another certificate revoked by the root": lambda: revoking("root", DOCUMENT),
    "an intermediate CA with RSA-2048": lambda: chain(intermediate={"key": rsa_key("intermediate")}),
    "two intermediate CAs": lambda: intermediates(2),
    "a root of the image in the config, too": lambda: added(root_crt=pem(CHAIN.root.certificate)),
    "CRLs that expire in a second": lambda: chain(
        crls={name: {"end": SECOND} for name in ("root", "intermediate", "signing-key")}),
    "CRLs valid since now": lambda: chain(
        crls={name: {"start": 0} for name in ("root", "intermediate", "signing-key")}),
    "CRLs without authority key id": lambda: chain(
        crls={name: {"authority_key": None} for name in ("root", "intermediate", "signing-key")}),
    "an expired CRL beside a valid one": lambda: added(
        a_crl=CHAIN.signing_key.crl(end=-SECOND), b_crl=CHAIN.intermediate.crl(end=-SECOND)),
    "a CRL named in IBM's order": lambda: named(POUGHKEEPSIE, signing_key_name(CRL_ORDER)),
    "Armonk's CRL named Armonk": lambda: named(ARMONK, ARMONK),
    "Armonk's CRL named Poughkeepsie": lambda: named(ARMONK, POUGHKEEPSIE),
    "Armonk's CRL named Armonk in IBM's order": lambda: named(
        ARMONK, signing_key_name(CRL_ORDER, L="Armonk")),
    "Armonk's CRL named Poughkeepsie in IBM's order": lambda: named(ARMONK, signing_key_name(CRL_ORDER)),
    "a document signed again as it was": lambda: resigned(2, SHA_256_WITH_RSA),
    "a document with the serial number 127": lambda: resigned(1, b"\2\1\x7f"),
    "a document with an unknown extension": lambda: hkd(more=[(UNKNOWN, False)]),
    "a CRL with an unknown extension": lambda: extended(critical=False),
    "a CRL with an unknown extension in an entry": lambda: with_an_entry_extension(critical=False),
    "a CRL for all but CAs": lambda: partial("http://a.example", user_certs=True),
    "a CRL for the document's distribution point": lambda: partial(
        "http://a.example", full_name=uri("http://a.example")),
    "a policy that is not required": lambda: chain(
        intermediate={"more": [(ANY_POLICY, False), (NOT_REQUIRED, True)]}),
}  # fmt: skip

EXPIRED, FUTURE, REVOKED = "has expired", "is not yet valid", "is revoked"
INTERMEDIATE = "certificate of CN=An intermediate CA,O=A CA,C=US"
SIGNING_KEY = "certificate of IBM's host-key signing key"
NOT_ONE = "certificates of IBM's host-key signing key are given instead of one"
CRL_OF = {
    "root": "CRL of the issuer of CN=An intermediate CA,O=A CA,C=US",
    "intermediate": "CRL of the issuer of IBM's host-key signing key",
    "signing-key": "CRL of IBM's host-key signing key",
}

SCOPES: dict[str, dict[str, Any]] = {
    "CAs alone": {"ca_certs": True},
    "attributes alone": {"attribute_certs": True},
    "some reasons alone": {"only_some_reasons": frozenset([x509.ReasonFlags.key_compromise])},
    "other issuers": {"indirect_crl": True},
    "another distribution point": {"full_name": uri("http://b.example")},
}
REFUSED: dict[str, tuple[Callable[[], Given], str]] = {
    # The document. (Its curve: test_hostkeys_document.py.)
    "a document that expires now": (lambda: hkd(end=0), f"hkd-1 {EXPIRED}"),
    "a document valid in a second": (lambda: hkd(start=SECOND), f"hkd-1 {FUTURE}"),
    "a revoked document": (lambda: revoking("signing-key", DOCUMENT), f"hkd-1 {REVOKED}"),
    "a document on another curve": (
        lambda: hkd_is(CHAIN.document(ec.generate_private_key(ec.SECP384R1()).public_key())),
        "hkd-1 has no secp521r1 key"),
    "a document with an RSA key": (
        lambda: hkd_is(CHAIN.document(rsa_key("host").public_key())), "hkd-1 has no secp521r1 key"),
    "a tampered document": (
        lambda: hkd_is(x509.load_der_x509_certificate(tampered(DOCUMENT))), "hkd-1 is not signed by"),
    "a document of another signing key": (
        lambda: hkd_is(OTHER.document(HOST)), "hkd-1 is not signed by"),
    "a document of a signing key of another kind": (
        lambda: hkd_is(CHAIN.intermediate.certify(POUGHKEEPSIE, HOST)), "hkd-1 is not signed by"),
    "a document with another authority key id": (
        lambda: hkd(authority_key=b"x" * 20), "hkd-1 names another authority key"),
    "a document with another authority's issuer": (
        lambda: hkd(authority_key=authority(SIGNER.subject, SIGNER.serial_number)),
        "hkd-1 names another authority key"),
    "a document with another authority's serial number": (
        lambda: hkd(authority_key=authority(SIGNER.issuer, SIGNER.serial_number + 1)),
        "hkd-1 names another authority key"),
    "a document whose signature algorithms disagree": (
        lambda: resigned(2, SHA_512_WITH_RSA), "hkd-1 names two signature algorithms"),
    "a document with a negative serial number": (
        lambda: resigned(1, b"\2\1\xff"), "hkd-1 has a negative serial number"),
    "a document with an unknown critical extension": (
        lambda: hkd(more=[(UNKNOWN, True)]), r"hkd-1 has a critical extension that is not known here \(1\.3"),
    "a bad document after a good one": (
        lambda: two_documents(DOCUMENT, CHAIN.document(HOST, end=0)), f"hkd-2 {EXPIRED}"),
    # The signing key.
    "no signing key": (lambda: without("signing-key.crt"), f"0 {NOT_ONE}"),
    "two signing keys": (
        lambda: added(another_crt=pem(OTHER.signing_key.certificate)), f"2 {NOT_ONE}"),
    "an expired signing key": (lambda: chain(signing_key={"end": 0}), f"{SIGNING_KEY} {EXPIRED}"),
    "a signing key valid in a second": (
        lambda: chain(signing_key={"start": SECOND}), f"{SIGNING_KEY} {FUTURE}"),
    "a revoked signing key": (
        lambda: revoking("intermediate", SIGNER), f"{SIGNING_KEY} {REVOKED}"),
    "a weak signing key": (
        lambda: chain(signing_key={"key": rsa_key("weak", 1024)}), f"{SIGNING_KEY} has too weak a key"),
    # Between the signing key and the root.
    "no intermediate CA": (lambda: intermediates(0), "no intermediate CA"),
    "the intermediate CA missing": (
        lambda: without("intermediate.crt"), f"{SIGNING_KEY} has an issuer whose certificate is missing"),
    "three intermediate CAs": (lambda: intermediates(3), "more than two intermediate CAs"),
    "an expired intermediate CA": (lambda: chain(intermediate={"end": 0}), f"{INTERMEDIATE} {EXPIRED}"),
    "an intermediate CA valid in a second": (
        lambda: chain(intermediate={"start": SECOND}), f"{INTERMEDIATE} {FUTURE}"),
    "a revoked intermediate CA": (
        lambda: revoking("root", CHAIN.intermediate.certificate), f"{INTERMEDIATE} {REVOKED}"),
    "a weak intermediate CA": (
        lambda: chain(intermediate={"key": rsa_key("weak", 1024)}), f"{INTERMEDIATE} has too weak a key"),
    "an intermediate CA that is none": (
        lambda: chain(intermediate={"ca": False}), f"{INTERMEDIATE} cannot be trusted"),
    "an intermediate CA that is not strictly X.509": (
        lambda: chain(intermediate={"authority_key": None}), f"{INTERMEDIATE} cannot be trusted"),
    "an intermediate CA with an unknown critical extension": (
        lambda: chain(intermediate={"more": [(UNKNOWN, True)]}), f"{INTERMEDIATE} cannot be trusted"),
    "a policy that is required and not there": (
        lambda: chain(intermediate={"more": [(ANY_POLICY, False), (REQUIRED, True)]}),
        r"the chain of IBM's host-key signing key cannot be trusted \(no explicit policy\)"),
    # The root.
    "no root": (trusting, "no root certificate"),
    "another root": (
        lambda: trusting(make_root(NOW, "Another Root CA").certificate),
        f"{INTERMEDIATE} has an issuer whose certificate is missing"),
    "another root of the same name": (
        lambda: trusting(make_impostor()), f"{INTERMEDIATE} has an issuer whose certificate is missing"),
    "a root from the config": (
        lambda: trusting(make_root(NOW, "Another Root CA").certificate, root_crt=pem(CHAIN.root.certificate)),
        "certificate of CN=A Root CA,O=A CA,C=US is self-signed and no root of the image"),
    "an intermediate CA in the image, no root": (
        lambda: trusting(CHAIN.intermediate.certificate), "no root certificate"),
    "a root that is no CA": (lambda: chain(root={"ca": False}), "no root certificate"),
    "a root with a broken signature": (
        lambda: trusting(x509.load_der_x509_certificate(tampered(CHAIN.root.certificate))),
        "CN=A Root CA,O=A CA,C=US cannot be trusted"),
    "an expired root": (lambda: chain(root={"end": 0}), f"CN=A Root CA,O=A CA,C=US {EXPIRED}"),
    # The three CRLs.
    **{
        f"the CRL of the {whose} {fault}": (case, f"{CRL_OF[whose]} {reason}" if reason else "nextUpdate")
        for whose in CRL_OF
        for fault, case, reason in (
            ("missing", lambda whose=whose: without(f"{whose}.crl"), "is missing"),
            ("expired", lambda whose=whose: crl(whose, end=0), EXPIRED),
            ("from the future", lambda whose=whose: crl(whose, start=SECOND), FUTURE),
            ("of another issuer", lambda whose=whose: crl(whose, issuer=pki.name(CN="Else")), "is missing"),
            ("wrongly signed", lambda whose=whose: crl(whose, signed_by=ec_key("x")), "is not signed by it"),
            ("without nextUpdate", lambda whose=whose: crl(whose, end=None), ""),
        )
    },
    **{
        f"the CRL of the {whose} with an unknown critical extension": (
            functools.partial(extended, critical=True, whose=whose), f"{CRL_OF[whose]} {reason}")
        for whose, reason in (
            ("root", "is of no use"), ("intermediate", "is of no use"),
            ("signing-key", r"has a critical extension that is not known here \(1\.3"))
    },
    **{
        f"a delta CRL of the {whose}": (
            functools.partial(extended, critical=critical, whose=whose, kind=DELTA),
            rf"{whose}\.crl: .* is a delta CRL")
        for whose, critical in (("root", True), ("intermediate", False), ("signing-key", True))
    },
    "a CRL with an unknown critical extension in an entry": (
        lambda: with_an_entry_extension(critical=True), "has a critical extension that is not known here"),
    **{
        f"a CRL of the signing key for {part}": (
            functools.partial(partial, "http://a.example", **fields), "does not cover the document hkd-1")
        for part, fields in SCOPES.items()
    },
    "a CRL of the signing key with another authority key id": (
        lambda: crl("signing-key", authority_key=b"x" * 20),
        f"{CRL_OF['signing-key']} names another authority key"),
    # How the signing key's CRL may be named, and how not.
    "Poughkeepsie's CRL named Armonk": (lambda: named(POUGHKEEPSIE, ARMONK), "is missing"),
    "Poughkeepsie's CRL named Armonk in IBM's order": (
        lambda: named(POUGHKEEPSIE, signing_key_name(CRL_ORDER, L="Armonk")), "is missing"),
    "a CRL named in another order": (
        lambda: named(POUGHKEEPSIE, signing_key_name(("CN", "O", "OU", "L", "ST", "C"))), "is missing"),
    "a CRL named in another case": (
        lambda: named(POUGHKEEPSIE, signing_key_name(L="POUGHKEEPSIE")), "is missing"),
    "a CRL named after another unit": (
        lambda: named(POUGHKEEPSIE, signing_key_name(OU="Key Signing Service")), "is missing"),
    # Who is IBM's signing key.
    **{
        f"a signing key with {attribute}={value}": (
            functools.partial(signed_as, **{attribute: value}),
            f"0 {NOT_ONE}")
        for attribute, value in (
            ("C", "DE"), ("ST", "Vermont"), ("L", "Boeblingen"), ("O", "IBM"), ("CN", "IBM"),
            ("OU", "IBM Z Host Key Signing Service 2"))
    },
    "a signing key with one attribute less": (
        lambda: chain(signing_key={"subject": signing_key_name(("C", "ST", "L", "O", "OU"))}),
        f"0 {NOT_ONE}"),
    "a signing key with one attribute more": (
        lambda: chain(signing_key={"subject": x509.Name([*POUGHKEEPSIE, *pki.name(O=pki.IBM)])}),
        f"0 {NOT_ONE}"),
}  # fmt: skip


HALVES = (HOST, pki.ml_kem_key("host").public_key())
BY_ANOTHER = make_chain(NOW, signing_key={"key": rsa_key("another signing key")})


@pytest.mark.parametrize(
    ("half", "options", "reason"),
    [
        (half, options, f"{name} {reason}")
        for half, name in enumerate(("its EC certificate\\)", "its ML-KEM certificate\\)"))
        for options, reason in (
            ({"end": -SECOND}, "has expired"),
            ({"start": SECOND}, "is not yet valid"),
            ({"authority_key": b"x" * 20}, "names another authority key"),
            (
                {"more": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b""), True)]},
                "has a critical",
            ),
            (None, "is not signed by"),
            ({}, "is revoked"),
        )
    ],
)
def test_each_half_of_a_hybrid_document_is_proven_by_the_same_rules(
    half: int, options: dict[str, Any] | None, reason: str, tmp_path: Path
) -> None:
    """Of the two certificates one is fine, the other differs in these options; None: in who signed it."""
    given, halves = Given.of(CHAIN), [CHAIN.document(key) for key in HALVES]
    given.documents["hkd-1"] = b"".join(map(pem, halves))
    given.judge(tmp_path / "good")
    issuer = CHAIN if options is not None else BY_ANOTHER
    halves[half] = issuer.document(HALVES[half], **(options or {}))
    given.documents["hkd-1"] = b"".join(map(pem, halves))
    if options == {}:
        given.config["signing-key.crl"] = CHAIN.signing_key.crl(revoked=[halves[half]])
    with pytest.raises(Refusal, match=rf"hkd-1 \(hybrid, {reason}"):
        given.judge(tmp_path / "bad")


@pytest.mark.parametrize("case", ACCEPTED)
def test_it_is_accepted(case: str, tmp_path: Path) -> None:
    ACCEPTED[case]().judge(tmp_path)


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused(case: str, tmp_path: Path) -> None:
    make, reason = REFUSED[case]
    with pytest.raises(Refusal, match=reason):
        make().judge(tmp_path)


def test_the_systems_own_roots_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root.pem").write_bytes(pem(CHAIN.root.certificate))
    name_hash = process.run(["openssl", "x509", "-noout", "-hash", "-in", tmp_path / "root.pem"]).strip()
    (tmp_path / f"{name_hash}.0").symlink_to("root.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "root.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(Refusal, match=f"{INTERMEDIATE} has an issuer"):
        trusting(make_root(NOW, "Another Root CA").certificate).judge(tmp_path)


@pytest.mark.parametrize("answer", ["exit 1", "echo something >&2; exit 2", "exit 0", "echo signing-key: OK"])
def test_an_openssl_that_gives_no_verdict_is_no_approval(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(FirstbootError, match="openssl is not installed"):
        Given.of(CHAIN).judge(tmp_path / "a")
    (programs / "openssl").write_text(f"#!/bin/sh\n{answer}\n")
    (programs / "openssl").chmod(0o755)
    with pytest.raises(FirstbootError):
        Given.of(CHAIN).judge(tmp_path / "b")


# Fetching CRLs.


class Points:
    """The distribution points of a chain of its own; it has the CRLs, and remembers what it was asked."""

    def __init__(self, base: str = "http://crl.example") -> None:
        self.asked: list[str] = []
        self.patience: list[float | None] = []
        self.urls = {name: f"{base}/{name}.crl" for name in ("root", "intermediate", "signing-key")}
        self.chain = make_chain(
            NOW,
            intermediate={"crl_urls": ["ldap://crl.example/root", self.urls["root"]]},
            signing_key={"crl_urls": [self.urls["intermediate"]]},
        )
        self.served = {self.urls[name.removesuffix(".crl")]: crl for name, crl in self.chain.crls().items()}

    def given(self, *crls: str, urls: Sequence[str] = ()) -> Given:
        """With these CRLs at hand, and ``urls`` instead of the signing key's in the document."""
        given = Given.of(self.chain)
        given.config = {
            name: given.config[name] for name in given.config if not name.endswith(".crl") or name in crls
        }
        options = {"crl_urls": urls or [self.urls["signing-key"]]}
        given.documents = {name: pem(self.chain.document(HOST, **options)) for name in ("hkd-1", "hkd-2")}
        return given

    def fetch(self, url: str, seconds: float | None) -> bytes:
        self.asked.append(url)
        self.patience.append(seconds)
        if url in self.served:
            return self.served[url]
        raise Refusal("SX-TEST-01", f"no answer from {url}", "wait")


def test_crls_are_fetched_once_where_the_certificates_say(tmp_path: Path) -> None:
    points = Points()
    points.given().judge(tmp_path, points.fetch)
    assert sorted(points.asked) == sorted(points.urls.values())


ALL = ("root.crl", "intermediate.crl", "signing-key.crl")


def test_crls_are_fetched_though_those_given_would_do(tmp_path: Path) -> None:
    points = Points()
    points.given(*ALL).judge(tmp_path, points.fetch)
    assert sorted(points.asked) == sorted(points.urls.values())


def test_without_a_network_those_given_do(tmp_path: Path) -> None:
    points = Points()
    points.served.clear()
    points.given(*ALL).judge(tmp_path / "no answer", points.fetch)
    assert len(points.asked) == 3
    points.given(*ALL).judge(tmp_path / "offline")


@pytest.mark.parametrize("given_is_newer", [True, False])
def test_the_newer_of_two_crls_of_a_ca_counts(given_is_newer: bool, tmp_path: Path) -> None:
    points = Points()
    given = points.given(*ALL)
    signer, ca = points.chain.signing_key.certificate, points.chain.intermediate
    newer, older = ca.crl(start=-1, revoked=[signer]), ca.crl(start=-2)
    given.config["intermediate.crl"] = newer if given_is_newer else older
    points.served[points.urls["intermediate"]] = older if given_is_newer else newer
    with pytest.raises(Refusal, match=f"{SIGNING_KEY} is revoked"):
        given.judge(tmp_path / "newer", points.fetch)
    given.config["intermediate.crl"], points.served[points.urls["intermediate"]] = older, older
    given.judge(tmp_path / "older", points.fetch)


@pytest.mark.parametrize("start", [-2, -SECOND])
def test_a_crl_given_does_not_hide_what_a_fetched_one_revokes(start: float, tmp_path: Path) -> None:
    points = Points()
    given = points.given(*ALL)
    given.judge(tmp_path / "before", points.fetch)
    revoked = x509.load_pem_x509_certificate(given.documents["hkd-2"])
    points.served[points.urls["signing-key"]] = points.chain.signing_key.crl(start=start, revoked=[revoked])
    with pytest.raises(Refusal, match="hkd-2 is revoked"):
        given.judge(tmp_path / "after", points.fetch)


def test_a_crl_of_nobody_does_not_take_the_place_of_one_that_is_given(tmp_path: Path) -> None:
    points = Points()
    authorities = (points.chain.root, points.chain.intermediate, points.chain.signing_key)
    for url, authority in zip(points.urls.values(), authorities, strict=True):
        points.served[url] = authority.crl(start=-SECOND, signed_by=ec_key("x"))
    points.given(*ALL).judge(tmp_path / "given", points.fetch)
    with pytest.raises(Refusal, match="is not signed by it"):
        points.given().judge(tmp_path / "none", points.fetch)


def test_looking_for_newer_crls_takes_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points, clock = Points(), [1000.0]
    monkeypatch.setattr("secex_firstboot.hostkeys.crl.time.monotonic", lambda: clock[0])

    def no_answer(url: str, seconds: float | None) -> bytes:
        clock[0] += 20
        return points.fetch(url, seconds)

    points.served.clear()
    points.given(*ALL).judge(tmp_path / "given", no_answer)
    assert points.patience == [30.0, 10.0]
    points.patience.clear()
    with pytest.raises(Refusal, match=f"{CRL_OF['intermediate']} is missing"):
        points.given().judge(tmp_path / "none", no_answer)
    assert points.patience == [None] * 3


def test_an_expired_crl_is_fetched_anew(tmp_path: Path) -> None:
    points = Points()
    for number, whose in enumerate((points.chain.root, points.chain.intermediate, points.chain.signing_key)):
        given = points.given("root.crl", "intermediate.crl", "signing-key.crl")
        given.config[["root.crl", "intermediate.crl", "signing-key.crl"][number]] = whose.crl(end=0)
        with pytest.raises(Refusal, match="has expired"):
            given.judge(tmp_path / f"offline-{number}")
        given.judge(tmp_path / f"online-{number}", points.fetch)


def test_the_next_url_is_tried_after_one_that_fails(tmp_path: Path) -> None:
    points = Points()
    good, other = points.urls["signing-key"], "http://other.example"
    points.given(urls=[other, good]).judge(tmp_path / "other first", points.fetch)
    assert other in points.asked
    points.asked.clear()
    points.given(urls=[good, other]).judge(tmp_path / "other last", points.fetch)
    assert other not in points.asked


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", pem(CHAIN.root.certificate), bytes(certificates.FILE_LIMIT + 1)],
    ids=["nothing", "HTML", "a certificate", "too much"],
)
def test_what_is_fetched_and_is_no_crl_is_passed_over(content: bytes, tmp_path: Path) -> None:
    points = Points()
    points.served["http://other.example"] = content
    given = points.given(urls=["http://other.example"])
    with pytest.raises(Refusal, match="CRL of IBM's host-key signing key is missing"):
        given.judge(tmp_path, points.fetch)


def test_a_fetched_crl_is_trusted_no_more_than_a_given_one(tmp_path: Path) -> None:
    points = Points()
    points.served[points.urls["root"]] = points.chain.root.crl(signed_by=ec_key("x"))
    with pytest.raises(Refusal, match=f"{CRL_OF['root']} is not signed by it"):
        points.given().judge(tmp_path, points.fetch)


def test_a_fetched_crl_revokes(tmp_path: Path) -> None:
    points = Points()
    given = points.given()
    revoked = x509.load_pem_x509_certificate(given.documents["hkd-2"])
    points.served[points.urls["signing-key"]] = points.chain.signing_key.crl(revoked=[revoked])
    with pytest.raises(Refusal, match="hkd-2 is revoked"):
        given.judge(tmp_path, points.fetch)


def test_why_a_crl_could_not_be_fetched_is_told(tmp_path: Path) -> None:
    points = Points()
    url = points.urls["intermediate"]
    del points.served[url]
    with pytest.raises(Refusal, match=f"{CRL_OF['intermediate']} is missing. no answer from {url}"):
        points.given().judge(tmp_path, points.fetch)


def test_only_so_many_urls_are_asked(tmp_path: Path) -> None:
    points = Points()
    given = points.given()
    for number in range(20):
        urls = [f"http://{number}.example/{mirror}" for mirror in range(20)]
        given.documents[f"hkd-{number}"] = pem(points.chain.document(HOST, crl_urls=urls))
    with pytest.raises(Refusal, match="is missing"):
        given.judge(tmp_path, points.fetch)
    assert len(points.asked) == 16


def test_the_client_for_documents_fetches_crls_too(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    with site.web_server(files) as port:
        points = Points(f"http://127.0.0.1:{port}")
        files |= {f"/{name}": crl for name, crl in points.chain.crls().items()}
        client = Client(Network(attempts=1), Timeouts(), Proxy(), True, points.asked.append)

        def fetch(url: str, seconds: float | None) -> bytes:
            return client.get(Request("a CRL", url, {}, certificates.FILE_LIMIT))

        points.given().judge(tmp_path, fetch)
    assert len(points.asked) == 3


# Reading the files.


def replaced(at: int, new: bytes, fields: list[bytes]) -> list[bytes]:
    return [*fields[:at], new, *fields[at + 1 :]]


def test_a_certificate_that_is_not_as_rfc_5280_wants_it_is_refused_by_its_file() -> None:
    signer = CHAIN.intermediate.key
    for field, new, reason in ((1, b"\2\1\x80", "negative serial"), (2, SHA_512_WITH_RSA, "two signature")):
        der = pki.resigned(
            SIGNER.public_bytes(Encoding.DER),
            signer,
            functools.partial(replaced, field, new),
        )
        with pytest.raises(Refusal, match=rf"a\.crt: a certificate or CRL (has a|names) {reason}"):
            certificates.parse("a.crt", der)
    assert certificates.parse("a.crt", pki.resigned(SIGNER.public_bytes(Encoding.DER), signer, list))


def test_a_crl_whose_signature_algorithms_disagree_is_refused_by_its_file() -> None:
    key, crl = CHAIN.signing_key.key, CHAIN.signing_key.crl()
    # The library, if it is new enough, or else we.
    with pytest.raises(Refusal, match=r"a\.crl(: a certificate or CRL names two| holds something else)"):
        certificates.parse("a.crl", pki.resigned(crl, key, lambda f: [f[0], SHA_512_WITH_RSA, *f[2:]]))
    assert certificates.parse("a.crl", pki.resigned(crl, key, list))


def test_pem_bundles_and_der_are_read_alike(tmp_path: Path) -> None:
    def crl_pem(der: bytes) -> bytes:
        return x509.load_der_x509_crl(der).public_bytes(Encoding.PEM)

    given = Given.of(CHAIN)
    chain = given.config["signing-key.crt"] + b"text between\n" + given.config["intermediate.crt"]
    crls = b"".join(map(crl_pem, CHAIN.crls().values()))
    root = CHAIN.root.certificate.public_bytes(Encoding.DER)
    for number, config in enumerate(
        ({"a.crt": chain, "b.crl": crls}, {"a.crt": chain + crls}, {"a.crl": crls + chain})
    ):
        Given(given.documents, config, {"root.crt": root}).judge(tmp_path / str(number))


def test_the_image_may_have_more_than_the_root(tmp_path: Path) -> None:
    given = Given.of(CHAIN)
    Given(given.documents, {}, given.image | given.config | {"README": b"text"}).judge(tmp_path)


@pytest.mark.parametrize("name", ["bad.crt", "bad.crl"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"-----BEGIN ",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        pem(CHAIN.root.certificate)[:-40],
        DOCUMENT.public_bytes(Encoding.DER).replace(
            b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01"
        ),  # version 2
        pem(CHAIN.root.certificate) + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ],
)
def test_a_file_of_something_else_is_refused_by_its_name(name: str, content: bytes, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=f"{name} holds something else"):
        certificates.load(tmp_path, [(name, content)])


def test_the_suffix_says_what_a_der_file_is() -> None:
    certificate, crl = CHAIN.root.certificate.public_bytes(Encoding.DER), CHAIN.root.crl()
    assert certificates.parse("a.crt", certificate) == [CHAIN.root.certificate]
    assert certificates.parse("a.crl", crl) == [x509.load_der_x509_crl(crl)]
    for name, content in (("a.crt", crl), ("a.crl", certificate)):
        with pytest.raises(Refusal, match=f"{name} holds something else"):
            certificates.parse(name, content)


def test_a_file_over_the_limit_is_refused() -> None:
    one = pem(CHAIN.root.certificate)
    assert certificates.parse("a.crt", one.rjust(certificates.FILE_LIMIT))
    with pytest.raises(Refusal, match=r"a\.crt is larger than"):
        certificates.parse("a.crt", one.rjust(certificates.FILE_LIMIT + 1))


def test_more_certificates_than_any_chain_needs_are_refused(tmp_path: Path) -> None:
    one = pem(CHAIN.root.certificate)
    assert certificates.load(tmp_path, [("a.crt", one * 64)])
    with pytest.raises(Refusal, match=r"a\.crt: there are more than 64"):
        certificates.load(tmp_path, [("a.crt", one * 65)])
    with pytest.raises(Refusal, match="the config: there are more than 64"):
        certificates.load(tmp_path, [("a.crt", one * 64), ("b.crt", one)])


FILES = [DOCUMENT.public_bytes(Encoding.DER), CHAIN.root.crl(), pem(CHAIN.root.certificate)]


@settings(deadline=None)
@drawn(strategies.data())
def test_nothing_but_a_refusal_comes_of_any_file(data: strategies.DataObject) -> None:
    content = bytearray(data.draw(strategies.sampled_from(FILES)))
    for place in data.draw(strategies.lists(strategies.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(strategies.integers(0, 255))
    try:
        certificates.parse(data.draw(strategies.sampled_from(["a.crt", "a.crl"])), bytes(content))
    except Refusal as refusal:
        assert refusal.cure
