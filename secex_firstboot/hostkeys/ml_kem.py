"""ML-KEM-1024, the half of a hybrid host key that a quantum computer does not break: FIPS 203.

The cryptography library has it from 48 on, if the OpenSSL below it does; OpenSSL's program from 3.5 on.
"""

from __future__ import annotations

import os
from base64 import encodebytes
from contextlib import ExitStack

from cryptography.exceptions import UnsupportedAlgorithm

from secex_firstboot.basic import process
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import in_memory

KEY_SIZE, CIPHERTEXT_SIZE, SECRET_SIZE = 1568, 1568, 32  # bytes
_Q, _SEED_SIZE = 3329, 32
# SubjectPublicKeyInfo up to the key: SEQUENCE, id-alg-ml-kem-1024 without parameters, BIT STRING. RFC 9935.
_PREFIX = bytes.fromhex("30820632 300b 0609608648016503040403 03820621 00")


def public_key(info: bytes) -> bytes:
    """The raw key of a SubjectPublicKeyInfo in DER; nothing if that is of another kind, or no sound key."""
    key = info.removeprefix(_PREFIX)
    return key if len(info) == len(_PREFIX) + len(key) == len(_PREFIX) + KEY_SIZE and _is_sound(key) else b""


def encapsulate(key: bytes) -> tuple[bytes, bytes]:
    """A fresh shared secret, and the ciphertext out of which the private key gets it. Raises Refusal."""
    try:
        from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PublicKey

        return MLKEM1024PublicKey.from_public_bytes(key).encapsulate()
    except (ImportError, UnsupportedAlgorithm):
        return _encapsulate_with_program(key)


def _encapsulate_with_program(key: bytes) -> tuple[bytes, bytes]:
    """openssl-pkeyutl(1). The secret is in memory, in a file without a name."""
    pem = b"-----BEGIN PUBLIC KEY-----\n" + encodebytes(_PREFIX + key) + b"-----END PUBLIC KEY-----\n"
    with ExitStack() as files:
        public, secret, ciphertext = (
            files.enter_context(in_memory(name)) for name in ("public", "secret", "ciphertext")
        )
        public.write(pem)
        code = process.run_on_files(
            [
                *("openssl", "pkeyutl", "-encap", "-pubin", "-inkey", "/proc/self/fd/0"),
                *("-secret", f"/proc/self/fd/{secret.fileno()}"),
            ],
            stdin=public,
            stdout=ciphertext,
            inherited=[secret.fileno()],
            environment=os.environ,
        )
        shared, sent = (os.pread(each.fileno(), CIPHERTEXT_SIZE + 1, 0) for each in (secret, ciphertext))
    if code or (len(shared), len(sent)) != (SECRET_SIZE, CIPHERTEXT_SIZE):
        raise Refusal(
            "SX-HOSTKEY-38",
            "nothing here can encapsulate with ML-KEM-1024, which hybrid host keys need",
            "build the image with OpenSSL 3.5 or newer, or give classical host-key documents",
        )
    return shared, sent


def _is_sound(key: bytes) -> bool:
    """All coefficients, 12 bits each, are below the modulus: FIPS 203, 7.2."""
    triples = (key[at : at + 3] for at in range(0, KEY_SIZE - _SEED_SIZE, 3))
    pairs = (int.from_bytes(triple, "little") for triple in triples)
    return all(pair & 0xFFF < _Q and pair >> 12 < _Q for pair in pairs)
