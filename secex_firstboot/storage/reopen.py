"""A LUKS2 volume that another program has made, opened with a header that was made here.

Its own header lies on the host's disk, and a LUKS2 header is not authenticated: the host may have changed it
between the format and the opening, to a null cipher, or to a keyslot that every key opens, with a volume key
that the host has chosen. So it is read once, into memory, and gives only what is proven: the volume key, from
a keyslot that nobody can have written who does not have the owner's key. Around that key goes a new header.
"""

from __future__ import annotations

import re
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import open_private
from secex_firstboot.storage import cryptsetup, devicemapper
from secex_firstboot.storage.cryptsetup import CIPHER, CryptSetup, VolumeDescription

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SECTOR_SIZES = (512, 1024, 2048, 4096)
_ROOM = 1 << 20  # bytes behind a header, for the library's sake


def device_below(name: str) -> Path:
    """The one device that the LUKS2 mapping ``name`` lies on, from the kernel. Raises FirstbootError."""
    mapping = devicemapper.find(name)
    if mapping and mapping.uuid.startswith("CRYPT-LUKS2-") and mapping.uuid.endswith(f"-{name}"):
        targets = devicemapper.table(name)
        if [target.type for target in targets] == ["crypt"]:
            return devicemapper.device(targets[0].arguments[3])
    raise FirstbootError(
        "SX-DISK-36", "Ignition has not opened it as LUKS2", "look at ignition-disks.service"
    )


def is_open(header: Path, name: str) -> bool:
    """Whether the mapping ``name`` is the volume of this header, by what the kernel says."""
    mapping = devicemapper.find(name)
    return mapping is not None and mapping.uuid == devicemapper.uuid_of(
        "LUKS2", cryptsetup.luks2_uuid(header), name
    )


def reopen(name: str, device: Path, key: bytearray, header: Path, scratch: Path) -> None:
    """Close the mapping ``name``, and open ``device`` under it with a new detached header, ``header``.

    ``scratch`` is a directory in memory. Raises FirstbootError if ``key`` opens no keyslot that its owner
    must have written, or the volume is not of the one kind that is made here.
    """
    on_disk = scratch / "luks-header"
    on_disk.unlink(missing_ok=True)
    try:
        with CryptSetup(device) as handle:
            handle.load_luks2()
            handle.backup_header(on_disk)
        with CryptSetup(on_disk) as handle:
            found = handle.load_luks2()
            _check(found)
            with handle.volume_key(key) as volume_key:
                _make_header(header, found, volume_key, key, scratch)
    finally:
        on_disk.unlink(missing_ok=True)
    cryptsetup.close(name)
    with CryptSetup(device, header=header) as handle:
        handle.load_luks2()
        handle.activate(name, key)


def _check(found: VolumeDescription) -> None:
    kind = found.cipher, found.integrity, found.volume_key_size
    if (
        kind != ("-".join(CIPHER), "none", cryptsetup.XTS_KEY_BYTES)
        or not _UUID.fullmatch(found.uuid)
        or found.sector_size not in _SECTOR_SIZES
    ):
        raise FirstbootError(
            "SX-DISK-37",
            "its header is not one that Ignition makes without options",
            "if it is yours, start anew from the image as published, with wipeVolume true in the config",
        )


def _make_header(
    header: Path, found: VolumeDescription, volume_key: bytearray, key: bytearray, scratch: Path
) -> None:
    header.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    header.unlink(missing_ok=True)
    image = scratch / "format"
    try:
        with open_private(image) as stream:
            stream.truncate(found.data_offset + _ROOM)
        with CryptSetup(image) as handle:
            handle.format_luks2_for(
                volume_key,
                key=key,
                uuid=found.uuid,
                sector_size=found.sector_size,
                data_offset=found.data_offset,
            )
            handle.backup_header(header)
        header.chmod(0o600)
    finally:
        image.unlink(missing_ok=True)
