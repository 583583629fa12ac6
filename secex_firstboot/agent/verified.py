"""The volumes of the SE-ready image as dm-verity shows them, until they are encrypted."""

from __future__ import annotations

from pathlib import Path

from secex_firstboot.agent.step import Context
from secex_firstboot.contract import parameters
from secex_firstboot.contract.partitions import HASH_TREES, VERITY
from secex_firstboot.storage import cryptsetup, devicemapper, disk, verity


def mapping(volume: str) -> str:
    return f"{volume}{VERITY}"


def root_hash(context: Context, volume: str) -> str:
    """The volume's root hash from the kernel command line, 64 hexadecimal digits. Raises Refusal."""
    return parameters.value(context.command_line, parameters.ROOT_HASHES[volume])


def is_open(context: Context, volume: str) -> bool:
    partitions = disk.find_disk().partitions
    data, tree = (partitions[name].device for name in (volume, HASH_TREES[volume]))
    return verity.is_open(data, tree, mapping(volume), root_hash(context, volume))


def close(volume: str) -> None:
    """Close a volume that observe() or a later step opened, if it is open."""
    cryptsetup.close(mapping(volume))


def device(volume: str) -> Path:
    return devicemapper.MAPPER / mapping(volume)
