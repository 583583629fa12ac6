"""An encrypted volume: LUKS2 with dm-integrity, formatted elsewhere and then placed over its own source.

The LUKS2 header, the dm-integrity superblock and the empty journal are made on a sparse file as large as the
partition. So the header can lie inside sdboot, where the host cannot change it, before the first byte of the
partition is overwritten, and placing it is a plain copy that can be repeated.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from secex_firstboot.basic import memory
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import open_private, sync, write_private
from secex_firstboot.contract.partitions import INTEGRITY
from secex_firstboot.storage import cryptsetup, devicemapper
from secex_firstboot.storage.cryptsetup import DATA_OFFSET, HEADER_SIZE, CryptSetup
from secex_firstboot.storage.integrity import SUPERBLOCK_BYTES, Layout, read_integrity_superblock

KEY_SIZE = 64  # bytes from the kernel's generator: full entropy, so the keyslot needs no slow key derivation
KEY_BEHIND_HEADER = f"keyfile-offset={HEADER_SIZE},keyfile-size={KEY_SIZE}"  # crypttab(5), of Secrets.in_one
JOURNAL_SIZE = 8 << 20
TAIL_SIZE = 4 << 20  # zeroed at the end of the volume, where probes for file systems and RAIDs read
_HEAD_ALIGNMENT = 1 << 20


def _layout(sector_size: int) -> Layout:
    return Layout.planned(sector_size=sector_size, journal_bytes=JOURNAL_SIZE, data_offset=DATA_OFFSET)


def head_size(sector_size: int) -> int:
    """Bytes at the start of the partition that placing overwrites, rounded up to a MiB."""
    return -(-_layout(sector_size).areas_start // _HEAD_ALIGNMENT) * _HEAD_ALIGNMENT


def required_device_size(source_size: int, sector_size: int) -> int:
    """The least size of a partition that holds ``source_size`` bytes encrypted, and the zeroed tail."""
    return _layout(sector_size).device_bytes_for(source_size + TAIL_SIZE)


@dataclass(frozen=True)
class Secrets:
    """Files in RAM that open a volume (``key``, ``header``), and what is placed beside the header once."""

    key: Path
    header: Path
    metadata: Path  # dm-integrity superblock and journal, compressed

    @classmethod
    def below(cls, directory: Path) -> Secrets:
        return cls(directory / "key", directory / "header", directory / "integrity.z")

    def in_one(self) -> bytes:
        """What opens the volume in one file, see KEY_BEHIND_HEADER."""
        return self.header.read_bytes() + self.key.read_bytes()


def prepare(files: Secrets, *, label: str, device_size: int, sector_size: int, scratch: Path) -> None:
    """Make new secrets for a volume on ``device_size`` bytes; ``scratch`` is a directory in tmpfs."""
    files.key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (files.key, files.header, files.metadata):
        path.unlink(missing_ok=True)
    image = scratch / "format"
    try:
        with open_private(image) as stream:
            stream.truncate(device_size)
        with CryptSetup(image) as handle, memory.random_secret(KEY_SIZE) as key:
            handle.format_luks2(label=label, sector_size=sector_size, key=key, journal_bytes=JOURNAL_SIZE)
            handle.backup_header(files.header)
            write_private(files.key, key)
        files.header.chmod(0o600)
        write_private(files.metadata, zlib.compress(_read_metadata(image, sector_size)))
    finally:
        image.unlink(missing_ok=True)


def _read_metadata(image: Path, sector_size: int) -> bytes:
    planned = _layout(sector_size)
    with image.open("rb") as stream:
        stream.seek(DATA_OFFSET)
        metadata = stream.read(planned.areas_start - DATA_OFFSET)
    made = read_integrity_superblock(metadata[:SUPERBLOCK_BYTES]).layout(DATA_OFFSET)
    if made != planned:
        raise FirstbootError(
            "SX-DISK-12", f"dm-integrity chose the layout {made}, not {planned}", "report this kernel"
        )
    return metadata


def place(files: Secrets, partition: Path) -> None:
    """Write header, superblock and empty journal over the start of ``partition``, down to the disk."""
    with partition.open("r+b") as stream:
        for offset, content in (
            (0, files.header.read_bytes()),
            (DATA_OFFSET, zlib.decompress(files.metadata.read_bytes())),
        ):
            stream.seek(offset)
            stream.write(content)
    sync(partition)


def surroundings(files: Secrets, *, sector_size: int, written: int, end: int) -> list[tuple[int, int]]:
    """(offset, size) of what is not the volume's before byte ``end`` of its partition.

    The volume's are header, superblock, journal, and the first ``written`` bytes with their tags; so this is
    what lies behind the header, behind the last tags in their run, and behind the last data.
    """
    layout = _layout(sector_size)
    area = (written - 1) // layout.interleave * layout.interleave
    last_tag = layout.tags_address(area) + (written - area) // sector_size * layout.tag_size
    edges = [
        (files.header.stat().st_size, DATA_OFFSET),
        (last_tag, layout.data_address(area)),
        (layout.data_address(written - 1) + 1, end),
    ]
    return [(start, min(stop, end) - start) for start, stop in edges if start < min(stop, end)]


@contextmanager
def opened(files: Secrets, device: Path, name: str) -> Iterator[Path]:
    """The volume on ``device`` without its journal, for copying; closed at the end of the ``with`` block.

    Nobody else looks at it: what a probe reads may not be written yet, and be an integrity error in the log.
    """
    try:
        with CryptSetup(device, header=files.header) as handle, memory.secret_file(files.key) as key:
            handle.load_luks2()
            path = handle.activate(name, key, no_journal=True, private=True)
        yield path
    finally:
        cryptsetup.close(name)


def open_volume(files: Secrets, device: Path, name: str, *, private: bool = False) -> Path:
    """Open the volume for good, with the detached header and with its journal; ``private``: as ``opened``."""
    with CryptSetup(device, header=files.header) as handle, memory.secret_file(files.key) as key:
        handle.load_luks2()
        return handle.activate(name, key, private=private)


def is_open(header: Path, partition: Path, name: str) -> bool:
    """Whether the mapping ``name`` is the volume of this header: dm-crypt on dm-integrity on ``partition``.

    By what the kernel says: UUID, targets, numbers. Linux: dm-crypt.rst and dm-integrity.rst in
    Documentation/admin-guide/device-mapper, for where a target's device stands.
    """
    mapping, below = devicemapper.find(name), devicemapper.find(f"{name}{INTEGRITY}")
    if (
        not mapping
        or not below
        or mapping.uuid != devicemapper.uuid_of("LUKS2", cryptsetup.luks2_uuid(header), name)
    ):
        return False
    crypt = [(target.type, target.arguments[3:4]) for target in devicemapper.table(name)]
    integrity = [(target.type, target.arguments[:1]) for target in devicemapper.table(below.name)]
    return crypt == [("crypt", [below.number])] and integrity == [
        ("integrity", [devicemapper.number_of(partition)])
    ]


def write_zeros(device: Path, offset: int, size: int, progress: Callable[[int, int], None]) -> None:
    """Write zeros through an open volume, so that its sectors can be read."""
    if size > 0:
        with CryptSetup(device) as handle:
            handle.wipe_zero(offset, size, progress)
