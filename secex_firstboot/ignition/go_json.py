"""JSON as Ignition reads it: with Go's encoding/json, into structures whose fields have names and kinds.

What differs from the JSON reader of Python: a field's name counts in any case; a field that is given again
is read into what it had before; null leaves some values alone; NaN and Infinity are none; what is no UTF-8,
or half of a pair of surrogates, becomes U+FFFD. Source: https://pkg.go.dev/encoding/json#Unmarshal, and Go's
encoding/json/decode.go.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

_SURROGATE = re.compile("[\ud800-\udfff]")
# Beside those of ASCII, the only letters that fold to one of ASCII (Unicode: CaseFolding.txt, status C).
_FOLDED = {ord(upper): upper.lower() for upper in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"} | {0x17F: "s", 0x212A: "k"}

_LITERAL = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_LONG_AND_PLAIN = re.compile(rb'"[ !#-\[\]-~]{4096,}"')


class _Members(list[tuple[str, Any]]):
    """Those of an object, in order, and each as often as it is given."""


@dataclass(frozen=True)
class Shape:
    """A structure. ``key`` tells whether two of one list are the same thing (of an unset part: "").

    ``appended`` are the lists whose items are never the same; ``shared`` those that share their keys.
    """

    fields: Mapping[str, Field]
    key: Callable[[Mapping[str, Any]], str] = lambda value: ""
    appended: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Field:
    """``shape`` is that of the value, or of each item if it is a list; None for text, numbers, truth values.

    ``optional``: a pointer in Go, which null takes away; other plain values it leaves.
    """

    shape: Shape | None = None
    many: bool = False
    optional: bool = True


@dataclass
class Decoder:
    """``unknown`` are the places of what no field takes, and so Ignition ignores."""

    unknown: list[str] = field(default_factory=list)
    _aside: dict[str, memoryview] = field(default_factory=dict, init=False)

    def decode(self, text: bytes, shape: Shape) -> Any:
        """Dicts whose keys are the fields' exact names, for what can be such; other values as they are.

        Raises ValueError, without any of the text, for what is no JSON.
        """
        skeleton, self._aside = _set_aside(text)
        return self._value(_loads(skeleton), shape, None, "")

    def _value(self, value: Any, shape: Shape | None, before: Any, place: str) -> Any:
        if isinstance(value, _Members):
            return self._structure(value, shape, before, place) if shape else {}
        if not isinstance(value, str):
            return value
        if value in self._aside:
            return str(self._aside[value], "ascii")
        return _SURROGATE.sub("\ufffd", value)

    def _structure(self, members: _Members, shape: Shape, before: Any, place: str) -> dict[str, Any]:
        found: dict[str, Any] = before if isinstance(before, dict) else {}
        for given, value in members:
            name = _name(given, shape)
            where = f"{place}.{given}".lstrip(".")
            if name is None:
                self.unknown.append(where)
            elif value is None:
                if shape.fields[name].many or shape.fields[name].optional:
                    found.pop(name, None)
            elif shape.fields[name].many and isinstance(value, list) and not isinstance(value, _Members):
                found[name] = self._list(value, shape.fields[name], found.get(name), where)
            else:
                found[name] = self._value(value, shape.fields[name].shape, found.get(name), where)
        return found

    def _list(self, items: list[Any], field: Field, before: Any, place: str) -> Items:
        """Go reads each item into the one that was there, even if a shorter list came in between."""
        hidden: list[Any] = before.hidden if isinstance(before, Items) and items else []
        for index, item in enumerate(items):
            had = hidden[index] if index < len(hidden) else None
            if item is None and had is not None:
                continue
            found = self._value(item, field.shape, had, f"{place}[{index}]")
            hidden[index : index + 1] = [found]
        return Items(hidden[: len(items)], hidden)


class Items(list[Any]):
    """A list, and what it had behind its end before."""

    def __init__(self, items: list[Any], hidden: list[Any]) -> None:
        super().__init__(items)
        self.hidden = hidden


def _name(given: str, shape: Shape) -> str | None:
    """The field that a name means: the one so written, or else in another case."""
    if given in shape.fields:
        return given
    folded = given.translate(_FOLDED)
    return next((name for name in shape.fields if name.translate(_FOLDED) == folded), None)


def _set_aside(text: bytes) -> tuple[bytes, dict[str, memoryview]]:
    """``text`` with a word that nobody can know for each long string, and those: most of a config is content,
    and is in memory twice, not three times.
    """
    view, word = memoryview(text), secrets.token_hex(16)
    aside: dict[str, memoryview] = {}
    skeleton, copied = bytearray(), 0
    for found in _LITERAL.finditer(text):
        begin, end = found.span()
        if _LONG_AND_PLAIN.fullmatch(text, begin, end):
            name = f"{word}-{len(aside)}"
            aside[name] = view[begin + 1 : end - 1]
            skeleton += view[copied:begin]
            skeleton += f'"{name}"'.encode()
            copied = end
    return bytes(skeleton) + view[copied:] if aside else text, aside


def _loads(text: bytes) -> Any:
    try:
        # Each byte that is no UTF-8 becomes a lone surrogate.
        return json.loads(
            text.decode("utf-8", "surrogateescape"), object_pairs_hook=_Members, parse_constant=_no_number
        )
    except RecursionError:
        raise ValueError("too deep") from None
    except ValueError:
        raise ValueError("no JSON") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError
