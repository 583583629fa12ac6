"""Looking at an image from outside: an SE-ready one, the disk of a guest, or a bare sdboot.

Nothing secret is needed, and nothing is changed. What is damaged is told, all of it.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import is_regular
from secex_firstboot.builder import outputs, volumes
from secex_firstboot.contract import parameters
from secex_firstboot.contract.key_kind import KeyKind
from secex_firstboot.contract.metadata import Metadata
from secex_firstboot.contract.partitions import HASH_TREES, LASTING, VOLUMES
from secex_firstboot.hostkeys import document
from secex_firstboot.hostkeys.document import Document
from secex_firstboot.sdboot import boot_map, image
from secex_firstboot.storage import disk_image, filesystem, plan, progress_record
from secex_firstboot.storage.disk import Disk, Partition

T = TypeVar("T")

_LUKS = b"LUKS\xba\xbe"  # LUKS2 on-disk format, 2.1; what it says counts for nothing, see how-it-works.md


class Kind(StrEnum):
    IMAGE = "SE-ready image"
    GUEST = "disk of a provisioned guest"
    BEGUN = "disk of a guest in the middle of its first boot"
    OTHER = "disk, neither an SE-ready image nor a provisioned guest's"
    BOOT_IMAGE = "boot image"


class Verity(StrEnum):
    """What a hash tree proves of its volume."""

    PROVEN = "proven"
    DAMAGED = "DAMAGED"
    NOT_READ = "not read: --verify reads it"
    NO_HASH = "no root hash is given"


@dataclass(frozen=True)
class Part:
    """A partition; bytes. ``content``: what it looks like from outside."""

    number: int
    name: str
    start: int
    size: int
    content: str
    verity: Verity | None = None


@dataclass(frozen=True)
class HostKey:
    """``name``: of the given document that has this key, if one has."""

    kind: KeyKind
    hash: str
    name: str | None


@dataclass(frozen=True)
class BootImage:
    """``number``: in the boot map, None of a bare one; ``default``: it starts if nobody chooses.

    ``size`` and ``encrypted`` in bytes.
    """

    number: int | None
    default: bool
    size: int
    encrypted: int
    header_version: str
    header_size: int
    dumping_allowed: bool
    host_keys: tuple[HostKey, ...]


@dataclass
class Inspection:
    kind: Kind
    size: int
    partitions: list[Part] = field(default_factory=list)
    boot_images: list[BootImage] = field(default_factory=list)
    first_boot: str = ""
    """Of an image: what first boot lacks on a disk of this size, or that it lacks nothing."""
    config_signers: tuple[str, ...] | None = None
    """As the metadata say, if there are any: an image's own are encrypted."""
    config_bound: bool = False
    damage: list[str] = field(default_factory=list)


def inspect(
    context: Context,
    file: Path,
    *,
    metadata: Metadata | None = None,
    documents: Sequence[Document] = (),
    verify: bool = False,
) -> Inspection:
    """Look at ``file``; with ``verify`` at every byte that a hash tree covers.

    ``documents`` name the hosts. Raises Refusal if the file is none of what can be looked at.
    """
    names = {document.key_hash(each): each.name for each in documents}
    if not is_regular(file):
        raise Refusal(
            "SX-BUILD-47", f"{file} is missing or no regular file", "name a disk image or an sdboot"
        )
    if not disk_image.is_disk(file):
        with file.open("rb") as stream:
            found = _boot_image(stream, file.stat().st_size, names)
        return Inspection(Kind.BOOT_IMAGE, file.stat().st_size, boot_images=[found])
    if verify and not metadata:
        raise Refusal("SX-BUILD-48", "nothing says what the hash trees have to prove", "--metadata NAME.json")
    with disk_image.raw(file, whole=verify) as raw:
        return _Look(context, raw, disk_image.read(raw, file), metadata, names, verify).all()


def _boot_image(
    stream: BinaryIO, size: int, names: dict[bytes, str], *, number: int | None = None, default: bool = False
) -> BootImage:
    header = image.header(stream)
    if header.at + header.size + header.pages * image.PAGE > size:
        raise FirstbootError(
            "SX-BUILD-50",
            f"a boot image has {header.pages} encrypted pages, and {size} bytes in all: it is cut short",
            "get it again from where it came",
        )
    return BootImage(
        number=number,
        default=default,
        size=size,
        encrypted=header.pages * image.PAGE,
        header_version=f"{header.version:#x}",
        header_size=header.size,
        dumping_allowed=header.dumping_allowed,
        host_keys=tuple(HostKey(header.kind, key.hex(), names.get(key)) for key in header.key_slots),
    )


