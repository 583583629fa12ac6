"""OpenPGP's packets: where one message ends and the one plaintext in what was encrypted, and its signatures.

Formats: RFC 9580, sections 4.2 (lengths), 5 (packets) and 10.3 (which packets make a message); the same as
RFC 4880's, but for packet 20 and lengths without end, which GnuPG writes.
"""

from __future__ import annotations

import bz2
import io
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import in_memory

MESSAGE_LIMIT = 96 << 20  # bytes: a config of 64 MiB, encrypted and armored

_CHUNK = 1 << 16

TO_A_KEY, _TO_A_PASSPHRASE = 1, 3
_SESSION_KEYS = {TO_A_KEY, _TO_A_PASSPHRASE}
ENCRYPTED_DATA = {9, 18, 20}
SIGNATURE, _ONE_PASS_SIGNATURE, _COMPRESSED, _LITERAL = 2, 4, 8, 11
_MARKER = 10  # to be ignored before encrypted data

_DECOMPRESSORS: dict[bytes, Callable[[], Any]] = {
    b"\1": lambda: zlib.decompressobj(wbits=-zlib.MAX_WBITS),
    b"\2": zlib.decompressobj,
    b"\3": bz2.BZ2Decompressor,
}
_LITERAL_MODES = b"btu"
_LONGEST_HEAD = 6 + 255  # bytes, of a literal: mode, a file name with its length, a date
_BESIDE_LITERAL = 1 << 16  # bytes: its header, and signatures

ENCRYPT_AGAIN = "encrypt the config with gpg --encrypt and write the file to the start of the config disk"

_Body = list[tuple[int, int]]  # start and size of each part


