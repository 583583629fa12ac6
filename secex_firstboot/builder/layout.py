"""Where the partitions of an SE-ready image lie, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from secex_firstboot.basic.process import run
from secex_firstboot.builder.recipe import Sizes
from secex_firstboot.contract.partitions import LAYOUT
from secex_firstboot.storage.encrypted import head_size, required_device_size
from secex_firstboot.storage.verity_superblock import BLOCK_SIZE, Superblock

MIB = 1 << 20
SECTOR = 512  # bytes of a block of the disk
_INTEGRITY_SECTOR = 4096  # bytes; dm-integrity's, once a volume is encrypted
_BACKUP_TABLE = MIB  # at the end of the disk
_BOOT_IMAGES = 3  # a life of updates: the one that runs, the one to fall back to, the one in the making
SE_FILE_SYSTEM = 24 * MIB  # what ext4 takes for itself, and the boot map


@dataclass(frozen=True)
class Region:
    """Bytes from the start of the disk."""

    start: int
    size: int


@dataclass(frozen=True)
class Layout:
    regions: Mapping[str, Region]
    disk_size: int

    @property
    def end(self) -> int:
        """Of the last partition."""
        return max(each.start + each.size for each in self.regions.values())

    def write_table(self, disk: Path, identity: Mapping[str, str]) -> None:
        """Make a sparse file as large as the disk, with its partition table and nothing else, by sfdisk(8).

        ``identity``: the GUIDs, of the disk and of each partition.
        """
        lines = ["label: gpt", f"label-id: {identity['disk']}"]
        for each in LAYOUT:
            region = self.regions[each.name]
            fields = {"start": region.start // SECTOR, "size": region.size // SECTOR, "name": each.name}
            fields["uuid"] = identity[each.name]
            lines.append(f"{each.number}: " + ", ".join(f"{key}={value}" for key, value in fields.items()))
        with disk.open("wb") as stream:
            stream.truncate(self.disk_size)
        run(["sfdisk", "--quiet", disk], stdin="\n".join([*lines, ""]))


def lay_out(file_systems: Mapping[str, int], boot_image: int, sizes: Sizes) -> Layout:
    """For file systems of so many bytes, and a boot image of about ``boot_image``."""
    boot, root = file_systems["boot"], file_systems["root"]
    encrypted_boot = required_device_size(boot, _INTEGRITY_SECTOR)
    lengths = {
        "se": _BOOT_IMAGES * boot_image + SE_FILE_SYSTEM if sizes.se is None else sizes.se * MIB,
        "boot": encrypted_boot if sizes.boot_room is None else boot + sizes.boot_room * MIB,
        "root": root,
        "boothash": tree_size(boot),
        "roothash": tree_size(root),
    }
    # What first boot saves there, and the tags of dm-integrity; what boot lacks root gives, and has it saved.
    lacking = max(0, encrypted_boot - lengths["boot"])
    needed = 2 * (head_size(_INTEGRITY_SECTOR) + lacking) + root // 32 + 32 * MIB
    behind = needed if sizes.behind is None else sizes.behind * MIB
    regions, at = {}, MIB
    for each in LAYOUT:
        regions[each.name] = Region(at, in_mib(lengths[each.name]) * MIB)
        at += regions[each.name].size
    return Layout(regions, at + in_mib(behind) * MIB + _BACKUP_TABLE)


def tree_size(data: int) -> int:
    """Bytes of the hash tree for so many bytes of data."""
    return Superblock(-(-data // BLOCK_SIZE), b"").tree_bytes


def in_mib(size: float) -> int:
    """Rounded up."""
    return -(-int(size) // MIB)
