"""Merging configs as Ignition does, as far as that needs no network: for what a workstation can tell.

From Ignition's internal/exec/config_fetcher.go (what is merged in which order) and config/merge (how). At
first boot, Ignition itself has merged the config that is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition import inline
from secex_firstboot.ignition.config import Config, Resource, fields_of, of_fields, shape
from secex_firstboot.ignition.go_json import Decoder, Field, Shape

LIMIT = 64 << 20  # bytes of one config, as of that on the config disk
_MOST = 64  # references; Ignition has no bound

Fields = dict[str, Any]
Fetch = Callable[[Config, Resource, str], bytes | None]
"""What a config refers to, got with that config's own timeouts, proxy and authorities; None: not to be had.

The text is the reference's place. Raises Refusal.
"""


def nothing(config: Config, reference: Resource, place: str) -> None:
    """The references to elsewhere are left."""


def read(
    text: bytes, decoder: Decoder | None = None, fetch: Fetch = nothing
) -> tuple[Config, dict[str, Resource]]:
    """The config with what it refers to inline, or can be got with ``fetch``, and by place the references
    that first boot has to follow.

    Where ``replace`` is one of those, nothing of the config itself will count. ``decoder`` is for ``text``
    alone. Raises Refusal.
    """
    reader = _Reader(fetch)
    merged = reader.rendered(fields_of(text, decoder), "ignition.config")
    return of_fields(merged), reader.elsewhere


class _Reader:
    def __init__(self, fetch: Fetch) -> None:
        self.fetch = fetch
        self.elsewhere: dict[str, Resource] = {}
        self.followed = 0

    def rendered(self, fields: Any, place: str) -> Fields:
        """With its references, and theirs. ``place`` is where the references are."""
        config = of_fields(fields)
        references = config.ignition.config
        merged: Fields = fields
        if references.replace.source is not None:
            new = self._referenced(config, references.replace, f"{place}.replace")
            return merged if new is None else self.rendered(new, f"{place}.replace")
        for index, reference in enumerate(references.merge):
            where = f"{place}.merge[{index}]"
            if (new := self._referenced(config, reference, where)) is not None:
                merged = _merged(merged, self.rendered(new, where), shape(Config))
        return merged

    def _referenced(self, config: Config, reference: Resource, place: str) -> Any:
        """The fields of the config that it leads to, or None: then it leads elsewhere."""
        is_inline = inline.is_inline(reference)
        text = _content(reference, place) if is_inline else self.fetch(config, reference, place)
        if text is None:
            self.elsewhere[place] = reference
            return None
        self.followed += 1
        if self.followed > _MOST:
            raise Refusal(
                "SX-CONFIG-10", f"the Ignition config has more than {_MOST} references", "merge some of them"
            )
        return fields_of(text)


def _content(reference: Resource, place: str) -> bytes:
    try:
        return inline.content(reference, LIMIT)
    except inline.ContentError as error:
        cure = "correct it; butane makes sources, hashes and compression from files"
        raise Refusal("SX-CONFIG-11", f"the Ignition config's {place} {error}", cure) from None


def _merged(parent: Mapping[str, Any], child: Mapping[str, Any], kind: Shape) -> Fields:
    result: Fields = {}
    for name, field in kind.fields.items():
        if name not in child and name not in parent:
            continue
        if field.many:
            result[name] = _merged_list(parent, child, kind, name)
        elif field.shape and name in child and name in parent:
            result[name] = _merged(parent[name], child[name], field.shape)
        else:
            result[name] = child[name] if name in child else parent[name]
    return result


def _merged_list(parent: Mapping[str, Any], child: Mapping[str, Any], kind: Shape, name: str) -> list[Any]:
    """The parent's items, each merged with the child's of the same key, and then the child's others.

    Not those of the parent whose key the child has in another list that shares its keys with this one.
    """
    field, ours, theirs = kind.fields[name], parent.get(name, []), child.get(name, [])
    if name in kind.appended:
        return [*ours, *theirs]
    here = {_key(item, field): item for item in theirs}
    elsewhere = {
        _key(item, kind.fields[other])
        for other in kind.shared
        if name in kind.shared and other != name
        for item in child.get(other, [])
    }
    known = {_key(item, field) for item in ours}
    result = []
    for item in ours:
        key = _key(item, field)
        if key in here:
            if name == "httpHeaders" and "value" not in here[key]:
                continue  # so a child removes a header
            result.append(_merged(item, here[key], field.shape) if field.shape else here[key])
        elif key not in elsewhere:
            result.append(item)
    return result + [item for item in theirs if _key(item, field) not in known]


def _key(item: Any, field: Field) -> str:
    return field.shape.key(item) if field.shape else str(item)
