"""The plan of a first boot: where everything lies before, during and after.

It is made once, before the commit point, from what the machine shows; the personalised sdboot carries it, so
that a start after a crash goes on with the same figures. Layout of the root partition while it is encrypted
(the boot partition's source and target share their partition in the same way, its saved head lies here too)::

    | root: source, block 0 … n | hash trees | free …      | boot head | root head | root tree |
    | LUKS2 | journal | target, block 0 … n, interleaved with tags …   |   saved, until copied  |

Where partition boot has no room for its target, it grows over the start of root, whose partition then begins
later, by its ``shift``; what boot grows over is saved as the start of root's head::

    | boot: source         | root: source, block 0 … n                  | hash trees | free …
    | boot: LUKS2 | target …    | root: LUKS2 | journal | target, block 0 … n, interleaved with tags …
                           |shift|

All positions and sizes are bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.partitions import HASH_TREES, luks_label
from secex_firstboot.storage import filesystem, verity_superblock
from secex_firstboot.storage.disk import Disk, Partition
from secex_firstboot.storage.encrypted import head_size, required_device_size
from secex_firstboot.storage.filesystem import FileSystem
from secex_firstboot.storage.gpt import ENTRIES_SIZE

MIB = 1 << 20


class Span(BaseModel):
    """``size`` bytes from byte ``offset``: of the disk for a partition, else of the grown root partition."""

    model_config = ConfigDict(frozen=True)

    offset: int = Field(ge=0)
    size: int = Field(ge=0)


class VolumePlan(BaseModel):
    """How one of the two volumes is re-encrypted."""

    model_config = ConfigDict(frozen=True)

    name: Literal["boot", "root"]
    partition: Span
    shift: int = Field(ge=0)  # bytes of its source that lie before its partition
    source_size: int = Field(gt=0)
    root_hash: str = Field(pattern="^[0-9a-f]{64}$")
    tree: Span
    saved_head: Span
    saved_tree: Span
    sector_size: Literal[512, 4096]
    file_system: Literal["ext4", "xfs"]
    file_system_size: int = Field(gt=0)

    @property
    def label(self) -> str:
        return luks_label(self.name)


class Plan(BaseModel):
    """Carries the key that authenticates the progress record, and so is a secret itself."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    boot: VolumePlan
    root: VolumePlan
    headroom: int = Field(ge=0)
    record_key: str = Field(pattern="^[0-9a-f]{64}$", repr=False)
    replace_identity: bool = False  # what identifies one machine is removed from root, see identity.py

    @property
    def volumes(self) -> tuple[VolumePlan, VolumePlan]:
        return (self.boot, self.root)

    @property
    def image_end(self) -> int:
        """Where what the image brought ends in the root partition: its root, or the last hash tree."""
        root = self.root.source_size - self.root.shift
        return max(root, *(each.tree.offset + each.tree.size for each in self.volumes))

    @property
    def saved(self) -> Span:
        """All that is saved at the end of the root partition, until root is copied."""
        start = self.boot.saved_head.offset
        return Span(offset=start, size=self.root.partition.size - start)

    @classmethod
    def load(cls, path: Path) -> Plan:
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


class Source(BaseModel):
    """A volume of the SE-ready image as dm-verity shows it."""

    model_config = ConfigDict(frozen=True)

    root_hash: str
    size: int
    file_system: FileSystem


def read_source(raw: Path, disk: Disk, name: str) -> Source:
    """Of a volume in a raw image file, whatever its root hash is. Raises Refusal."""
    partition, tree = disk.partitions[name], disk.partitions[HASH_TREES[name]]
    superblock = verity_superblock.read(
        raw, name, offset=tree.start, tree_room=tree.size, data_room=partition.size
    )
    found = filesystem.identify(raw, name, offset=partition.start)
    if found.size > superblock.data_bytes:
        raise Refusal(
            "SX-CHECK-11",
            f"the hash tree for {name} does not cover the whole file system",
            "build the image again",
        )
    return Source(root_hash="0" * 64, size=superblock.data_bytes, file_system=found)


