"""What the agent owns, and a config must leave alone: the system disk, and what opens it.

It is asked of the config that Ignition merged, whose field names are exact: Ignition reads those of a user's
config in any case. What Ignition does with each entry: https://coreos.github.io/ignition/operator-notes/.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from secex_firstboot.errors import Refusal
from secex_firstboot.ignition.config import Config, Node

_VOLUMES = ("boot", "root")
_PARTITIONS = {"se", "boot", "root", "boothash", "roothash"}
_LABELS = {"se", "boot", "root", "crypt_bootfs", "crypt_rootfs"}

# Below these, nothing from a config: the agent writes there, or builds the boot image from it.
_TREES = tuple(
    PurePosixPath(path)
    for path in (
        "/etc/luks",
        "/etc/crypttab",
        "/etc/secex-firstboot",
        "/usr/lib/secex-firstboot",
        "/var/lib/secex-firstboot",
        "/boot",  # a volume of its own, on which a files stage that was cut short cannot be undone
    )
)
# /var may be a volume of its own: what is in it of ours is no more than notes.
_NOT_TO_BE_MOUNTED_OVER = tuple(tree for tree in _TREES if tree.parts[1] != "var")
_CRYPTTAB = PurePosixPath("/etc/crypttab")

_ROOT = PurePosixPath("/")
_MERGED_USR = {PurePosixPath("/lib"): "usr/lib"}
_LINKS_FOLLOWED = 40  # as many as Linux follows in one path, path_resolution(7)

_ON_THE_SYSTEM_DISK = "is on the system disk, which first boot encrypts", "use another disk"
_TAKEN = "is a name that first boot needs for its own volumes", "use another name"
_ITS_OWN = "belongs to first boot", "remove it from the config"
_ONLY_ONCE = (
    "is not true, so that a first boot whose power fails could not make the volume again",
    "set it to true, or give a keyFile",
)
_REPLACED = "replaces or hides what belongs to first boot", "use another path"
_WRITES_CRYPTTAB = (
    "is /etc/crypttab, where first boot puts its volumes",
    "use storage.luks for volumes of your own: Ignition adds them there itself",
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
    for place, device in _devices(config):
        if number(device) in devices or _is_ours_by_name(device):
            raise _refusal(place, _ON_THE_SYSTEM_DISK)
    for place, name, taken in _names(config):
        if name in taken:
            raise _refusal(place, _TAKEN)
    for index, luks in enumerate(config.storage.luks):
        if not luks.can_be_made_twice:
            raise _refusal(f"storage.luks[{index}].wipeVolume", _ONLY_ONCE)
    _check_paths(config)


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


def _devices(config: Config) -> Iterator[tuple[str, str]]:
    storage = config.storage
    for index, disk in enumerate(storage.disks):
        yield f"storage.disks[{index}].device", disk.device
    for index, raid in enumerate(storage.raid):
        for member, device in enumerate(raid.devices):
            yield f"storage.raid[{index}].devices[{member}]", device
    for index, luks in enumerate(storage.luks):
        yield f"storage.luks[{index}].device", luks.device or ""
    for index, filesystem in enumerate(storage.filesystems):
        yield f"storage.filesystems[{index}].device", filesystem.device


def _is_ours_by_name(device: str) -> bool:
    """Links and mappings of ours that are not there before first boot has made its volumes.

    ``dm-N`` is refused as a whole: which mapping has the number is not known before.
    """
    path = PurePosixPath(os.path.normpath(f"/{device.lstrip('/')}"))
    if path.parent == PurePosixPath("/dev"):
        return path.name.startswith("dm-")
    if path.parent == PurePosixPath("/dev/mapper"):
        return _is_mapping_of_ours(path.name)
    if path.parent == PurePosixPath("/dev/disk/by-id"):
        return path.name.startswith("dm-") and _is_mapping_of_ours(path.name.rpartition("-")[2])
    if path.parent == PurePosixPath("/dev/disk/by-label"):
        return path.name in _LABELS
    return path.parent == PurePosixPath("/dev/disk/by-partlabel") and path.name in _PARTITIONS


def _is_mapping_of_ours(name: str) -> bool:
    """boot, boot_dif, boot_verity… and so for root."""
    return name.partition("_")[0] in _VOLUMES


def _names(config: Config) -> Iterator[tuple[str, str | None, Collection[str]]]:
    storage = config.storage
    for index, disk in enumerate(storage.disks):
        for number, partition in enumerate(disk.partitions):
            yield f"storage.disks[{index}].partitions[{number}].label", partition.label, _PARTITIONS
    for index, luks in enumerate(storage.luks):
        # Ignition keeps the key in a file of this name in /etc/luks, where ours and the headers are.
        taken = {luks.name} if _is_mapping_of_ours(luks.name.partition(".")[0]) else set()
        yield f"storage.luks[{index}].name", luks.name, taken
        yield f"storage.luks[{index}].label", luks.label, _LABELS
    for index, filesystem in enumerate(storage.filesystems):
        yield f"storage.filesystems[{index}].label", filesystem.label, _LABELS


def _check_paths(config: Config) -> None:
    storage = config.storage
    links = dict(_MERGED_USR)
    for link in storage.links:
        links[_resolved(link.path, links)] = link.target
    nodes: dict[str, Sequence[Node]] = {
        "files": storage.files,
        "directories": storage.directories,
        "links": storage.links,
    }
    for kind, entries in nodes.items():
        for index, node in enumerate(entries):
            place, path = f"storage.{kind}[{index}].path", _resolved(node.path, links)
            if path == _CRYPTTAB:
                raise _refusal(place, _WRITES_CRYPTTAB)
            if _is_ours(path):
                raise _refusal(place, _ITS_OWN)
            if (kind != "directories" or node.overwrite) and _covers(path, _TREES):
                raise _refusal(place, _REPLACED)
    for index, filesystem in enumerate(storage.filesystems):
        if filesystem.path is None:
            continue
        path = _resolved(filesystem.path, links)
        if _is_ours(path) or _covers(path, _NOT_TO_BE_MOUNTED_OVER):
            raise _refusal(f"storage.filesystems[{index}].path", _REPLACED)


def _is_ours(path: PurePosixPath) -> bool:
    return any(path.is_relative_to(tree) for tree in _TREES)


def _covers(path: PurePosixPath, trees: Sequence[PurePosixPath]) -> bool:
    return any(tree.is_relative_to(path) for tree in trees)


def _resolved(path: str, links: Mapping[PurePosixPath, str]) -> PurePosixPath:
    """Where Ignition writes ``path``: it follows links, here those known, in all but the last element."""
    here, ahead, followed = _ROOT, _elements(path)[::-1], 0
    while ahead:
        element = ahead.pop()
        here = here.parent if element == ".." else here / element
        if ahead and here in links and followed < _LINKS_FOLLOWED:
            target = links[here]
            ahead += _elements(target)[::-1]
            here, followed = _ROOT if target.startswith("/") else here.parent, followed + 1
    return here


def _elements(path: str) -> list[str]:
    return [element for element in path.split("/") if element not in ("", ".")]


def _refusal(place: str, reason: tuple[str, str]) -> Refusal:
    what, cure = reason
    return Refusal(f"the Ignition config's {place} {what}", cure)
