"""The two volumes that first boot encrypts: where their keys and headers are."""

from __future__ import annotations

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context, Phase
from secex_firstboot.contract import paths
from secex_firstboot.storage import disk, encrypted


def secrets_of(name: str) -> encrypted.Secrets:
    return encrypted.Secrets.below(places.STATE / "volumes" / name)


def is_open(context: Context, name: str) -> bool:
    """Whether the mapping ``name`` is the volume that first boot made, at first boot or a later one."""
    system = context.phase is Phase.PROVISIONED
    header = paths.LUKS_KEYS / f"{name}.header" if system else secrets_of(name).header
    return encrypted.is_open(header, disk.find_disk().partitions[name].device, name)
