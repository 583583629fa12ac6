"""Finding the machine's disks with udev: the SE-ready disk and its partitions, the config disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyudev

from secex_firstboot.errors import Refusal

SECTOR = 512  # bytes; the unit of udev's ID_PART_ENTRY_* and of sysfs, whatever the disk's own block size

# Number and GPT name of each partition of an SE-ready image; the hash trees are gone once provisioned.
PARTITIONS = {"se": 1, "boot": 3, "root": 4}
HASH_PARTITIONS = {"boothash": 5, "roothash": 6}


@dataclass(frozen=True)
class Partition:
    """A GPT partition; ``start`` and ``size`` in bytes from the start of the disk."""

    number: int
    name: str
    device: Path
    uuid: str
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True)
class Disk:
    """The disk that is provisioned; ``size`` in bytes, ``block_size`` its logical block size in bytes."""

    device: Path
    size: int
    block_size: int
    partitions: dict[str, Partition]

    @property
    def has_hash_trees(self) -> bool:
        return all(name in self.partitions for name in HASH_PARTITIONS)


def _partitions_of(disk: pyudev.Device) -> dict[str, Partition]:
    found: dict[str, Partition] = {}
    for device in disk.children:
        if device.get("DEVTYPE") != "partition" or device.get("ID_PART_ENTRY_SCHEME") != "gpt":
            continue
        number, name = int(device["ID_PART_ENTRY_NUMBER"]), device.get("ID_PART_ENTRY_NAME", "")
        if (PARTITIONS | HASH_PARTITIONS).get(name) == number:
            found[name] = Partition(
                number=number,
                name=name,
                device=Path(device.device_node),
                uuid=device["ID_PART_ENTRY_UUID"],
                start=int(device.attributes.asint("start")) * SECTOR,
                size=int(device.attributes.asint("size")) * SECTOR,
            )
    return found


def disks() -> Iterator[Disk]:
    """Every disk that has at least one partition with the number and name of an SE-ready image's."""
    context = pyudev.Context()
    for device in context.list_devices(subsystem="block", DEVTYPE="disk"):
        partitions = _partitions_of(device)
        if partitions:
            yield Disk(
                device=Path(device.device_node),
                size=int(device.attributes.asint("size")) * SECTOR,
                block_size=int(device.attributes.asint("queue/logical_block_size")),
                partitions=partitions,
            )


def find_disk() -> Disk:
    """The one disk with partitions ``se``, ``boot`` and ``root``. Raises Refusal if there is none, or two."""
    candidates = list(disks())
    complete = [disk for disk in candidates if PARTITIONS.keys() <= disk.partitions.keys()]
    if len(complete) == 1:
        return complete[0]
    if complete:
        names = " and ".join(str(disk.device) for disk in complete)
        raise Refusal(f"{names} both carry partitions se, boot and root", "attach only the disk to provision")
    nearest = max(candidates, key=lambda disk: len(disk.partitions), default=None)
    if nearest is None:
        raise Refusal(
            "no disk has the partitions of an SE-ready image", "attach the SE-ready image as a disk"
        )
    missing = ", ".join(
        f"{number} {name!r}" for name, number in PARTITIONS.items() if name not in nearest.partitions
    )
    raise Refusal(f"{nearest.device} has no partition {missing}", "start from an unchanged SE-ready image")


def find_by_serial(serial: str) -> Path | None:
    """The disk with this virtio (or SCSI) serial, or None. Raises Refusal if two disks claim it."""
    found = [
        Path(device.device_node)
        for device in pyudev.Context().list_devices(subsystem="block", DEVTYPE="disk")
        if device.get("ID_SERIAL") == serial
    ]
    if len(found) > 1:
        raise Refusal(
            f"{' and '.join(map(str, found))} both have the serial {serial}", "attach only one of them"
        )
    return found[0] if found else None


def wait_for_disks(seconds: float = 30) -> None:
    """Return once udev knows a complete disk, or after ``seconds``; says nothing of what was found."""
    monitor = pyudev.Monitor.from_netlink(pyudev.Context())
    monitor.filter_by(subsystem="block")
    monitor.start()
    deadline = time.monotonic() + seconds
    while not any(PARTITIONS.keys() <= disk.partitions.keys() for disk in disks()):
        left = deadline - time.monotonic()
        if left <= 0 or monitor.poll(timeout=left) is None:
            return
