"""The user's settings of a provisioned system: /etc/secex-firstboot.conf, a row each.

Lines of KEY=VALUE, as in os-release(5) without quotes; a line that begins with # is a comment.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.parameters import Grow

W = TypeVar("W", bound=StrEnum)

_LIMIT = 4096  # bytes


class Fallback(StrEnum):
    """What an update leaves to start from, beside the new boot image."""

    TRY = "try"  # the one that came up last, which starts until the new one has come up
    DIRECT = "direct"  # the same, but the new one starts at once
    OFF = "off"  # nothing


@dataclass(frozen=True)
class Setting(Generic[W]):
    """``values``: the words that it can be set to; ``default``: where the file does not have it."""

    key: str
    values: type[W]
    default: W


GROW = Setting("grow", Grow, Grow.BACKGROUND)
FALLBACK = Setting("fallback", Fallback, Fallback.TRY)
_KNOWN: dict[str, Setting[Any]] = {row.key: row for row in (GROW, FALLBACK)}


_KEYS = " and ".join(f"{key}=VALUE" for key in _KNOWN)


def value(file: Path, row: Setting[W]) -> W:
    """What the file says, or that it is not there. Raises Refusal if anything in it makes no sense."""
    return row.values(_read(file).get(row.key, row.default))


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as stream:
            content = stream.read(_LIMIT + 1)
    except FileNotFoundError:
        return {}
    if len(content) > _LIMIT:
        raise Refusal("SX-DISK-18", f"{path} is larger than {_LIMIT} bytes", "shorten it")
    found = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        key, _, word = text.partition("=")
        if key not in _KNOWN:
            raise Refusal(
                "SX-DISK-19",
                f"{path}, line {number}: only {_KEYS} can be set here",
                "correct the line",
            )
        words = [str(each) for each in _KNOWN[key].values]
        if word not in words:
            raise Refusal(
                "SX-DISK-20",
                f"{path}, line {number}: {key} has an unknown value",
                f"use one of {', '.join(words)}",
            )
        found[key] = word
    return found
