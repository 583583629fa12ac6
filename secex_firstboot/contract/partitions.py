"""The disk of an SE-ready image: its partitions, and what first boot makes of two of them.

Each number and name stands here alone; builder, agent, owner's tool and tests take it from here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImagePartition:
    """A partition of an SE-ready image, known by its number *and* its GPT name."""

    number: int
    name: str
    content: str


LAYOUT = (
    ImagePartition(1, "se", "ext4: sdboot and boot map"),
    ImagePartition(3, "boot", "file system"),
    ImagePartition(4, "root", "file system"),
    ImagePartition(5, "boothash", "dm-verity tree of boot"),
    ImagePartition(6, "roothash", "dm-verity tree of root"),
)

VOLUMES = ("boot", "root")  # what first boot encrypts; /dev/mapper has them under these names from then on
HASH_TREES = {"boot": "boothash", "root": "roothash"}  # of each volume; gone once it is encrypted

NUMBERS = {each.name: each.number for each in LAYOUT}
LASTING = {name: number for name, number in NUMBERS.items() if name not in HASH_TREES.values()}

# Mappings of a volume are named after it, with one of these behind the name.
VERITY = "_verity"  # the image's volume through dm-verity
OLD = "_old"  # below that while it is encrypted: the source, of what is saved and what is still in place
TREE = "_tree"  # and its hash tree
NEW = "_new"  # the encrypted volume while it is written
TARGET = "_target"  # below that: its partition
INTEGRITY = "_dif"  # libcryptsetup's: dm-integrity below an encrypted volume


def luks_label(volume: str) -> str:
    return f"crypt_{volume}fs"


LABELS = frozenset({"se", *VOLUMES, *map(luks_label, VOLUMES)})  # of file systems and LUKS2 headers
MAPPINGS = frozenset(
    volume + suffix
    for volume in VOLUMES
    for suffix in ("", INTEGRITY, VERITY, OLD, TREE, TARGET, NEW, NEW + INTEGRITY)
)
