"""Writes the kernel parameters into the manual page, from the code's own table: make manual."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from secex_firstboot.contract import parameters
from secex_firstboot.contract.parameters import Parameter

PAGE = Path(__file__).with_name("secex-firstboot.8")
_BEGIN = '.\\" Kernel parameters: made by docs/manual.py, do not edit.\n'
_END = '.\\" End of the kernel parameters.\n'
_MARKED = re.compile(r"`([^`]*)`|\[([^]]*)\]|<([^>]*)>|([^`\[<]+)")
_MACROS = (".Cm", ".Sx", ".Pa")


def written(page: str) -> str:
    """The page with its kernel parameters as they are."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no place for the kernel parameters")
    return before + begin + "\n".join(_lines()) + "\n" + end + after


def _lines() -> Iterator[str]:
    """mdoc(7)."""
    yield ".Bl -tag -width Ds"
    for row in parameters.ALL:
        yield f".It {_written(row)}"
        yield from _prose(row.meaning)
        yield from _prose(default(row))
    yield ".El"


def default(row: Parameter[Any]) -> str:
    """The sentence about a command line that does not have it."""
    if row.default is None:
        return "An image has to have it."
    if row is parameters.PLATFORM:
        return "An image should have it."
    if isinstance(row.default, bool):
        return "Not so by default." if row.values else ""
    return f"The default is `{row.default}`."


def _written(row: Parameter[Any]) -> str:
    if row.values and row.values[0][0].isupper():
        return f"Cm {row.name}= Ns Ar {row.values[0]}"
    return "Cm " + (" , ".join(f"{row.name}={value}" for value in row.values) or row.name)


def _prose(text: str) -> Iterator[str]:
    """A line a sentence, and a line a macro with the punctuation that follows."""
    macro = ""
    for *marked, plain in _MARKED.findall(text):
        if plain:
            if macro:
                sign = plain[0] if plain[0] in ".,;:" else ""
                yield f"{macro} {sign}".rstrip()
                plain, macro = plain.removeprefix(sign), ""
            yield from (line for line in re.split(r"(?<=[.]) ", plain.strip()) if line)
        else:
            macro = next(f"{name} {word}" for name, word in zip(_MACROS, marked, strict=True) if word)
    if macro:
        yield macro


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
