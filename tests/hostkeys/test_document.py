"""Host-key documents: what is read, what is refused, and the hash that names the host."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from support import TEST_VECTORS, needs

from secex_firstboot.basic import process
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.key_kind import KeyKind
from secex_firstboot.hostkeys import form
from secex_firstboot.hostkeys.document import (
    check_header_version,
    check_one_kind,
    check_this_host,
    distinct,
    key_hash,
    parse,
    this_host_key_hashes,
)

VECTORS = TEST_VECTORS / "se-image"
HOST_A = (VECTORS / "host-a.crt").read_bytes()
HOST_B = (VECTORS / "host-b.crt").read_bytes()


def certificate(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a host")])
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=datetime(2025, 1, 1, tzinfo=UTC),
        not_valid_after=datetime(2035, 1, 1, tzinfo=UTC),
    )
    return builder.sign(key, hashes.SHA512()).public_bytes(Encoding.PEM)


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def test_pem_and_der_give_the_same_document() -> None:
    content = certificate(ec.generate_private_key(ec.SECP521R1()))
    from_pem, from_der = parse("a", content), parse("a", der(content))
    assert from_pem.certificates == from_der.certificates == (x509.load_pem_x509_certificate(content),)
    assert key_hash(from_pem) == key_hash(from_der)
    assert from_pem.name == from_der.name == "a"


@pytest.mark.parametrize(
    ("image", "hosts"), [("two-keys.img", [HOST_A, HOST_B]), ("no-ramdisk.img", [HOST_B])]
)
def test_the_key_hash_is_the_one_in_the_key_slots_of_genprotimg(image: str, hosts: list[bytes]) -> None:
    header = (VECTORS / image).read_bytes().partition(b"IBMSecEx")[2]
    slots = [header[416 - 8 + 80 * slot :][:32] for slot in range(len(hosts))]
    assert [key_hash(parse("host", host)) for host in hosts] == slots


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (certificate(ec.generate_private_key(ec.SECP384R1())), "no secp521r1 key"),
        (certificate(rsa.generate_private_key(65537, 2048)), "no secp521r1 key"),
        (HOST_A + HOST_B, "no ML-KEM-1024 key"),
        (b"", "no X.509 certificate"),
        (b"<html>not found</html>", "no X.509 certificate"),
        (der(HOST_A)[:-1], "no X.509 certificate"),
        (der(HOST_A) + b"\0", "no X.509 certificate"),
        (HOST_A[:-40], "no X.509 certificate"),
        (
            der(HOST_A).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01"),
            "no X.509 certificate",
        ),  # version 2
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no X.509 certificate"),
    ],
)
def test_anything_but_one_certificate_of_a_host_key_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(Refusal, match=f"document ibm-z-hostkey-1 .*{reason}") as refused:
        parse("ibm-z-hostkey-1", content)
    assert refused.value.cure


# Files with more than one face.


@pytest.mark.parametrize("around", [b"", b"\n", b"\r\n \t", b"\n" * 1000])
def test_white_space_around_the_block_is_no_second_face(around: bytes) -> None:
    assert parse("a", around + HOST_A + around).certificates == (x509.load_pem_x509_certificate(HOST_A),)
    assert parse("a", around + HOST_A.replace(b"\n", b"\r\n")).pem == HOST_A


ANOTHER_BLOCK = b"-----BEGIN EC PARAMETERS-----\nBgUrgQQAIw==\n-----END EC PARAMETERS-----\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (der(HOST_A) + HOST_B, "something else beside its certificate"),
        (HOST_B + der(HOST_A), "something else beside its certificate"),
        (b"\n" + der(HOST_A) + HOST_B, "something else beside its certificate"),
        (der(HOST_A) + der(HOST_B), "no X.509 certificate"),
        (b"\n" + der(HOST_A), "no X.509 certificate"),
        (HOST_A + HOST_A, "no ML-KEM-1024 key"),
        (HOST_A + HOST_B + HOST_A, "3 certificates"),
        (HOST_A.replace(b"BEGIN CERT", b"BEGIN TRUSTED CERT") + HOST_B, "something else beside"),
        (HOST_A.replace(b" CERT", b" X509 CERT") + HOST_B, "something else beside its certificate"),
        (HOST_A.replace(b" CERT", b" X509 CERT"), "no X.509 certificate"),
        (ANOTHER_BLOCK + HOST_A, "something else beside its certificate"),
        (b"Subject: a host\n" + HOST_A, "something else beside its certificate"),
        (HOST_A + b"text", "something else beside its certificate"),
        (HOST_A + b"\0", "something else beside its certificate"),
        (HOST_A.replace(b"-----\nMII", b"-----\nProc-Type: 4,CLEAR\n\nMII"), "no X.509 certificate"),
        (HOST_A.replace(b"\n-----END", b"\n" + HOST_B[28:60] + b"\n-----END"), "no X.509 certificate"),
    ],
)
def test_a_file_in_which_another_reader_could_find_something_else_is_refused(
    content: bytes, reason: str
) -> None:
    with pytest.raises(Refusal, match=f"document ibm-z-hostkey-1 .*{reason}") as refused:
        parse("ibm-z-hostkey-1", content)
    assert refused.value.cure


@needs.programs("openssl")
def test_what_is_handed_on_is_the_certificate_encoded_anew(tmp_path: Path) -> None:
    for content in (HOST_A, der(HOST_A), b"\n" + HOST_A + b" \n"):
        document = parse("a", content)
        assert document.pem == HOST_A
        (tmp_path / "a").write_bytes(document.pem)
        shown = process.run(["openssl", "x509", "-in", tmp_path / "a", "-outform", "PEM"])
        assert shown.encode() == HOST_A


# Hybrid documents.

HYBRID = (TEST_VECTORS / "se-header-v2" / "host-hybrid.crt").read_bytes()
FIRST, SECOND = HYBRID[: HYBRID.rindex(b"-----BEGIN")], HYBRID[HYBRID.rindex(b"-----BEGIN") :]


def test_a_hybrid_document_is_the_certificates_of_both_keys() -> None:
    document = parse("a", HYBRID)
    assert document.key.kind is KeyKind.HYBRID
    assert document.certificates == tuple(x509.load_pem_x509_certificates(HYBRID))
    assert document.pem == b"".join(each.public_bytes(Encoding.PEM) for each in document.certificates)
    assert parse("a", document.pem) == document
    assert document.key.ml_kem == form.public_key_info(document.certificates[1])[-1568:]
    assert document.key.ec == parse("a", FIRST).key.ec
    assert len(key_hash(document)) == 64


def test_its_first_certificate_alone_is_a_classical_document() -> None:
    assert parse("a", FIRST).key.kind is KeyKind.CLASSICAL


def test_a_hybrid_document_ends_with_the_first_of_its_halves() -> None:
    document = parse("a", HYBRID)
    assert document.expires == min(each.not_valid_after_utc for each in document.certificates)


def other_ml_kem(oid_byte: int = 3, start: bytes = b"") -> bytes:
    """The second certificate with another algorithm's number, or another beginning of its key."""
    content = der(SECOND).replace(
        bytes.fromhex("0609608648016503040403"), bytes.fromhex("06096086480165030404") + bytes([oid_byte])
    )
    key = parse("a", HYBRID).key.ml_kem
    pem = x509.load_der_x509_certificate(content.replace(key, start + key[len(start) :]))
    return pem.public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (SECOND, "no secp521r1 key"),
        (SECOND + FIRST, "no secp521r1 key"),
        (FIRST + FIRST, "no ML-KEM-1024 key in its second"),
        (FIRST + other_ml_kem(2), "no ML-KEM-1024 key in its second"),
        (FIRST + other_ml_kem(start=b"\xff\xff\xff"), "no ML-KEM-1024 key in its second"),
        (HYBRID + HOST_A, "3 certificates, not one, nor a hybrid one's two"),
        (der(FIRST) + SECOND, "something else beside"),
        (FIRST + der(SECOND), "something else beside"),
        (FIRST + b"text\n" + SECOND, "something else beside"),
        (FIRST + SECOND.replace(b"\n-----END", b"AAAA\n-----END"), "no X.509 certificate"),
    ],
)
def test_two_certificates_that_are_no_hybrid_document_are_refused(content: bytes, reason: str) -> None:
    assert parse("a", FIRST + other_ml_kem())
    with pytest.raises(Refusal, match=reason) as refused:
        parse("a", content)
    assert refused.value.cure


