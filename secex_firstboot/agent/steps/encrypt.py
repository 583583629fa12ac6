"""encrypt boot, encrypt root: copy a volume backwards into its encrypted successor, in place.

The order: save what the new header and the growing copy would overwrite; place header and journal; copy, from
the last block to the first; erase what is left of the image around the copy; zero, through the volume, what
file systems and probes read beyond it; grow. The record on ``se`` says after each of these, and after each
chunk, what is on stable storage, so that a start after a crash goes on there.

Until the volume has its final name nobody but this step looks at it. So no probe reads a sector that was not
written yet, and a good first boot has no integrity error in its log.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal

from secex_firstboot.agent import places, volumes
from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done, ready, waiting
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import exists, size_of, sync
from secex_firstboot.contract import paths
from secex_firstboot.contract.partitions import NEW, OLD, TARGET, TREE, VERITY
from secex_firstboot.roots import identity, kinds, overlay
from secex_firstboot.storage import (
    cryptsetup,
    devicemapper,
    disk,
    encrypted,
    erase,
    filesystem,
    progress_record,
    verity,
)
from secex_firstboot.storage.backward_copy import copy_backwards
from secex_firstboot.storage.devicemapper import Piece
from secex_firstboot.storage.mounted import Mounted
from secex_firstboot.storage.plan import MIB, Plan, VolumePlan
from secex_firstboot.storage.progress_record import Progress, ProgressRecord

_GROW_STEP = 16 * MIB  # a multiple of every block size of ext4 and xfs


class Encrypt(Step):
    stage = Stage.PROVISION
    destructive = True
    volume: Literal["boot", "root"]

    def observe(self, context: Context) -> Status:
        if context.phase not in (Phase.COMMITTED, Phase.PROVISIONED):
            return waiting("the commit point comes first")
        if volumes.is_open(context, self.volume):
            return done(f"/dev/mapper/{self.volume}: dm-crypt on dm-integrity")
        if context.phase is Phase.PROVISIONED:
            return waiting(f"/dev/mapper/{self.volume} is not the encrypted volume")
        mib = _volume(Plan.load(places.PLAN), self.volume).source_size >> 20
        return ready(f"encrypt {mib} MiB of {self.volume}, or go on where it was cut, and open the volume")

    def perform(self, context: Context) -> None:
        plan = Plan.load(places.PLAN)
        with filesystem.mounted(disk.find_disk().partitions["se"].device, places.SE_MOUNT, type="ext4") as se:
            Encryption(context, plan, _volume(plan, self.volume), se).run()


class EncryptBoot(Encrypt):
    name = "encrypt boot"
    summary = "re-encrypt boot in place"
    volume = "boot"


class EncryptRoot(Encrypt):
    name = "encrypt root"
    summary = "re-encrypt root in place"
    volume = "root"


def _volume(plan: Plan, name: str) -> VolumePlan:
    return plan.boot if name == "boot" else plan.root


class Encryption:
    """One run of an encrypt step; the record says which of its parts are left."""

    def __init__(self, context: Context, plan: Plan, volume_plan: VolumePlan, se: Path) -> None:
        self.context = context
        self.plan = plan
        self.volume_plan = volume_plan
        self.se = se
        self.secrets = volumes.secrets_of(volume_plan.name)
        partitions = disk.find_disk().partitions
        self.partition = partitions[volume_plan.name].device
        self.root_partition = partitions["root"].device
        self.key = bytes.fromhex(plan.record_key)
        self.progress_record = progress_record.load(se, self.key)

    @property
    def volume(self) -> str:
        return self.volume_plan.name

    def run(self) -> None:
        self._close_leftovers()
        parts: dict[Progress, Callable[[], None]] = {
            Progress.UNTOUCHED: self.save,
            Progress.SAVED: self.place,
            Progress.PLACED: self.copy,
            Progress.COPIED: self.zero,
            Progress.ZEROED: self.grow,
        }
        if self.volume == "root" and self.progress_record.root.is_complete:
            self._settle_files(self._opened())
            self._close_leftovers()
        while (progress := self.progress_record.of(self.volume).progress) in parts:
            parts[progress]()
        self._opened()

    def save(self) -> None:
        """Copy to the end of the disk what the target will overwrite too early.

        That is the head of the source, a hash tree, and of root what boot grows over.
        """
        head, tree, shift = self.volume_plan.saved_head, self.volume_plan.tree, self.volume_plan.shift
        pieces = [(self.partition, 0, head.offset + shift, head.size - shift)]
        if self.volume_plan.saved_tree != tree:
            pieces.append((self.root_partition, tree.offset, self.volume_plan.saved_tree.offset, tree.size))
        if self.volume == "boot":
            root = self.plan.root
            start = size_of(self.partition) - root.shift
            pieces.append((self.partition, start, root.saved_head.offset, root.shift))
        total = sum(size for *_, size in pieces)
        with self.root_partition.open("r+b", buffering=0) as target:
            written = 0
            for source, start, offset, size in pieces:
                for at, content in _read(source, start, size):
                    os.pwrite(target.fileno(), content, offset + at)
                    written += len(content)
                    self.context.progress(f"save the start of {self.volume}", written, total)
            os.fsync(target.fileno())
        self._note(Progress.SAVED)

    def place(self) -> None:
        encrypted.place(self.secrets, self.partition)
        self._note(Progress.PLACED, self.volume_plan.source_size)

    def copy(self) -> None:
        # The target first: libcryptsetup wants its device for itself, device-mapper's targets share.
        with self._target() as target, self._source() as source:
            copy_backwards(
                source,
                target,
                self.volume_plan.source_size,
                start_from=self.progress_record.of(self.volume).copied_from,
                on_chunk_durable=lambda offset: self._note(Progress.PLACED, offset),
                progress=self._progress(f"encrypt {self.volume}"),
            )
        self._note(Progress.COPIED)

    def zero(self) -> None:
        """Erase what is left of the image; then write zeros, through the volume, to its tail and to what the
        file system will grow into. In this order: something may be left where the zeros go.
        """
        name, source_size = self.volume, self.volume_plan.source_size
        for offset, size in self._remains():
            erase.erase(self.partition, offset, size, self._progress(f"erase what is left of {name}"))
        with self._target() as device:
            size = size_of(device)
            grown = self._grown_size(size)
            tail = max(source_size, size - encrypted.TAIL_SIZE)
            for start, end in ((source_size, grown), (max(tail, grown), size)):
                encrypted.write_zeros(device, start, end - start, self._progress(f"prepare room on {name}"))
            sync(device)
        self._note(Progress.ZEROED)

    def grow(self) -> None:
        """Mounted, by the kernel: its journal makes this whole or undone, and what it cannot read ends it."""
        device = self._opened()
        grown = self._grown_size(size_of(device))
        if self.volume_plan.file_system_size < grown:
            with self._mounted(device) as where:
                mounted = Mounted.find(where, device)
                if mounted.size() < grown:
                    mounted.grow(grown)
        if self.volume == "root" and self.plan.replace_identity:
            # Before Ignition writes there: a config may bring a machine's own.
            with self._mounted(device) as where:
                identity.remove(kinds.on(where, self.context.command_line))
        sync(device)
        self._note(Progress.FINISHED)

    def _remains(self) -> list[tuple[int, int]]:
        """(offset, size) of what is not the new volume's on the partition, and may be the image's."""
        saved: list[tuple[int, int]] = []
        end = size_of(self.partition)
        if self.volume == "root":
            end = self.plan.image_end
            saved = [(self.plan.saved.offset, self.plan.saved.size)]
        around = encrypted.surroundings(
            self.secrets,
            sector_size=self.volume_plan.sector_size,
            written=self.volume_plan.source_size,
            end=end,
        )
        return [*around, *saved]

    def _settle_files(self, device: Path) -> None:
        """Ignition may have been at work on the encrypted root when the power failed.

        Or the host has put back a record from before: then nothing that is left to do by that must be done to
        a root that has grown, or that Ignition has written to.
        """
        with self._mounted(device) as where:
            refuse_sealed(where)
            self._refuse_older_record(where, Mounted.find(where, device).size())
            if overlay.settle(kinds.on(where, self.context.command_line)):
                places.FILES_FINISHED.touch()

    def _refuse_older_record(self, where: Path, size: int) -> None:
        """Raise FirstbootError if root shows more than the record knows.

        That it has grown to ``size``, or that Ignition has begun to write.
        """
        progress = self.progress_record.of(self.volume).progress
        grown = size > self.volume_plan.file_system_size and progress not in (
            Progress.ZEROED,
            Progress.FINISHED,
        )
        if grown or (exists(where / overlay.TOP) and progress is not Progress.FINISHED):
            raise FirstbootError(
                "SX-STEP-06",
                "the progress record on partition se is older than what is on root",
                "the disk was changed from outside; start again from the image",
            )

    def _mounted(self, device: Path) -> AbstractContextManager[Path]:
        return filesystem.mounted(device, places.ROOT_MOUNT, type=self.volume_plan.file_system)

    def _progress(self, label: str) -> Callable[[int, int], None]:
        return lambda done, total: self.context.progress(label, done, total)

    def _opened(self) -> Path:
        """The volume under its final name, with its journal."""
        if not encrypted.is_open(self.secrets.header, self.partition, self.volume):
            encrypted.open_volume(self.secrets, self.partition, self.volume)
        return devicemapper.MAPPER / self.volume

    def _grown_size(self, volume_size: int) -> int:
        """Root's size with headroom; boot stays as it is."""
        now = self.volume_plan.file_system_size
        if self.volume == "boot":
            return now
        wanted = min(now + self.plan.headroom, volume_size - encrypted.TAIL_SIZE) // _GROW_STEP * _GROW_STEP
        return max(now, wanted)

    @contextmanager
    def _target(self) -> Iterator[Path]:
        with (
            _linear(f"{self.volume}{TARGET}", [Piece(self.partition, 0, size_of(self.partition))]) as below,
            encrypted.opened(self.secrets, below, f"{self.volume}{NEW}") as device,
        ):
            yield device

    @contextmanager
    def _source(self) -> Iterator[Path]:
        """The source as it was, made of what is saved and what is still in place, through dm-verity."""
        head, tree = self.volume_plan.saved_head, self.volume_plan.saved_tree
        start, rest = head.size - self.volume_plan.shift, self.volume_plan.source_size - head.size
        name = self.volume
        with (
            _linear(
                f"{name}{OLD}",
                [Piece(self.root_partition, head.offset, head.size), Piece(self.partition, start, rest)],
                read_only=True,
            ) as data,
            _linear(
                f"{name}{TREE}", [Piece(self.root_partition, tree.offset, tree.size)], read_only=True
            ) as hashes,
        ):
            try:
                yield verity.open_verified(data, hashes, f"{name}{VERITY}", self.volume_plan.root_hash)
            finally:
                cryptsetup.close(f"{name}{VERITY}")

    def _close_leftovers(self) -> None:
        name = self.volume
        cryptsetup.close(f"{name}{NEW}")
        cryptsetup.close(f"{name}{VERITY}")
        for leftover in (OLD, TREE, TARGET):
            devicemapper.remove(f"{name}{leftover}")
        if self.progress_record.of(name).progress is not Progress.FINISHED:
            cryptsetup.close(name)

    def _note(self, progress: Progress, copied_from: int | None = None) -> None:
        entry = self.progress_record.of(self.volume).model_copy(
            update={"progress": progress, "copied_from": copied_from}
        )
        self.progress_record = ProgressRecord(**{**dict(self.progress_record), self.volume: entry})
        progress_record.save(self.se, self.key, self.progress_record)


def refuse_sealed(volume: Path) -> None:
    """Raise FirstbootError if first boot ended on this root: then the host has put back an older sdboot."""
    if exists(paths.below(volume, paths.SEALED)):
        raise FirstbootError(
            "SX-STEP-07",
            "this system was set up before, and an older boot image was put back",
            "put back the newest sdboot and boot record, or start again from the image",
        )


@contextmanager
def _linear(name: str, pieces: list[Piece], *, read_only: bool = False) -> Iterator[Path]:
    device = devicemapper.create_linear(name, pieces, read_only=read_only)
    try:
        yield device
    finally:
        devicemapper.remove(name)


def _read(source: Path, start: int, size: int) -> Iterator[tuple[int, bytes]]:
    """(position, content) of ``size`` bytes from byte ``start``, MiB by MiB."""
    with source.open("rb", buffering=0) as stream:
        for at in range(0, size, MIB):
            yield at, os.pread(stream.fileno(), min(MIB, size - at), start + at)
