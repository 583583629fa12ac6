"""Disks with a GUID partition table whose checksums are right, whatever else it says."""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

HEADER = "<8sIIIIQQQQ16sQIII"
HEADER_SIZE = 92
ENTRIES_SIZE = 16 << 10
MBR_RECORD_AT = 446
MBR_RECORD = b"\0\0\2\0\xee\xff\xff\xff\1\0\0\0\xff\xff\xff\xff"


@dataclass(frozen=True)
class Part:
    """``first`` and ``last`` in blocks; ``identity`` None: one of its own."""

    number: int
    name: bytes
    first: int
    last: int
    identity: bytes | None = None
    kind: bytes = b"type".ljust(16, b"\1")

    @property
    def uuid(self) -> bytes:
        return uuid.UUID(int=self.number << 64 | 1).bytes_le if self.identity is None else self.identity


def part(number: int, name: str, first: int, last: int) -> Part:
    return Part(number, name.encode("utf-16-le"), first, last)


@dataclass(frozen=True)
class Fields:
    """Those of a header; None: what is right there."""

    signature: bytes = b"EFI PART"
    revision: int = 0x10000
    size: int = HEADER_SIZE
    reserved: int = 0
    own: int | None = None
    other: int | None = None
    first: int | None = None
    last: int | None = None
    disk: bytes = b"disk".ljust(16, b"\2")
    entries_at: int | None = None
    number: int = 128
    entry_size: int = 128
    rest: bytes = b""
    checksum_off: int = 0
    entries_checksum_off: int = 0


@dataclass(frozen=True)
class GptDisk:
    parts: Sequence[Part]
    blocks: int = 2048
    block_size: int = 512
    header: Fields = field(default_factory=Fields)

    @property
    def room(self) -> int:
        """Blocks of the entries."""
        return ENTRIES_SIZE // self.block_size

    def entries(self) -> bytes:
        table = bytearray(ENTRIES_SIZE)
        for each in self.parts:
            row = struct.pack("<16s16sQQQ72s", each.kind, each.uuid, each.first, each.last, 0, each.name)
            table[(each.number - 1) * 128 : each.number * 128] = row
        return bytes(table)

    def copy(self, *, backup: bool = False) -> tuple[bytes, bytes]:
        """(header block, entries) of the primary table or the backup."""
        said, entries = self.header, self.entries()
        own, other = (self.blocks - 1, 1) if backup else (1, self.blocks - 1)
        place = own - self.room if backup else 2

        def right(value: int | None, otherwise: int) -> int:
            return otherwise if value is None else value

        def packed(checksum: int) -> bytes:
            return struct.pack(
                HEADER,
                *(said.signature, said.revision, said.size, checksum, said.reserved),
                *(right(said.own, own), right(said.other, other)),
                *(right(said.first, 2 + self.room), right(said.last, self.blocks - 2 - self.room)),
                *(said.disk, right(said.entries_at, place), said.number, said.entry_size),
                zlib.crc32(entries) ^ said.entries_checksum_off,
            )

        header = packed(zlib.crc32(packed(0)) ^ said.checksum_off) + said.rest
        return header.ljust(self.block_size, b"\0"), entries

    def content(self, *, mbr: bytes = MBR_RECORD, backup: GptDisk | None = None) -> bytes:
        """Both copies and the MBR; ``backup``: of another disk."""
        (header, entries), (last, last_entries) = self.copy(), (backup or self).copy(backup=True)
        start = bytearray(self.block_size)
        start[MBR_RECORD_AT : MBR_RECORD_AT + len(mbr)] = mbr
        start[510:512] = b"\x55\xaa"
        middle = bytes(self.blocks * self.block_size - 2 * ENTRIES_SIZE - 3 * self.block_size)
        return bytes(start) + header + entries + middle + last_entries + last

    def write(self, path: Path) -> Path:
        path.write_bytes(self.content())
        return path

    def saying(self, **fields: object) -> GptDisk:
        return replace(self, header=replace(self.header, **fields))  # type: ignore[arg-type]
