"""The two volumes that first boot encrypts: where their keys and headers are, and root as it lies there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context, Phase
from secex_firstboot.contract import paths
from secex_firstboot.roots import kinds
from secex_firstboot.roots.kinds import Root
from secex_firstboot.storage import devicemapper, disk, encrypted, filesystem


def secrets_of(name: str) -> encrypted.Secrets:
    return encrypted.Secrets.below(places.STATE / "volumes" / name)


def is_open(context: Context, name: str) -> bool:
    """Whether the mapping ``name`` is the volume that first boot made, at first boot or a later one."""
    system = context.phase is Phase.PROVISIONED
    header = paths.LUKS_KEYS / name if system else secrets_of(name).header
    return encrypted.is_open(header, disk.find_disk().partitions[name].device, name)


def mount(name: str, where: Path) -> None:
    """Mount one of them, which is open."""
    device = devicemapper.MAPPER / name
    filesystem.mount(device, where, type=filesystem.identify(device, name).type)


@contextmanager
def root_mounted(context: Context) -> Iterator[Root]:
    """Root, as it lies on its volume, mounted beside where the system has it."""
    mount("root", places.ROOT_MOUNT)
    try:
        yield kinds.on(places.ROOT_MOUNT, context.command_line)
    finally:
        filesystem.unmount(places.ROOT_MOUNT)
