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
from secex_firstboot.hostkeys.document import check_this_host, distinct, key_hash, parse, this_host_key_hashes

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
    assert from_pem.certificate == from_der.certificate == x509.load_pem_x509_certificate(content)
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
        (HOST_A + HOST_B, "2 certificates"),
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
    assert parse("a", around + HOST_A + around).certificate == x509.load_pem_x509_certificate(HOST_A)
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
        (HOST_A + HOST_A, "2 certificates"),
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


def test_a_hybrid_document_is_refused_by_its_name() -> None:
    """Of s390-tools 2.44: a certificate for the host's EC key, and one for its ML-KEM-1024 key."""
    hybrid = (VECTORS.parent / "hybrid" / "host-hybrid.crt").read_bytes()
    with pytest.raises(Refusal, match=r"is a hybrid \(EC and ML-KEM-1024\) document, which this") as refused:
        parse("a", hybrid)
    assert "EC key alone" in refused.value.cure
    second = hybrid.rindex(b"-----BEGIN")
    with pytest.raises(Refusal, match="no secp521r1 key"):
        parse("a", hybrid[second:])
    assert parse("a", hybrid[:second]).public_key.curve.name == "secp521r1"
    with pytest.raises(Refusal, match="3 certificates"):
        parse("a", hybrid + HOST_A)


@settings(deadline=None)
@given(st.data())
def test_nothing_but_a_refusal_comes_of_any_content(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from([HOST_A, der(HOST_A), b"\x30\x03", b"-----BEGIN "])))
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
NO_HASH = bytes(32)


def key_list(directory: Path, *hashes: bytes) -> Path:
    """What the kernel lists: 15 slots, a line each."""
    lines = [each.hex() for each in (*hashes, *[NO_HASH] * (15 - len(hashes)))]
    (directory / "all").write_text("\n".join(lines) + "\n")
    return directory


@pytest.mark.parametrize("hashes", [[], [HASH_A], [HASH_A, HASH_B], [NO_HASH, HASH_B]])
def test_the_machine_has_the_keys_that_are_not_zero(hashes: list[bytes], tmp_path: Path) -> None:
    assert this_host_key_hashes(key_list(tmp_path, *hashes)) == set(hashes) - {NO_HASH}


def test_a_machine_that_lists_no_keys_has_unknown_ones(tmp_path: Path) -> None:
    assert this_host_key_hashes(tmp_path / "keys") == set()


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
    assert this_host_key_hashes(tmp_path) == {HASH_B}


def test_no_more_than_a_page_is_read(tmp_path: Path) -> None:
    (tmp_path / "all").write_bytes(
        b"\n" * (4096 - 64) + HASH_A.hex().encode() + b"\n" + HASH_B.hex().encode()
    )
    assert this_host_key_hashes(tmp_path) == {HASH_A}


def test_a_machine_without_a_document_is_refused_by_its_hash() -> None:
    a, b = parse("a", HOST_A), parse("b", HOST_B)
    with pytest.raises(Refusal, match=f"whose keys have the SHA-256 {HASH_A.hex()}") as refused:
        check_this_host([b], {HASH_A})
    assert refused.value.cure
    check_this_host([b, a], {HASH_A})
    check_this_host([b], {HASH_A, HASH_B})
    check_this_host([b], set())