@dataclass(frozen=True)
class _Look:
    context: Context
    raw: Path
    disk: Disk
    metadata: Metadata | None
    names: dict[bytes, str]
    verify: bool
    damage: list[str] = field(default_factory=list)

    def all(self) -> Inspection:
        partitions = [self._part(each) for each in self.disk.all]
        images = self._told(lambda: list(self._boot_images())) or []
        if self.kind in (Kind.IMAGE, Kind.OTHER):
            self._compare(images)
        elif self.verify:
            self.damage.append("there is no hash tree, and so nothing is proven: it is a guest's disk")
        found = Inspection(
            self.kind, self.disk.size, partitions, images, self._first_boot(), damage=self.damage
        )
        if self.kind is Kind.IMAGE and self.metadata and self.metadata.config_key:
            found.config_signers = self.metadata.config_signers
            found.config_bound = self.metadata.config_bound
        return found

    def _compare(self, images: Sequence[BootImage]) -> None:
        """With the metadata; a guest's root has grown, and its hosts are the owner's."""
        if not self.metadata:
            return
        if not disk_image.is_laid_out_as(self.disk, self.metadata):
            self.damage.append("the partitions are not those that the metadata say")
        hosts = {each.hash for each in self.metadata.host_keys}
        if any({key.hash for key in each.host_keys} != hosts for each in images):
            self.damage.append("a boot image is for other hosts than the metadata say")

    def _first_boot(self) -> str:
        if self.kind is not Kind.IMAGE or self.damage:
            return ""
        options = self.metadata.boot_entry.options if self.metadata else ""
        try:
            headroom = parameters.value(options, parameters.HEADROOM)
            boot, root = (plan.read_source(self.raw, self.disk, name) for name in VOLUMES)
            plan.lay_out(self.disk, boot, root, headroom * plan.MIB, record_key="0" * 64)
        except Refusal as refusal:
            return str(refusal)
        return "has the room it needs"

    @cached_property
    def kind(self) -> Kind:
        if self.disk.missing(LASTING):
            return Kind.OTHER
        if self.disk.has_hash_trees:
            return Kind.IMAGE
        encrypted = all(self._starts_with(self.disk.partitions[name], _LUKS) for name in VOLUMES)
        return Kind.GUEST if encrypted and not self._has_progress_record() else Kind.BEGUN

    def _has_progress_record(self) -> bool:
        """Whether first boot has not removed it yet, as far as the file system says without its journal."""
        part = self.disk.partitions["se"]
        with tempfile.TemporaryDirectory() as directory:
            se = Path(directory, "se")
            outputs.take(self.raw, part.start, part.size, se)
            names = self._told(partial(volumes.names, se))
        return progress_record.NAME in (names or [])

    def _part(self, part: Partition) -> Part:
        content, verity = "", None
        if part.name in VOLUMES and self.disk.has_hash_trees:
            source = self._told(partial(plan.read_source, self.raw, self.disk, part.name))
            if source:
                content = f"{source.file_system.type}, {source.size >> 20} MiB"
                verity = self._verity(part, source.size)
        elif part.name in HASH_TREES.values():
            content = "hash tree"
        elif part.name in VOLUMES:
            content = "encrypted" if self._starts_with(part, _LUKS) else "not yet encrypted"
        elif found := self._told(partial(filesystem.identify, self.raw, part.name, part.start)):
            content = found.type
        return Part(part.number, part.name, part.start, part.size, content, verity)

    def _verity(self, part: Partition, size: int) -> Verity:
        volume = self.metadata.volumes.get(part.name) if self.metadata else None
        if not volume:
            return Verity.NO_HASH
        if not self.verify:
            return Verity.NOT_READ
        tree = self.disk.partitions[HASH_TREES[part.name]]
        with tempfile.TemporaryDirectory() as directory:
            files = (Path(directory, "data"), Path(directory, "tree"))
            outputs.take(self.raw, part.start, size, files[0])
            outputs.take(self.raw, tree.start, tree.size, files[1])
            if size == volume.size and volumes.verify(
                self.context, *files, name=part.name, root_hash=volume.root_hash
            ):
                return Verity.PROVEN
        self.damage.append(f"the content of {part.name} is not what its root hash proves")
        return Verity.DAMAGED

    def _starts_with(self, part: Partition, magic: bytes) -> bool:
        return self._read(part.start, len(magic)) == magic

    def _read(self, at: int, size: int) -> bytes:
        with self.raw.open("rb", buffering=0) as stream:
            return os.pread(stream.fileno(), size, at)

    def _boot_images(self) -> Iterator[BootImage]:
        """Those that the boot map offers."""
        programs = self._programs()
        numbers = [number for number in programs if number] or [0]
        if programs[0] not in [programs[number] for number in numbers]:
            self.damage.append("what starts if nobody chooses is none of those that the boot map offers")
            numbers = [0, *numbers]
        for number in numbers:
            with self._content(programs[number]) as content:
                yield _boot_image(
                    content,
                    content.seek(0, io.SEEK_END),
                    self.names,
                    number=number if len(numbers) > 1 else number or 1,
                    default=programs[number] == programs[0],
                )

    def _programs(self) -> dict[int, boot_map.Program]:
        block = self.disk.block_size
        found = boot_map.read(self._read, blocks=self.disk.size // block, block_size=block)
        if 0 not in found:
            raise boot_map.UnsoundBootMap("its boot map says not what starts if nobody chooses")
        return found

    def _content(self, program: boot_map.Program) -> BinaryIO:
        return io.BufferedReader(boot_map.Content(self._read, program.image, self.disk.block_size))

    def _told(self, look: Callable[[], T]) -> T | None:
        """What ``look`` finds; if it refuses, that is damage."""
        try:
            return look()
        except FirstbootError as error:
            self.damage.append(error.message)
            return None