def test_documents_of_two_kinds_are_refused_by_their_names() -> None:
    classical, hybrid = [parse("a", HOST_A), parse("b", HOST_B)], parse("h", HYBRID)
    check_one_kind(classical)
    check_one_kind([hybrid, hybrid])
    with pytest.raises(Refusal, match="of two: classical: a, b; hybrid: h") as refused:
        check_one_kind([*classical, hybrid])
    assert "hosts add --replace" in refused.value.cure


@settings(deadline=None)
@given(st.data())
def test_nothing_but_a_refusal_comes_of_any_content(data: st.DataObject) -> None:
    content = bytearray(
        data.draw(st.sampled_from([HOST_A, der(HOST_A), HYBRID, b"\x30\x03", b"-----BEGIN "]))
    )
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    try:
        key_hash(parse("a", bytes(content) + data.draw(st.binary(max_size=20))))
    except Refusal as refusal:
        assert refusal.cure


def test_a_host_named_twice_counts_once_and_the_order_stays() -> None:
    documents = [parse("b", HOST_B), parse("a", HOST_A), parse("b again", der(HOST_B))]
    assert [document.name for document in distinct(documents)] == ["b", "a"]


HASH_A, HASH_B = (key_hash(parse("host", content)) for content in (HOST_A, HOST_B))
LISTED = key_hash(parse("hybrid", HYBRID))[:32]
NO_HASH = bytes(32)


