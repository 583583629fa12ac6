"""Hashes in files of fields, in lower-case hexadecimal digits."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

# Of a host's public key, as the SE header has it: SHA-256, of a hybrid key SHA-512 (contract/key_kind.py).
HostKeyHash = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64}|[0-9a-f]{128})$")]
