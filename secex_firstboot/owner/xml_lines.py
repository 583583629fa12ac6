"""XML that somebody else has written, with the line of each element.

No document type: its entities could be anything, and as large. Expat itself fetches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from secex_firstboot.basic.errors import Refusal

_LIMIT = 1 << 20  # bytes; of elements, that is at most a quarter as many
_DEEPEST = 100


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, path: str) -> Iterator[Element]:
        """Those at ``path``, tags with slashes between, below this one."""
        tag, _, rest = path.partition("/")
        for child in self.children:
            if child.tag == tag:
                yield from child.all(rest) if rest else [child]

    def first(self, path: str) -> Element | None:
        return next(self.all(path), None)

    def get(self, path: str, attribute: str) -> str:
        """Of the first at ``path``; empty if it is not there."""
        found = self.first(path)
        return found.attributes.get(attribute, "") if found else ""

    def text_of(self, path: str) -> str:
        found = self.first(path)
        return found.text.strip() if found else ""


def read(path: Path) -> Element:
    """The root element. Raises Refusal."""
    cure = "name the file that virsh dumpxml writes"
    try:
        with path.open("rb") as stream:
            content = stream.read(_LIMIT + 1)
    except OSError as error:
        raise Refusal("SX-DOMAIN-01", f"{path} cannot be read: {error.strerror}", cure) from None
    if len(content) > _LIMIT:
        raise Refusal("SX-DOMAIN-02", f"{path} is larger than {_LIMIT} bytes", "check what it is")
    try:
        return parse(content)
    except (expat.ExpatError, ValueError) as error:
        raise Refusal("SX-DOMAIN-03", f"{path} is no XML that is taken here: {error}", cure) from None


def parse(content: bytes) -> Element:
    """Raises ExpatError, and ValueError for what is well formed and not taken all the same."""
    parser = expat.ParserCreate()
    top = Element("", {}, 0)
    open_ones = [top]

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(open_ones) > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} elements in each other")
        made = Element(tag, attributes, parser.CurrentLineNumber)
        open_ones[-1].children.append(made)
        open_ones.append(made)

    def end(tag: str) -> None:
        open_ones.pop()

    def data(text: str) -> None:
        open_ones[-1].text += text

    def refuse(*about: object) -> None:
        raise ValueError("a document type")

    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = data
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(content, True)
    return top.children[0]