def grown_root(disk: Disk, shift: int = 0) -> Span:
    """The root partition once it begins ``shift`` bytes later, and reaches to the end of the disk.

    The backup GPT takes 16 KiB and one block at the end (UEFI 2.10, 5.3.1); partitions end on a MiB.
    """
    start = disk.partitions["root"].start + shift
    end = (disk.size - ENTRIES_SIZE - disk.block_size) // MIB * MIB
    return Span(offset=start, size=max(0, end - start))


def lay_out(disk: Disk, boot: Source, root: Source, headroom: int, record_key: str) -> Plan:
    """Place both volumes and what must be saved meanwhile. Raises Refusal that names the MiB missing."""
    partitions = disk.partitions
    _check_order(partitions, disk.others)
    shift = _shift(partitions, boot, root)
    whole = grown_root(disk, shift)
    boot_tree, tree = (_inside(whole, partitions[name]) for name in HASH_TREES.values())
    saved = [
        min(head_size(sector_size(boot)), boot.size),
        min(shift + head_size(sector_size(root)), root.size),
        tree.size,
    ]
    target = required_device_size(root.size, sector_size(root))
    used = max(target, boot_tree.offset + boot_tree.size, tree.offset + tree.size)
    missing = used + sum(saved) - whole.size
    if missing > 0:
        mib = -(-missing // MIB)
        raise Refusal(
            "SX-DISK-28",
            f"{disk.device} is too small by {mib} MiB",
            f"power off and enlarge the image: qemu-img resize IMAGE +{mib}M",
        )
    at = whole.size - sum(saved)
    spans = []
    for size in saved:
        spans.append(Span(offset=at, size=size))
        at += size
    grown_boot = Span(offset=partitions["boot"].start, size=partitions["boot"].size + shift)
    return Plan(
        boot=_volume("boot", boot, grown_boot, 0, boot_tree, spans[0]),
        root=_volume("root", root, whole, shift, tree, spans[1], spans[2]),
        headroom=headroom,
        record_key=record_key,
    )


def sector_size(source: Source) -> Literal[512, 4096]:
    """dm-integrity's sector: 4096 bytes where the file system never reads less, else 512."""
    return 4096 if source.file_system.sector_size == 4096 else 512


def _volume(
    name: Literal["boot", "root"],
    source: Source,
    partition: Span,
    shift: int,
    tree: Span,
    head: Span,
    saved_tree: Span | None = None,
) -> VolumePlan:
    if source.file_system.type not in ("ext4", "xfs"):
        raise Refusal(
            "SX-DISK-29", f"the file system of {name} is {source.file_system.type}", "use ext4 or xfs"
        )
    return VolumePlan.model_validate(
        {
            "name": name,
            "partition": partition,
            "shift": shift,
            "source_size": source.size,
            "root_hash": source.root_hash,
            "tree": tree,
            "saved_head": head,
            "saved_tree": saved_tree or tree,
            "sector_size": sector_size(source),
            "file_system": source.file_system.type,
            "file_system_size": source.file_system.size,
        }
    )


def _check_order(partitions: dict[str, Partition], others: tuple[Partition, ...]) -> None:
    root = partitions["root"]
    for other in others:
        if other.end > root.start:
            raise Refusal(
                "SX-DISK-30",
                f"partition {other.number} {other.name!r} lies where root has to grow",
                "build the image without it, or with it before root",
            )
    for name in HASH_TREES.values():
        if partitions[name].start < root.end:
            raise Refusal(
                "SX-DISK-31", f"partition {name} does not lie behind root", "build the image in this order"
            )
    if partitions["boot"].end > root.start:
        raise Refusal(
            "SX-DISK-32", "partition boot does not lie before root", "build the image in this order"
        )


def _shift(partitions: dict[str, Partition], boot: Source, root: Source) -> int:
    """What boot's partition lacks, and root gives of its start: whole MiB. Raises Refusal if it cannot."""
    lacking = required_device_size(boot.size, sector_size(boot)) - partitions["boot"].size
    mib = -(-max(lacking, 0) // MIB)
    if mib and (partitions["boot"].end != partitions["root"].start or root.size < mib * MIB):
        raise Refusal(
            "SX-DISK-33",
            f"partition boot is too small by {mib} MiB, and root cannot give them",
            "build the image with boot right before root, or with a larger boot partition",
        )
    return mib * MIB


def _inside(whole: Span, partition: Partition) -> Span:
    return Span(offset=partition.start - whole.offset, size=partition.size)
