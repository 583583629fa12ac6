"""LUKS2 headers that a host can write, and that cryptsetup up to 2.7 opens with whatever key it is given.

With a null cipher for the data all that is written is plain; with one for a keyslot, the volume key in it is
for all to read, and the mapping looks as it should.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from harness.tamper import rewrite_luks_header

KEY = b"the host's own key"
_SIZE = 20 << 20
_HEADER = 1 << 20  # bytes that have both copies of the metadata, and the first keyslot
_AES, _NULL = b"aes-xts-plain64", b"cipher_null-ecb"  # of one length


def make(path: Path) -> None:
    """A volume whose one keyslot every key opens."""
    path.touch()
    os.truncate(path, _SIZE)
    options = ["--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--batch-mode"]
    argv = ["cryptsetup", "luksFormat", *options, "--key-file=-", str(path)]
    subprocess.run(argv, input=KEY, check=True)
    _decrypt_keyslot(path)
    _rewrite(path, b'"encryption":"%s","key_size":64')


def give_null_data(path: Path) -> None:
    """Let the volume's header say that its data is not encrypted."""
    _rewrite(path, b'"encryption":"%s","sector_size"')


def metadata(path: Path) -> dict[str, Any]:
    """The JSON of a header: LUKS2 On-Disk Format Specification, 3."""
    with path.open("rb") as stream:
        found = json.loads(stream.read(16384)[4096:].split(b"\0")[0])
    assert isinstance(found, dict)
    return found


def _rewrite(path: Path, text: bytes) -> None:
    with path.open("r+b") as stream:
        header = stream.read(_HEADER)
        assert text % _AES in header
        stream.seek(0)
        stream.write(rewrite_luks_header(header, text % _AES, text % _NULL))


def _decrypt_keyslot(path: Path) -> None:
    """What is read with a null cipher then: the volume key, split into stripes as in LUKS1."""
    slot = metadata(path)["keyslots"]["0"]
    kdf, start, size = slot["kdf"], int(slot["area"]["offset"]), 64 * slot["af"]["stripes"]
    key = hashlib.pbkdf2_hmac(kdf["hash"], KEY, base64.b64decode(kdf["salt"]), kdf["iterations"], 64)
    with path.open("r+b") as stream:
        stream.seek(start)
        area = stream.read(size)
        stream.seek(start)
        for number in range(size // 512):
            sector = Cipher(algorithms.AES(key), modes.XTS(number.to_bytes(16, "little"))).decryptor()
            stream.write(sector.update(area[512 * number : 512 * (number + 1)]))
