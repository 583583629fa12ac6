"""The messages of docs/troubleshooting.md by their IDs; ``make manual`` writes messages.json of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("messages.json")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Message:
    """A row: ``message`` in the code's words with capitals for what varies, and what to do. ``section``: the
    heading above it, a step's name for what a step says.
    """

    section: str
    message: str
    cure: str


@cache
def all_of_them() -> dict[str, list[Message]]:
    """By ID."""
    rows: dict[str, list[Message]] = {}
    for row in json.loads(_FILE.read_text(encoding="utf-8")):
        for each in row["ids"]:
            rows.setdefault(each, []).append(Message(row["section"], row["message"], row["cure"]))
    return rows


def of(id: str, text: str = "") -> Message | None:
    """The one with this ID; where there are several, that with the most words of ``text``."""
    words = set(_WORD.findall(text))
    rows = all_of_them().get(id, [])
    return max(rows, key=lambda row: len(words.intersection(_WORD.findall(row.message))), default=None)