def key_list(directory: Path, *hashes: bytes) -> Path:
    """What the kernel lists: 15 slots, a line each."""
    lines = [each.hex() for each in (*hashes, *[NO_HASH] * (15 - len(hashes)))]
    (directory / "all").write_text("\n".join(lines) + "\n")
    return directory


@pytest.mark.parametrize("hashes", [[], [HASH_A], [HASH_A, HASH_B], [NO_HASH, HASH_B]])
def test_the_machine_has_the_keys_that_are_not_zero(hashes: list[bytes], tmp_path: Path) -> None:
    assert this_host_key_hashes(key_list(tmp_path, *hashes)).keys() == set(hashes) - {NO_HASH}


def test_the_place_in_the_list_says_what_kind_of_key_it_is(tmp_path: Path) -> None:
    found = this_host_key_hashes(key_list(tmp_path, *(bytes([number]) * 32 for number in range(1, 16))))
    assert [found[bytes([number]) * 32] for number in range(1, 16)] == [
        *[KeyKind.CLASSICAL] * 2,
        *[None] * 2,
        *[KeyKind.HYBRID] * 2,
        *[None] * 9,
    ]


def test_a_machine_that_lists_no_keys_has_unknown_ones(tmp_path: Path) -> None:
    assert this_host_key_hashes(tmp_path / "keys") == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"none\n",
        b"g" * 64,
        b"1" * 66,
        HASH_A.hex().encode()[:-2],
        HASH_A,
        b"\xff" * 64,
        b"0x" + b"1" * 64,
    ],
)
def test_a_line_in_another_form_is_no_key(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "all").write_bytes(content + b"\n" + HASH_B.hex().encode())
    assert this_host_key_hashes(tmp_path).keys() == {HASH_B}


def test_no_more_than_a_page_is_read(tmp_path: Path) -> None:
    (tmp_path / "all").write_bytes(
        b"\n" * (4096 - 64) + HASH_A.hex().encode() + b"\n" + HASH_B.hex().encode()
    )
    assert this_host_key_hashes(tmp_path).keys() == {HASH_A}


def test_a_machine_without_a_document_is_refused_by_its_hashes() -> None:
    a, b = parse("a", HOST_A), parse("b", HOST_B)
    machine = {HASH_A: KeyKind.CLASSICAL, LISTED: KeyKind.HYBRID}
    hashes = ", ".join(sorted([rf"{HASH_A.hex()} \(classical\)", rf"{LISTED.hex()} \(hybrid\)"]))
    with pytest.raises(Refusal, match=f"whose keys have the hash {hashes}") as refused:
        check_this_host([b], machine)
    assert refused.value.cure
    with pytest.raises(Refusal, match=r"\(of unknown kind\)"):
        check_this_host([b], {NO_HASH: None})
    check_this_host([b, a], machine)
    check_this_host([parse("hybrid", HYBRID)], machine)
    check_this_host([b], machine | {HASH_B: None})
    check_this_host([b], {})


@pytest.mark.parametrize(
    ("told", "classical", "hybrid"),
    [
        ("8000000000000000\n", True, False),
        ("c000000000000000\n", True, True),
        ("4000000000000000", False, True),
        ("0\n", False, False),
        ("", True, True),
        ("-1\n", True, True),
        ("8000000000000000\n0\n", True, True),
        ("08000000000000000\n", True, True),
    ],
)
def test_a_machine_that_does_not_take_the_version_of_the_header_is_refused(
    told: str, classical: bool, hybrid: bool, tmp_path: Path
) -> None:
    """What is in another form, or not there, tells nothing."""
    file = tmp_path / "supp_se_hdr_ver"
    for content, version, taken in ((HOST_A, "0x100", classical), (HYBRID, "0x200", hybrid)):
        documents = [parse("a", content)]
        file.unlink(missing_ok=True)
        check_header_version(documents, file)
        file.write_text(told)
        if taken:
            check_header_version(documents, file)
            continue
        with pytest.raises(Refusal, match=f"takes no SE header of version {version}, which") as refused:
            check_header_version(documents, file)
        assert refused.value.cure
