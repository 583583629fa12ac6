"""What was seen of one step on a workstation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MOST_LISTED = 6


@dataclass(frozen=True)
class Look:
    """``detail`` says what was found, ``untold`` what first boot looks at too, and cannot be seen here."""

    detail: str
    untold: Sequence[str] = ()


def listed(places: Sequence[str]) -> str:
    """Places in the config, in a line that stays readable."""
    more = len(places) - _MOST_LISTED
    return ", ".join(places[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
