"""Hybrid host keys: hash, key agreement, encapsulation; known answers of s390-tools: vectors/se-header-v2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from harness import ultravisor
from support import TEST_VECTORS

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.hostkeys import document, ml_kem
from secex_firstboot.hostkeys.key import HostKey, coordinates, key_hash, listed_hash, shared_point

VECTORS = TEST_VECTORS / "se-header-v2"
ML_KEM = MLKEM1024PrivateKey.from_seed_bytes((VECTORS / "host-mlkem.seed.bin").read_bytes())
EC = document.parse("ec", (VECTORS / "host-ec.crt").read_bytes()).key.ec
HOST = HostKey(EC, ML_KEM.public_key().public_bytes_raw())
CUSTOMER = ec.derive_private_key(
    int.from_bytes((VECTORS / "customer-private.bin").read_bytes(), "big"), ec.SECP521R1()
)
INFO = ML_KEM.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
KDF_INPUT = (VECTORS / "kdf-input.bin").read_bytes()


def test_the_hash_is_that_of_the_key_slot() -> None:
    assert key_hash(HOST) == (VECTORS / "keyslot-v2.bin").read_bytes()[:64]
    assert listed_hash(HOST) == key_hash(HOST)[:32]


def test_the_ml_kem_key_is_that_of_the_document() -> None:
    assert document.parse("h", (VECTORS / "host-hybrid.crt").read_bytes()).key.ml_kem == HOST.ml_kem


def test_the_shared_point_is_the_known_one() -> None:
    assert shared_point(CUSTOMER, EC) == KDF_INPUT[4:164]


def test_the_shared_point_has_the_right_one_of_two_ys() -> None:
    """Beside plain arithmetic, which the software ultravisor has."""
    for number in range(8):
        one, other = (ec.generate_private_key(ec.SECP521R1()) for _ in range(2))
        point = other.public_key().public_numbers()
        product = ultravisor._multiply(one.private_numbers().private_value, (point.x, point.y))
        assert shared_point(one, other.public_key()) == ultravisor._coordinates(*product), number
        assert shared_point(one, other.public_key()) == shared_point(other, one.public_key())


def test_the_point_itself_is_told_from_its_negative() -> None:
    """With the private key 1, where the formula's denominator is zero."""
    assert shared_point(ec.derive_private_key(1, ec.SECP521R1()), EC) == coordinates(EC)


def test_what_is_encapsulated_is_opened_by_the_private_key() -> None:
    secret, ciphertext = ml_kem.encapsulate(HOST.ml_kem)
    assert (len(secret), len(ciphertext)) == (ml_kem.SECRET_SIZE, ml_kem.CIPHERTEXT_SIZE)
    assert ML_KEM.decapsulate(ciphertext) == secret
    assert ml_kem.encapsulate(HOST.ml_kem)[0] != secret


def has_openssl_ml_kem() -> bool:
    try:
        listed = subprocess.check_output(["openssl", "list", "-kem-algorithms"], text=True)
    except OSError:
        return False
    return "ML-KEM-1024" in listed


@pytest.mark.skipif(not has_openssl_ml_kem(), reason="needs OpenSSL 3.5")
def test_what_openssls_program_encapsulates_is_opened_by_the_private_key() -> None:
    secret, ciphertext = ml_kem._encapsulate_with_program(HOST.ml_kem)
    assert ML_KEM.decapsulate(ciphertext) == secret


PLAYED = """#!/bin/sh
[ "$1 $2 $3 $4 $5 $6" = "pkeyutl -encap -pubin -inkey /proc/self/fd/0 -secret" ] || exit 2
cat > /dev/null
printf %0{secret}d 7 > "$7"
printf %0{ciphertext}d 8
exit {code}
"""


def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **answers: int) -> None:
    """An openssl that does as openssl-pkeyutl(1) says, where the real one is too old."""
    (tmp_path / "openssl").write_text(
        PLAYED.format(**{"secret": 32, "ciphertext": 1568, "code": 0} | answers)
    )
    (tmp_path / "openssl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_the_program_gets_the_key_and_gives_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(tmp_path, monkeypatch)
    assert ml_kem._encapsulate_with_program(HOST.ml_kem) == (b"7".rjust(32, b"0"), b"8".rjust(1568, b"0"))


@pytest.mark.parametrize("answers", [{"code": 1}, {"secret": 31}, {"secret": 33}, {"ciphertext": 1567}])
def test_a_program_that_cannot_is_refused(
    answers: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(tmp_path, monkeypatch, **answers)
    with pytest.raises(Refusal, match="nothing here can encapsulate") as refused:
        ml_kem._encapsulate_with_program(HOST.ml_kem)
    assert refused.value.cure


def test_without_the_librarys_the_program_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with cryptography before 48."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.mlkem", None)
    monkeypatch.setattr(ml_kem, "_encapsulate_with_program", lambda key: (key[:32], key))
    assert ml_kem.encapsulate(HOST.ml_kem) == (HOST.ml_kem[:32], HOST.ml_kem)


@pytest.mark.parametrize(
    ("place", "largest", "too_large"),
    [
        (0, "000d00", "010d00"),
        (0, "0000d0", "0010d0"),
        (1533, "000d00", "010d00"),
        (1533, "0000d0", "0010d0"),
    ],
)
def test_a_key_with_a_coefficient_beyond_the_modulus_is_none(
    place: int, largest: str, too_large: str
) -> None:
    """3328 and 3329, as the first and the second in three bytes; FIPS 203, 7.2."""
    at = len(INFO) - 1568 + place
    for triple, sound in ((largest, True), (too_large, False)):
        assert bool(ml_kem.public_key(INFO[:at] + bytes.fromhex(triple) + INFO[at + 3 :])) is sound


def test_a_key_of_another_size_is_none() -> None:
    assert ml_kem.public_key(INFO) == HOST.ml_kem
    for info in (INFO[:-1], INFO + b"\0", HOST.ml_kem, b""):
        assert not ml_kem.public_key(info)
