"""Tables for people: a label, and beside it text that is wrapped."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secex_firstboot.contract.dry_run import Observation

COLUMNS = 100  # of what is for people, on a workstation or in a guest
_LABEL = 12


def page(rows: Iterable[tuple[str, Iterable[str]]]) -> Iterator[str]:
    """The lines of a table of labels and texts."""
    for label, texts in rows:
        yield from row(f"{label:<{_LABEL}}", texts, COLUMNS)


def steps(seen: Sequence[Observation], columns: int) -> Iterator[str]:
    """The lines of what a dry run says."""
    width = max(len(each.step.name) for each in seen)
    for each in seen:
        begin = f"{each.step.name:<{width}}  {each.state:<7}  "
        texts = (each.detail, *(f"not told here: {untold}" for untold in each.untold))
        yield from row(begin, texts, columns)


def row(label: str, texts: Iterable[str], columns: int) -> list[str]:
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
            break_on_hyphens=False,
        ) or [first.rstrip()]
    return lines


def printable(text: str) -> str:
    """A terminal takes other characters for commands."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)
