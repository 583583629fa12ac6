"""Content that stands in a config itself: data: URLs, taken apart as Ignition does.

Its reader of data: URLs is github.com/vincent-petithory/dataurl, stricter than RFC 2397 and browsers; its
decompression is Go's, which takes several gzip members, and nothing else behind them.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from base64 import b64decode
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from secex_firstboot.ignition.config import Resource

_WORD = r"[!#$%&'*+\-.0-9A-Z^_`a-z{|}~]"
_HEAD = re.compile(
    rf"data:(?:(?:[xX]-|text|image|audio|video|application|message|multipart){_WORD}*/{_WORD}*)?"
    rf'(?:;{_WORD}+=(?:{_WORD}+|"(?:[^"\\]|\\.)*"))*(?P<base64>;base64)?,',
    re.ASCII | re.DOTALL,
)
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_TEXT = re.compile(r"[!$%&'()*+,\-./0-9:;=?@A-Z_a-z~]*")
_NO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DIGESTS = {"sha256": 64, "sha512": 128}  # hexadecimal digits
_HEX = re.compile(r"[0-9A-Fa-f]*")
_PIECE = 1 << 20  # bytes


class ContentError(ValueError):
    """What is wrong with the content, in a few words, and none of it."""


def is_inline(resource: Resource) -> bool:
    return (resource.source or "").startswith("data:")


def content(resource: Resource, limit: int) -> bytes:
    """Decompressed, at most ``limit`` bytes, and with the right hash. Raises ContentError."""
    parts, _ = [], verify(resource, limit)
    for part in _pieces(resource):
        parts.append(part)
    return b"".join(parts)


def verify(resource: Resource, limit: int) -> int:
    """How many bytes the content has, which keep what the resource says of them. Raises ContentError."""
    wanted = digest(resource)
    found, size = hashlib.new(wanted[0]) if wanted else None, 0
    for piece in _pieces(resource):
        size += len(piece)
        if size > limit:
            raise ContentError("is larger, unpacked, than a config's own content may be")
        if found:
            found.update(piece)
    if wanted and found and found.digest() != wanted[1]:
        raise ContentError("does not have the hash that the config gives")
    return size


def digest(resource: Resource) -> tuple[str, bytes] | None:
    """The function and value of its hash; None if the resource gives none. Raises ContentError."""
    text = resource.verification.hash
    if text is None:
        return None
    function, _, value = text.partition("-")
    if len(value) != _DIGESTS.get(function) or not _HEX.fullmatch(value):
        raise ContentError("has a hash that is neither sha256-HEX nor sha512-HEX")
    return function, bytes.fromhex(value)


def _pieces(resource: Resource) -> Iterator[bytes]:
    raw = _decoded(resource.source or "")
    if not resource.compression:
        yield raw
    elif resource.compression == "gzip":
        yield from _unpacked(raw)
    else:
        raise ContentError("has a compression that is not gzip")


def _decoded(url: str) -> bytes:
    head = _HEAD.match(url)
    data = url[head.end() :] if head else ""
    if head and head["base64"]:
        if len(data) % 4 == 0 and _BASE64.fullmatch(data):
            return b64decode(data)
    elif head and _TEXT.fullmatch(data) and not _NO_ESCAPE.search(data):
        return unquote_to_bytes(data)
    raise ContentError("has a malformed data URL")


def _unpacked(raw: bytes) -> Iterator[bytes]:
    rest = raw
    try:
        while rest or rest is raw:
            member = zlib.decompressobj(wbits=31)  # gzip alone
            while not member.eof:
                piece = member.decompress(rest, _PIECE)
                rest = member.unconsumed_tail
                if not (piece or rest or member.eof):
                    raise zlib.error
                yield piece
            rest = member.unused_data
    except zlib.error:
        raise ContentError("is no valid gzip") from None
