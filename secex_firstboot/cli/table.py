"""Tables for people: a label, and beside it text that is wrapped."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

COLUMNS = 100  # of what is for people, on a workstation or in a guest
_LABEL = 12


def page(rows: Iterable[tuple[str, Iterable[str]]]) -> Iterator[str]:
    """The lines of a table of labels and texts."""
    for label, texts in rows:
        yield from row(f"{label:<{_LABEL}}", texts, COLUMNS, break_words=True)


def row(label: str, texts: Iterable[str], columns: int, *, break_words: bool = False) -> list[str]:
    """The lines of one row; each text begins behind the label's column. Only printable characters."""
    indent = " " * len(label)
    lines: list[str] = []
    for text in texts:
        first = indent if lines else label
        lines += textwrap.wrap(
            printable(text),
            columns,
            initial_indent=first,
            subsequent_indent=indent,
            break_long_words=break_words,
            break_on_hyphens=False,
        ) or [first.rstrip()]
    return lines


def printable(text: str) -> str:
    """A terminal takes other characters for commands."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)
