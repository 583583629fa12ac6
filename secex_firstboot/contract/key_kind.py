"""The two kinds of host keys, by what a recorder may break one day."""

from __future__ import annotations

from enum import StrEnum


class KeyKind(StrEnum):
    """A quantum computer breaks classical ones; hybrid ones hold as long as one of their halves does."""

    CLASSICAL = "classical"
    HYBRID = "hybrid"

    @property
    def header_version(self) -> int:
        """Of the SE headers that have key slots for them, and for no others."""
        return 0x200 if self is KeyKind.HYBRID else 0x100
