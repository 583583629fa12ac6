"""Writes what documents have from elsewhere: make manual.

The kernel parameters of secex-firstboot(8) come from the code's own table, secex-messages(7) and what
``secex explain`` knows from troubleshooting.md, the schemas of an image's metadata and of evidence from their
models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import secex_firstboot
from secex_firstboot.contract import parameters
from secex_firstboot.contract.evidence import Evidence
from secex_firstboot.contract.metadata import Metadata
from secex_firstboot.contract.parameters import Parameter

PAGE = Path(__file__).with_name("secex-firstboot.8")
MESSAGES = Path(__file__).with_name("secex-messages.7")
EXPLAINED = Path(secex_firstboot.__file__).with_name("owner") / "messages.json"
SCHEMAS = {
    Path(__file__).with_name("image.schema.json"): Metadata,
    Path(__file__).with_name("evidence.schema.json"): Evidence,
}
TROUBLESHOOTING = Path(__file__).with_name("troubleshooting.md")
_BEGIN = '.\\" Kernel parameters: made by docs/manual.py, do not edit.\n'
_END = '.\\" End of the kernel parameters.\n'
_MARKED = re.compile(r"`([^`]*)`|\[([^]]*)\]|<([^>]*)>|([^`\[<]+)")
_MACROS = (".Cm", ".Sx", ".Pa")
_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")
_EMPHASIS = re.compile(r"\*([^*]+)\*")
_AS_ABOVE = re.compile(r"(the same|as before)\b")


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
    if row in (parameters.GENERATION, parameters.OSTREE):
        return ""
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


def messages() -> Iterator[tuple[str, list[str], str, str]]:
    """The rows of troubleshooting.md that have IDs: the heading above, these, the message, what to do."""
    section = cure = ""
    for line in TROUBLESHOOTING.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            section = line.lstrip("# ")
        elif line.startswith("| SX-"):
            ids, message, last = (cell.strip() for cell in line.strip("|").split(" | "))
            as_above = _AS_ABOVE.match(last)
            cure = cure + last[as_above.end() :] if as_above else last
            yield section, ids.split(", "), message, cure


def listed(page: str) -> str:
    """secex-messages(7), by ID, below the heading that ``page`` has."""
    begin = page.index(".Sh MESSAGES\n")
    end = page.index(".Sh SEE ALSO\n")
    rows: dict[str, list[tuple[str, str]]] = {}
    for _, ids, message, cure in messages():
        for each in ids:
            rows.setdefault(each, []).append((message, cure))
    lines = [".Sh MESSAGES", ".Bl -tag -width Ds"]
    for each in sorted(rows):
        lines.append(f".It Cm {_plain(each)}")
        for at, (message, cure) in enumerate(rows[each]):
            lines += [".Pp"] * bool(at) + [_plain(message), ".br", _plain(cure)]
    return page[:begin] + "\n".join([*lines, ".El"]) + "\n" + page[end:]


def _plain(text: str) -> str:
    """A line of text for mdoc(7) of a cell in Markdown."""
    text = _unmarked(text).replace("\\", "\\e").replace("-", "\\-")
    text = text.replace("…", "...")
    return f"\\&{text}" if text[0] in ".'" else text


def _unmarked(text: str) -> str:
    return _EMPHASIS.sub(r"\1", _LINK.sub(r"\1", text)).replace("`", "")


def explained() -> str:
    """The rows, a line each."""
    rows = (
        {"section": section, "ids": ids, "message": _unmarked(message), "cure": _unmarked(cure)}
        for section, ids, message, cure in messages()
    )
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def schema(model: type[BaseModel]) -> str:
    """Of what it is as JSON, as JSON."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(head | model.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    for path, model in SCHEMAS.items():
        path.write_text(schema(model), encoding="utf-8")
    EXPLAINED.write_text(explained(), encoding="utf-8")
    MESSAGES.write_text(listed(MESSAGES.read_text(encoding="utf-8")), encoding="utf-8")
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
