"""Finding the machine's disks with udev: the SE-ready disk and its partitions, the config disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

import pyudev

from secex_firstboot.basic.errors import DeviceMissing, Refusal
from secex_firstboot.contract.partitions import HASH_TREES, LASTING, NUMBERS

T = TypeVar("T")

SECTOR = 512  # bytes; the unit of udev's ID_PART_ENTRY_* and of sysfs, whatever the disk's own block size


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
    """The disk that is provisioned; ``size`` in bytes, ``block_size`` its logical block size in bytes.

    ``partitions`` are those of an SE-ready image by name, ``others`` what else there is.
    """

    device: Path
    size: int
    block_size: int
    partitions: dict[str, Partition]
    others: tuple[Partition, ...] = ()

    @classmethod
    def of(cls, device: Path, size: int, block_size: int, found: Sequence[Partition]) -> Self:
        """With the partitions that were ``found`` on it, told apart."""
        known = {part.name: part for part in found if NUMBERS.get(part.name) == part.number}
        others = tuple(part for part in found if part not in known.values())
        return cls(device, size, block_size, known, others)

    @property
    def all(self) -> tuple[Partition, ...]:
        """In their order on the disk."""
        return tuple(sorted((*self.partitions.values(), *self.others), key=lambda part: part.start))

    @property
    def has_hash_trees(self) -> bool:
        return all(name in self.partitions for name in HASH_TREES.values())

    def missing(self, wanted: dict[str, int]) -> str:
        """Those of the ``wanted`` partitions (name: number) that it does not have, for a message; or ""."""
        return ", ".join(
            f"{number} {name!r}" for name, number in wanted.items() if name not in self.partitions
        )


def _partitions_of(disk: pyudev.Device) -> list[Partition]:
    return [
        Partition(
            number=int(device["ID_PART_ENTRY_NUMBER"]),
            name=device.get("ID_PART_ENTRY_NAME", ""),
            device=Path(device.device_node),
            uuid=device["ID_PART_ENTRY_UUID"],
            start=int(device.attributes.asint("start")) * SECTOR,
            size=int(device.attributes.asint("size")) * SECTOR,
        )
        for device in disk.children
        if device.get("DEVTYPE") == "partition" and device.get("ID_PART_ENTRY_SCHEME") == "gpt"
    ]


def disks() -> Iterator[Disk]:
    """Every disk that has at least one partition with the number and name of an SE-ready image's."""
    for device in pyudev.Context().list_devices(subsystem="block", DEVTYPE="disk"):
        found = _disk(device)
        if found.partitions:
            yield found


def find_disk() -> Disk:
    """The one disk with partitions ``se``, ``boot`` and ``root``. Raises Refusal if there is none, or two."""
    candidates = list(disks())
    complete = [disk for disk in candidates if LASTING.keys() <= disk.partitions.keys()]
    if len(complete) == 1:
        return complete[0]
    if complete:
        names = " and ".join(str(disk.device) for disk in complete)
        raise Refusal(
            "SX-DISK-07",
            f"{names} both carry partitions se, boot and root",
            "attach only the disk to provision",
        )
    nearest = max(candidates, key=lambda disk: len(disk.partitions), default=None)
    if nearest is None:
        raise DeviceMissing(
            "SX-DISK-08",
            "no disk has the partitions of an SE-ready image",
            "attach the SE-ready image as a disk",
        )
    raise DeviceMissing(
        "SX-DISK-09",
        f"{nearest.device} has no partition {nearest.missing(LASTING)}",
        "start from an unchanged SE-ready image",
    )


def of_device(device: Path) -> Disk:
    """That of a block device. Raises Refusal unless it has partitions ``se``, ``boot`` and ``root``."""
    try:
        found = _disk(pyudev.Devices.from_device_file(pyudev.Context(), str(device.resolve())))
    except (pyudev.DeviceNotFoundError, ValueError, OSError, KeyError):
        raise Refusal(
            "SX-RECOVER-07",
            f"{device} is no disk of this machine",
            "attach the image as one: losetup --find --show --partscan FILE, or qemu-nbd --connect",
        ) from None
    if missing := found.missing(LASTING):
        raise Refusal("SX-RECOVER-08", f"{device} has no partition {missing}", "name the disk of a guest")
    return found


def find_partition(name: str, device: Path | None = None) -> Disk:
    """The disk of the one partition with this name, whatever its number, or of this ``device``; its
    ``partitions`` are that one. Raises Refusal if there is none, or two."""
    found = [
        replace(disk, partitions={name: part}, others=())
        for disk in map(_disk, pyudev.Context().list_devices(subsystem="block", DEVTYPE="disk"))
        for part in (*disk.partitions.values(), *disk.others)
        if part.device == device or (not device and part.name == name)
    ]
    if len(found) == 1:
        return found[0]
    many = "more than one GPT partition" if found else "no GPT partition"
    raise Refusal(
        "SX-DISK-39",
        f"{device} is {many}" if device else f"{many} has the name {name}",
        "make one that holds kernel and initramfs three times, or name it: --partition=DEVICE",
    )


def _disk(device: pyudev.Device) -> Disk:
    return Disk.of(
        device=Path(device.device_node),
        size=int(device.attributes.asint("size")) * SECTOR,
        block_size=int(device.attributes.asint("queue/logical_block_size")),
        found=_partitions_of(device),
    )


def find_by_serial(serial: str) -> Path:
    """The disk with this virtio (or SCSI) serial. Raises Refusal if there is none, or two."""
    found = [
        Path(device.device_node)
        for device in pyudev.Context().list_devices(subsystem="block", DEVTYPE="disk")
        if device.get("ID_SERIAL") == serial
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise Refusal(
            "SX-DISK-10",
            f"{' and '.join(map(str, found))} both have the serial {serial}",
            "attach only one of them",
        )
    raise DeviceMissing(
        "SX-DISK-11", f"no disk has the serial {serial}", f"attach it as a virtio disk with serial={serial}"
    )


def wait_for_device(look: Callable[[], T], seconds: float = 30) -> T:
    """What ``look`` returns, asked again at every change of a block device while it raises DeviceMissing.

    Raises the last DeviceMissing after ``seconds``.
    """
    monitor = pyudev.Monitor.from_netlink(pyudev.Context())
    monitor.filter_by(subsystem="block")
    monitor.start()
    deadline = time.monotonic() + seconds
    while True:
        try:
            return look()
        except DeviceMissing:
            left = deadline - time.monotonic()
            if left <= 0 or monitor.poll(timeout=left) is None:
                raise
