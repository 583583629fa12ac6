"""Reading a GUID partition table, of a block device or of an image file.

What is there may be anybody's: each copy is read once and taken whole or not at all. The form is the one
that sfdisk and systemd-repart write, and that ``partition_table`` puts back: 128 entries of 128 bytes, right
behind the primary header and right before the backup. UEFI specification 2.10: 5.2.3 and 5.3.
"""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import size_of

BLOCK_SIZES = (512, 4096)
ENTRIES_SIZE = 16 << 10  # bytes

_ENTRIES = 128
_SIGNATURE, _REVISION = b"EFI PART", 0x10000
# Table 5.5: signature, revision, header size, its checksum, reserved, own block, the other header's, first
# and last usable block, GUID of the disk, first block of the entries, their number, size of one, checksum.
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_CHECKSUM_AT = 16
_ENTRY = struct.Struct("<16s16sQQQ72s")  # table 5.6: type, GUID, first and last block, attributes, name

_MBR_RECORDS_AT, _MBR_RECORD = 446, struct.Struct("<B3sB3sII")  # table 5.1: …, type, …, first block, blocks
_PROTECTIVE = 0xEE


class UnsoundTable(FirstbootError):
    """There is no partition table, or not a whole one."""

    def __init__(self, what: str) -> None:
        super().__init__(
            "SX-DISK-17", f"there is no sound partition table: {what}", "start from an unchanged image"
        )


@dataclass(frozen=True)
class Entry:
    """A partition; ``start`` and ``size`` in bytes from the start of the disk."""

    number: int
    name: str
    uuid: str
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True)
class Table:
    """One copy of the table. ``own`` and ``other`` are the blocks of its header and of the other copy's."""

    own: int
    other: int
    uuid: str
    usable: tuple[int, int]
    entries: tuple[Entry, ...]
    checksum: int

    def agrees_with(self, backup: Table) -> bool:
        """Whether the two are of the same disk, each other's copy, and say the same."""
        mirrored = (backup.other, backup.own, backup.uuid, backup.usable, backup.checksum)
        return (self.own, self.other, self.uuid, self.usable, self.checksum) == mirrored


def primary(disk: Path, block_size: int) -> Table:
    """Raises UnsoundTable."""
    head = _read(disk, block_size, block_size + ENTRIES_SIZE)
    return parse(
        head[:block_size], head[block_size:], own=1, blocks=size_of(disk) // block_size, block_size=block_size
    )


def backup(disk: Path, block_size: int, own: int | None = None) -> Table:
    """The copy whose header is in the last block of the disk, or in block ``own``. Raises UnsoundTable."""
    blocks = size_of(disk) // block_size
    own = blocks - 1 if own is None else own
    start = own * block_size - ENTRIES_SIZE
    if start < 0:
        raise UnsoundTable("the disk is too small")
    tail = _read(disk, start, ENTRIES_SIZE + block_size)
    return parse(tail[ENTRIES_SIZE:], tail[:ENTRIES_SIZE], own=own, blocks=blocks, block_size=block_size)


def whole(disk: Path, block_size: int) -> Table:
    """The table, if its copy, wherever the primary one says that it is, is whole too and says the same."""
    found = primary(disk, block_size)
    if not found.agrees_with(backup(disk, block_size, found.other)):
        raise UnsoundTable("its two copies differ")
    return found


def in_use(disk: Path, block_size: int) -> Table:
    """The one that a kernel takes: the backup at the end of the disk only if the primary one is not whole."""
    try:
        return primary(disk, block_size)
    except UnsoundTable:
        return backup(disk, block_size)


def block_size_of(image: Path) -> int:
    """A file has no blocks of its own: those that its header counts in. Raises UnsoundTable."""
    found = [size for size in BLOCK_SIZES if _read(image, size, len(_SIGNATURE)) == _SIGNATURE]
    if len(found) != 1:
        raise UnsoundTable(f"{'two places say' if found else 'nothing says'} that it is a GPT")
    return found[0]


