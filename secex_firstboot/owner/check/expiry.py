"""Until when each host-key document, certificate and revocation list is good: what a look found of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import cast

from cryptography import x509

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.hostkeys import certificates, document
from secex_firstboot.hostkeys.form import Item
from secex_firstboot.ignition import config, inline
from secex_firstboot.ignition.config import Config, FileEntry
from secex_firstboot.owner.check.config_file import is_proof

_DOCUMENT, _CERTIFICATE, _LIST = "host-key document", "certificate", "revocation list"


@dataclass(frozen=True, order=True)
class Expiry:
    """``until``: in UTC, as RFC 3339 has it. ``name``: the file's, or the URL that it was got from."""

    until: str
    kind: str
    name: str


def all_of(found: Config, kept: Mapping[str, bytes], image: Path) -> list[Expiry]:
    """Of what is in the config, was got from servers (``kept``), or is in the image's directory, in order.

    What cannot be read is left out: to refuse it is not for here.
    """
    read: list[Expiry] = []
    for name, content, is_document in _files(found, kept, image):
        try:
            read += [_expiry(name, each, is_document) for each in _items(name, content, is_document)]
        except FirstbootError:
            continue
    return sorted(set(read))


def _files(found: Config, kept: Mapping[str, bytes], image: Path) -> Iterator[tuple[str, bytes, bool]]:
    """Name, content, and whether it is a host-key document."""
    for entry in filter(is_proof, found.storage.files):
        content = kept.get(entry.path, _inline(entry))
        if content is not None:
            yield entry.name, content, config.is_host_key(entry)
    yield from ((url, content, False) for url, content in kept.items() if not url.startswith("/"))
    try:
        yield from [(file.name, file.read_bytes(), False) for file in image.glob("*.cr[lt]")]
    except OSError:
        return


def _inline(entry: FileEntry) -> bytes | None:
    try:
        return inline.content(entry.contents, certificates.FILE_LIMIT)
    except inline.ContentError:
        return None


def _items(name: str, content: bytes, is_document: bool) -> list[Item]:
    if is_document:
        return list(document.parse(name, content).certificates)
    return certificates.parse(name, content)


def _expiry(name: str, item: Item, is_document: bool) -> Expiry:
    if isinstance(item, x509.Certificate):
        kind = _DOCUMENT if is_document else _CERTIFICATE
        return Expiry(item.not_valid_after_utc.isoformat(), kind, name)
    # certificates.parse takes no list without.
    return Expiry(cast(datetime, item.next_update_utc).isoformat(), _LIST, name)
