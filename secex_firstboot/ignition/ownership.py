"""What the agent owns, and a config must leave alone: the system disk, and what opens it.

What that is: ``contract.owned``. What Ignition does with each entry: ``writes``, and
https://coreos.github.io/ignition/operator-notes/.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract import owned, partitions
from secex_firstboot.contract.paths import CRYPTTAB
from secex_firstboot.ignition import luks as luks_volumes
from secex_firstboot.ignition import writes
from secex_firstboot.ignition.config import Config
from secex_firstboot.ignition.writes import Kind, Write

_ON_THE_SYSTEM_DISK = "is on the system disk, which first boot encrypts", "use another disk"
_TAKEN = "is a name that first boot needs for its own volumes", "use another name"
_ITS_OWN = "belongs to first boot", "remove it from the config"
_ONLY_ONCE = (
    "is not true, so that a first boot whose power fails could not make the volume again",
    "set it to true, or give a keyFile",
)
_REPLACED = "replaces or hides what belongs to first boot", "use another path"
_WRITES_CRYPTTAB = (
    f"is {CRYPTTAB}, where first boot puts its volumes",
    "use storage.luks for volumes of your own: Ignition adds them there itself",
)
_NO_SETTINGS = "is where first boot reads your settings, from a regular file", "make it a file"
_A_NEEDED_UNIT = (
    "is about a unit that opens, mounts or looks after what first boot makes",
    "use another unit, or remove it from the config",
)


def device_number(path: str) -> int | None:
    """The number (st_rdev) of the block device that a path leads to, also through links; None if to none."""
    try:
        status = os.stat(path)  # noqa: PTH116  # a str from the config, maybe with a NUL
    except (OSError, ValueError):
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def check(
    config: Config, devices: Collection[int], number: Callable[[str], int | None] = device_number
) -> None:
    """Raises Refusal with the place of the first entry that touches what the agent owns.

    ``devices`` are the numbers of the system disk, see ``device_numbers``; ``number`` tells which one a path
    leads to.
    """
    for place, device in writes.devices(config):
        if number(device) in devices or _is_ours_by_name(device):
            raise _refusal(place, _ON_THE_SYSTEM_DISK)
    for place, name, taken in _names(config):
        if name in taken:
            raise _refusal(place, _TAKEN)
    for index, luks in enumerate(config.storage.luks):
        if not luks.can_be_made_twice:
            raise _refusal(f"storage.luks[{index}].wipeVolume", _ONLY_ONCE)
    luks_volumes.check(config)
    resolve = writes.resolver(config)
    volumes = [luks.name for luks in config.storage.luks]
    for write in writes.of(config):
        if reason := _why_not(write, resolve(write.path), volumes):
            raise _refusal(write.place, reason)


def places_of_devices(config: Config) -> list[str]:
    """Where the config names devices: whose they are shows only where they are."""
    return [place for place, device in writes.devices(config) if device]


def device_numbers(disk: Path, block: Path = Path("/sys/class/block")) -> frozenset[int]:
    """The numbers of a disk, of its partitions, and of all mappings that lie on them."""
    found: set[int] = set()
    names = [disk.name]
    while names:
        device = block / names.pop()
        major, _, minor = (device / "dev").read_text(encoding="ascii").strip().partition(":")
        found.add(os.makedev(int(major), int(minor)))
        names += [partition.parent.name for partition in device.glob("*/partition")]
        names += [holder.name for holder in (device / "holders").iterdir()]
    return frozenset(found)


def _is_ours_by_name(device: str) -> bool:
    """Links and mappings of ours that are not there before first boot has made its volumes.

    ``dm-N`` is refused as a whole: which mapping has the number is not known before.
    """
    path = PurePosixPath(os.path.normpath(f"/{device.lstrip('/')}"))
    match str(path.parent):
        case "/dev":
            return path.name.startswith("dm-")
        case "/dev/mapper":
            return owned.is_mapping(path.name)
        case "/dev/disk/by-id":
            return owned.is_link_to_mapping(path.name)
        case "/dev/disk/by-label":
            return path.name in partitions.LABELS
        case "/dev/disk/by-partlabel":
            return path.name in partitions.NUMBERS
    return False


def _names(config: Config) -> Iterator[tuple[str, str | None, Collection[str]]]:
    storage = config.storage
    for index, disk in enumerate(storage.disks):
        for number, partition in enumerate(disk.partitions):
            yield f"storage.disks[{index}].partitions[{number}].label", partition.label, partitions.NUMBERS
    for index, luks in enumerate(storage.luks):
        yield f"storage.luks[{index}].label", luks.label, partitions.LABELS
    for index, filesystem in enumerate(storage.filesystems):
        yield f"storage.filesystems[{index}].label", filesystem.label, partitions.LABELS


def _why_not(write: Write, path: PurePosixPath, volumes: Sequence[str]) -> tuple[str, str] | None:
    """Why a config with these LUKS volumes may not write this, at the ``path`` that it leads to."""
    if write.kind is Kind.KEY:
        return _TAKEN if owned.is_luks_name(path.name) else None
    if path == CRYPTTAB:
        return _WRITES_CRYPTTAB
    if owned.is_below(path, owned.TREES):
        return _ITS_OWN
    if any(owned.is_unit(unit, volumes) for unit in owned.units_in(path)):
        return _A_NEEDED_UNIT
    if write.kind is Kind.MOUNT:
        return _REPLACED if owned.is_mount_point(path) else None
    if owned.is_below(path, owned.SETTINGS) and not (write.kind is Kind.FILE and path in owned.SETTINGS):
        return _NO_SETTINGS
    takes_the_place = write.replaces or write.kind in (Kind.FILE, Kind.LINK)
    return _REPLACED if takes_the_place and owned.is_around(path, owned.TREES) else None


def _refusal(place: str, reason: tuple[str, str]) -> Refusal:
    what, cure = reason
    return Refusal("SX-CONFIG-25", f"the Ignition config's {place} {what}", cure)