def check_protective_mbr(disk: Path) -> None:
    """That the MBR has one record, which keeps others off the disk: without it no kernel looks for a GPT."""
    block = _read(disk, 0, 512)
    records = [_MBR_RECORD.unpack_from(block, _MBR_RECORDS_AT + 16 * index) for index in range(4)]
    used = [record for record in records if any(field not in (0, bytes(3)) for field in record)]
    if block[510:] != b"\x55\xaa" or [(record[2], record[4]) for record in used] != [(_PROTECTIVE, 1)]:
        raise UnsoundTable("the MBR has another record than the one that goes with a GPT")


def parse(header: bytes, entries: bytes, *, own: int, blocks: int, block_size: int) -> Table:
    """``header`` is the whole block ``own`` of the disk, which has ``blocks``. Raises UnsoundTable."""
    if len(header) != block_size or len(entries) != ENTRIES_SIZE:
        raise UnsoundTable("the disk is too small")
    fields = _HEADER.unpack_from(header)
    signature, revision, size, checksum, reserved, own_said, other, first, last, disk_id, *of_entries = fields
    entries_at, number, entry_size, entries_checksum = of_entries
    if signature != _SIGNATURE:
        raise UnsoundTable("nothing says that it is a GPT")
    blank = header[:_CHECKSUM_AT] + bytes(4) + header[_CHECKSUM_AT + 4 : _HEADER.size]
    if (revision, size, reserved) != (_REVISION, _HEADER.size, 0) or any(header[_HEADER.size :]):
        raise UnsoundTable("its header is of another form")
    if zlib.crc32(blank) != checksum or own_said != own:
        raise UnsoundTable("its header is damaged")
    if (number, entry_size) != (_ENTRIES, _ENTRY.size):
        raise UnsoundTable(f"it has {number} entries of {entry_size} bytes, not {_ENTRIES} of {_ENTRY.size}")
    if zlib.crc32(entries) != entries_checksum:
        raise UnsoundTable("its entries are damaged")
    room = ENTRIES_SIZE // block_size
    low, high = sorted((own, other))
    if entries_at != (2 if own == 1 else own - room) or not (
        low == 1 < high < blocks and 2 + room <= first <= last < high - room
    ):
        raise UnsoundTable("its header, its entries and what is between the two copies overlap")
    found = tuple(_used(entries, block_size, first, last))
    _check_apart(found)
    return Table(own, other, str(uuid.UUID(bytes_le=disk_id)), (first, last), found, entries_checksum)


def _used(entries: bytes, block_size: int, first: int, last: int) -> Iterator[Entry]:
    for number, fields in enumerate(_ENTRY.iter_unpack(entries), start=1):
        kind, identity, start, end, _, name = fields
        if not any(kind):
            continue
        if not first <= start <= end <= last:
            raise UnsoundTable(f"partition {number} lies outside of what partitions may use")
        yield Entry(
            number,
            _text(name, number),
            str(uuid.UUID(bytes_le=identity)),
            start * block_size,
            (end + 1 - start) * block_size,
        )


def _text(name: bytes, number: int) -> str:
    try:
        return name.decode("utf-16-le").partition("\0")[0]
    except UnicodeDecodeError:
        raise UnsoundTable(f"the name of partition {number} is not UTF-16") from None


def _check_apart(entries: Sequence[Entry]) -> None:
    identities = {each.uuid for each in entries}
    if len(identities) != len(entries) or str(uuid.UUID(int=0)) in identities:
        raise UnsoundTable("two partitions have the same UUID, or one has none")
    for one, next_one in pairwise(sorted(entries, key=lambda each: each.start)):
        if one.end > next_one.start:
            raise UnsoundTable(f"partitions {one.number} and {next_one.number} overlap")


def _read(disk: Path, offset: int, size: int) -> bytes:
    """Less at the end of a file."""
    with disk.open("rb", buffering=0) as stream:
        return os.pread(stream.fileno(), size, offset)