def write(stream: BinaryIO, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[stream.write(left) :]


class Packets:
    """Walks over the packets in a file, by their lengths.

    ``source`` brings what is not in the file yet. Raises Refusal if they go on behind its end, or beyond
    ``limit`` bytes.
    """

    def __init__(
        self, file: BinaryIO, source: Iterator[bytes] | None = None, limit: int = MESSAGE_LIMIT
    ) -> None:
        self.file, self.source, self.limit = file, source, limit
        self.size, self.position = file.seek(0, os.SEEK_END), 0

    @property
    def at_end(self) -> bool:
        return self.position == self.size

    def take_message(self) -> bytes:
        """Read one encrypted message, which is all of the file then; what the source brought behind it."""
        session_keys, tag = False, _MARKER
        while tag not in ENCRYPTED_DATA:
            header = self._header()
            tag = _tag(header)
            if tag in _SESSION_KEYS:
                session_keys = True
            elif tag != _MARKER and not (tag in ENCRYPTED_DATA and session_keys):
                raise not_encrypted()
            self._body(header)
        self.file.seek(self.position)
        behind = self.file.read()
        self.file.truncate(self.position)
        return behind

    def next(self) -> tuple[int, _Body]:
        """The tag and body of the packet that starts here."""
        header = self._header()
        return _tag(header), self._body(header)

    def content(self, body: _Body) -> Iterator[bytes]:
        for start, size in body:
            self.file.seek(start)
            while size:
                piece = self.file.read(min(size, _CHUNK))
                size -= len(piece)
                yield piece

    def _header(self) -> int:
        at_start = self.position == 0
        octet = self._number(1)
        if octet & 0x80:
            return octet
        if at_start:
            raise Refusal("SX-CONFIG-26", "the config disk holds no OpenPGP message", ENCRYPT_AGAIN)
        raise truncated()

    def _body(self, header: int) -> _Body:
        if header & 0x40:
            return list(self._parts())
        if header & 0x03 < 3:
            return [self._step(self._number(1 << (header & 0x03)))]
        if self.source:
            raise Refusal(
                "SX-CONFIG-27", "the message on the config disk does not say how long it is", ENCRYPT_AGAIN
            )
        return [self._step(self.size - self.position)]

    def _parts(self) -> Iterator[tuple[int, int]]:
        """A length and a body, and after a partial length the next pair."""
        while True:
            first = self._number(1)
            partial = 224 <= first < 255
            if first < 192:
                size = first
            elif first < 224:
                size = (first - 192 << 8) + self._number(1) + 192
            else:
                size = 1 << (first & 0x1F) if partial else self._number(4)
            yield self._step(size)
            if not partial:
                return

    def _number(self, octets: int) -> int:
        start, _ = self._step(octets)
        self.file.seek(start)
        return int.from_bytes(self.file.read(octets), "big")

    def _step(self, octets: int) -> tuple[int, int]:
        start = self.position
        self.position += octets
        if self.position > self.limit:
            raise too_large(self.limit)
        self._fetch()
        return start, octets

    def _fetch(self) -> None:
        self.file.seek(self.size)
        while self.size < self.position:
            chunk = next(self.source, None) if self.source else None
            if chunk is None:
                raise truncated()
            self.size += len(chunk)
            write(self.file, chunk)


def _tag(header: int) -> int:
    return header & 0x3F if header & 0x40 else header >> 2 & 0x0F


@dataclass(frozen=True)
class Plaintext:
    """``signatures``: the bodies of the packets that say who has signed the text. Nothing proves them yet."""

    text: bytes
    signatures: tuple[bytes, ...] = ()


def packet(tag: int, body: bytes) -> bytes:
    return bytes([0xC0 | tag, 255]) + len(body).to_bytes(4, "big") + body


def plaintext(file: BinaryIO, limit: int) -> Plaintext:
    """The one plaintext, of at most ``limit`` bytes, in packets that were encrypted.

    These are as gpg writes them: a literal, with signatures or without, and all of it compressed once or not.
    Raises Refusal for any other packet, or a further one.
    """
    packets = Packets(file)
    tag, body = packets.next()
    if tag != _COMPRESSED:
        return _literal(Packets(file), limit)
    if not packets.at_end:
        raise _damaged()
    with in_memory("decompressed") as inner:
        _decompress(packets.content(body), inner, limit + _BESIDE_LITERAL)
        return _literal(Packets(inner), limit)


def _decompress(pieces: Iterator[bytes], output: BinaryIO, limit: int) -> None:
    first = next(pieces, b"")
    if first[:1] not in _DECOMPRESSORS:
        raise _damaged()
    decompressor = _DECOMPRESSORS[first[:1]]()
    for piece in chain([first[1:]], pieces):
        for part in _decompressed(decompressor, piece):
            if output.tell() + len(part) > limit:
                raise _damaged()
            write(output, part)
    if not decompressor.eof or decompressor.unused_data:
        raise _damaged()


def _decompressed(decompressor: Any, piece: bytes) -> Iterator[bytes]:
    """In parts of at most _CHUNK bytes: a few bytes may be a gigabyte."""
    try:
        while True:
            part = decompressor.decompress(piece, _CHUNK)
            yield part
            piece = getattr(decompressor, "unconsumed_tail", b"")  # zlib's; bz2 keeps it to itself
            if decompressor.eof or (len(part) < _CHUNK and not piece):
                return
    except (zlib.error, OSError, EOFError):
        raise _damaged() from None


def _literal(packets: Packets, limit: int) -> Plaintext:
    """The only literal. Signatures lie around it, or before it as of old."""
    literal: _Body | None = None
    signatures: list[_Body] = []
    before: list[int] = []
    after: list[int] = []
    while not packets.at_end:
        tag, body = packets.next()
        if tag == _LITERAL and literal is None:
            literal = body
        else:
            (before if literal is None else after).append(tag)
            if tag == SIGNATURE:
                signatures.append(body)
    around = before == [_ONE_PASS_SIGNATURE] * len(after) and after == [SIGNATURE] * len(before)
    if literal is None or not (around or before + after == [SIGNATURE] * len(before)):
        raise _damaged()
    if sum(size for body in signatures for _, size in body) > _BESIDE_LITERAL:
        raise _damaged()
    return Plaintext(
        _text(packets.content(literal), limit),
        tuple(b"".join(packets.content(body)) for body in signatures),
    )


def _text(pieces: Iterator[bytes], limit: int) -> bytes:
    """What follows the head of a literal."""
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= _LONGEST_HEAD:
            break
    if len(head) < 6 or head[0] not in _LITERAL_MODES or len(head) < 6 + head[1]:
        raise _damaged()
    text = io.BytesIO()
    for piece in chain([head[6 + head[1] :]], pieces):
        if text.tell() + len(piece) > limit:
            raise _damaged()
        text.write(piece)
    return text.getvalue()


def not_encrypted() -> Refusal:
    return Refusal(
        "SX-CONFIG-28", "the OpenPGP data on the config disk is not an encrypted message", ENCRYPT_AGAIN
    )


def truncated() -> Refusal:
    return Refusal(
        "SX-CONFIG-29",
        "the message on the config disk is cut off",
        "write the whole encrypted file to the disk",
    )


def too_large(limit: int) -> Refusal:
    return Refusal(
        "SX-CONFIG-30",
        f"the message on the config disk is larger than {limit} bytes",
        "keep large files out of the config and let Ignition fetch them",
    )


def _damaged() -> Refusal:
    return Refusal("SX-CONFIG-31", "the message on the config disk is not one plaintext", ENCRYPT_AGAIN)
