"""Read files and encrypt as many bytes as a boot image is encrypted, with nothing else.

``read_and_encrypt.py FILE…``, in the provisioned system.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

CHUNK = 1 << 20

for path in sys.argv[1:]:
    encryptor = Cipher(algorithms.AES(os.urandom(64)), modes.XTS(os.urandom(16))).encryptor()
    with Path(path).open("rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK):
            encryptor.update(chunk.ljust(16, b"\0"))
