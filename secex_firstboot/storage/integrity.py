"""Where dm-integrity puts things: pure arithmetic over its on-disk layout, all in bytes.

From the start of the device: LUKS2 header up to ``data_offset``, superblock (4 KiB), journal, then areas of
one tag run and ``interleave`` bytes of data each. Source: drivers/md/dm-integrity.c of Linux 6.12, the
functions named below, for a volume whose tags lie on the same device.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

from secex_firstboot.basic.errors import FirstbootError

SUPERBLOCK_BYTES = 4096  # SB_SECTORS
PAGE = 4096  # provided_data_sectors is a multiple of 8 sectors (get_provided_data_sectors)
TAG_SIZE = 32  # HMAC-SHA256
DEFAULT_INTERLEAVE = 16 << 20  # DEFAULT_INTERLEAVE_SECTORS

_SECTOR = 512
# struct superblock, little endian: magic, version, log2_interleave_sectors, integrity_tag_size,
# journal_sections, provided_data_sectors, flags, log2_sectors_per_block
_SUPERBLOCK = struct.Struct("<8sBBHIQIB")
_MAGIC = b"integrt\0"
_VERSIONS = range(4, 6)  # 4 brought the fixed padding that the arithmetic below assumes
_FLAG_FIXED_PADDING = 0x8


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


@dataclass(frozen=True)
class Layout:
    """The layout of one volume, without the size of its device."""

    sector_size: int
    journal_sections: int
    data_offset: int
    interleave: int = DEFAULT_INTERLEAVE
    tag_size: int = TAG_SIZE

    @classmethod
    def planned(cls, *, sector_size: int, journal_bytes: int, data_offset: int) -> Self:
        """The layout that formatting with these parameters gives (initialize_superblock)."""
        sections = max(1, journal_bytes // _journal_section_bytes(sector_size, TAG_SIZE))
        return cls(sector_size, sections, data_offset)

    @property
    def areas_start(self) -> int:
        """First byte after superblock and journal: what is before is written by formatting."""
        section = _journal_section_bytes(self.sector_size, self.tag_size)
        return self.data_offset + SUPERBLOCK_BYTES + self.journal_sections * section

    @property
    def tag_run(self) -> int:
        """Length of one area's tags (metadata_run in calculate_device_limits)."""
        return _round_up(self.tag_size * (self.interleave // self.sector_size), PAGE)

    def tags_address(self, offset: int) -> int:
        """Where the tag run begins that covers byte ``offset`` of the volume."""
        return self.areas_start + offset // self.interleave * (self.interleave + self.tag_run)

    def data_address(self, offset: int) -> int:
        """Where byte ``offset`` of the volume lies on the device (get_data_sector)."""
        return self.tags_address(offset) + self.tag_run + offset % self.interleave

    def device_bytes_for(self, volume_bytes: int) -> int:
        """The least size of a device whose volume has room for ``volume_bytes``."""
        return self.data_address(_round_up(volume_bytes, PAGE) - 1) + 1

    @property
    def backward_window(self) -> int:
        """How far backward copying may get ahead of the last recorded durable position, in bytes.

        Negative: copying in place backwards destroys the source.

        With I = ``interleave``: writing the volume from byte b upwards touches no address below
        tags_address(b) = areas_start + floor(b / I) * (I + tag_run) >= areas_start + floor(b / I) * I,
        and floor(b / I) * I > b - I, so none below b + (areas_start - I). If areas_start >= I, the source
        below b, which is yet to be copied, is out of reach. And if the copy is killed at b and goes on from a
        recorded d > b, it reads the source below d again: intact as long as d - b <= areas_start - I.
        """
        return self.areas_start - self.interleave


def _journal_section_bytes(sector_size: int, tag_size: int) -> int:
    """calculate_journal_section_size, for a journal without a MAC."""
    sectors_per_block = sector_size // _SECTOR
    entry = _round_up(8 + 8 * sectors_per_block + tag_size, 8)  # struct journal_entry
    entries = (_SECTOR - 8) // entry * 8  # JOURNAL_SECTOR_DATA, JOURNAL_BLOCK_SECTORS
    return entries * sector_size + 8 * _SECTOR


@dataclass(frozen=True)
class IntegritySuperblock:
    """A dm-integrity superblock as first boot makes it: no journal MAC, no bitmap, no recalculation."""

    version: int
    interleave: int
    tag_size: int
    journal_sections: int
    volume_bytes: int
    sector_size: int

    def layout(self, data_offset: int) -> Layout:
        return Layout(self.sector_size, self.journal_sections, data_offset, self.interleave, self.tag_size)


def read_integrity_superblock(blob: bytes) -> IntegritySuperblock:
    """Read the superblock at the start of ``blob``; FirstbootError if it is not one of ours."""
    if len(blob) < _SUPERBLOCK.size:
        raise FirstbootError("SX-DISK-24", "the dm-integrity superblock is cut short")
    magic, version, log2_interleave, tag_size, sections, sectors, flags, log2_block = _SUPERBLOCK.unpack_from(
        blob
    )
    refused = {
        "magic": magic != _MAGIC,
        "version": version not in _VERSIONS,
        "flags": flags != _FLAG_FIXED_PADDING,
        "tag size": tag_size != TAG_SIZE,
        "sector size": log2_block not in (0, 3),
        "interleave": not 3 <= log2_interleave <= 31,  # MIN_ and MAX_LOG2_INTERLEAVE_SECTORS
        "journal": not 1 <= sections <= 1 << 20,
        "size": not 0 < sectors < 1 << 54,
    }
    for field, wrong in refused.items():
        if wrong:
            raise FirstbootError("SX-DISK-25", f"the dm-integrity superblock has an unexpected {field}")
    return IntegritySuperblock(
        version=version,
        interleave=_SECTOR << log2_interleave,
        tag_size=tag_size,
        journal_sections=sections,
        volume_bytes=sectors * _SECTOR,
        sector_size=_SECTOR << log2_block,
    )
