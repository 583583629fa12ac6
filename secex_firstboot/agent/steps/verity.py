"""verity: open boot and root through dm-verity, with the root hashes of the encrypted command line."""

from __future__ import annotations

from pathlib import Path

from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done, ready
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.partitions import HASH_TREES, VERITY
from secex_firstboot.storage import cryptsetup, devicemapper, disk, filesystem, verity

ARGUMENTS = {"boot": "bootfs.roothash", "root": "rootfs.roothash"}


def mapping(volume: str) -> str:
    return f"{volume}{VERITY}"


def root_hash(context: Context, volume: str) -> str:
    """The volume's root hash from the kernel command line, 64 hexadecimal digits. Raises Refusal."""
    value = context.argument(ARGUMENTS[volume]) or ""
    if len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise Refusal(
            f"the command line has no {ARGUMENTS[volume]}=SHA256", "build the SE-ready image again with it"
        )
    return value


class Verity(Step):
    name = "verity"
    summary = "open boot and root through dm-verity"
    stage = Stage.PROVISION

    def observe(self, context: Context) -> Status:
        if context.phase in (Phase.COMMITTED, Phase.PROVISIONED):
            return done("was checked before the commit point")
        for volume in ARGUMENTS:
            root_hash(context, volume)
        if all(is_open(context, volume) for volume in ARGUMENTS):
            return done("boot and root match their root hashes")
        return ready("open boot and root through dm-verity")

    def perform(self, context: Context) -> None:
        partitions = disk.find_disk().partitions
        for volume in ARGUMENTS:
            close(volume)
            device = verity.open_verified(
                partitions[volume].device,
                partitions[HASH_TREES[volume]].device,
                mapping(volume),
                root_hash(context, volume),
            )
            filesystem.identify(device, volume)


def is_open(context: Context, volume: str) -> bool:
    partitions = disk.find_disk().partitions
    data, tree = (partitions[name].device for name in (volume, HASH_TREES[volume]))
    return verity.is_open(data, tree, mapping(volume), root_hash(context, volume))


def close(volume: str) -> None:
    """Close a volume that observe() or a later step opened, if it is open."""
    cryptsetup.close(mapping(volume))


def device(volume: str) -> Path:
    return devicemapper.MAPPER / mapping(volume)
