"""A host that tampers: the disk of one first boot at chosen moments, changed, and how a guest ends on it.

The disks come from a record of the first boot (see harness.powercut), so that preparing one costs a copy.
"""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
import tempfile
import zlib
from base64 import b64decode
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import console, debian, firstboot, raw_disk, se_ready, started, ultravisor
from harness.guest import Disk, Guest, GuestError, Network, Saved
from harness.powercut import Loss
from harness.raw_disk import BLOCK
from harness.recorded import PARTS, ROOT, FirstBoot, Manifest
from harness.se_ready import SMALL
from harness.started import Started
from secex_firstboot.sdboot import boot_record
from secex_firstboot.storage import encrypted
from secex_firstboot.storage.cryptsetup import DATA_OFFSET
from secex_firstboot.storage.integrity import Layout
from secex_firstboot.storage.plan import Plan
from secex_firstboot.storage.progress_record import ProgressRecord

SECTOR = 512
BOUND = 900.0  # seconds; for a guest that hangs, measures nothing
START_BOUND = 40.0  # seconds until a guest that starts nothing is left; others show Linux after three


class Moment(StrEnum):
    """When the host gets hold of the disk."""

    IMAGE = "image"
    COMMITTED = "committed"  # just after the commit point
    BOOT_HALF = "boot half encrypted"
    ROOT_HALF = "root half encrypted"
    ROOT_TO_ERASE = "root copied, the image's rest not erased"
    ROOT_TO_GROW = "root zeroed, not grown"
    ROOT_COPIED = "root copied"  # and not yet noted as finished
    MERGING = "Ignition's files half taken over"
    BEFORE_SEAL = "before seal"
    PROVISIONED = "provisioned"


@dataclass(frozen=True)
class Behind:
    """The record that has ``words`` is on the disk, and nothing was written to partition root since."""

    words: bytes


# The step during which the power goes, and at what share of its writes; or what is just not written yet.
_CUTS: dict[Moment, tuple[str, float] | bytes | Behind] = {
    Moment.COMMITTED: ("personalise", 1.0),
    Moment.BOOT_HALF: ("encrypt boot", 0.5),
    # Files lie on both sides of it: most of the copied blocks are free ones.
    Moment.ROOT_HALF: b'"root":{"progress":"placed","copied_from":%d' % (32 << 20),
    Moment.ROOT_TO_ERASE: Behind(b'"root":{"progress":"copied"'),
    Moment.ROOT_TO_GROW: Behind(b'"root":{"progress":"zeroed"'),
    Moment.ROOT_COPIED: b'"root":{"progress":"finished"',
    Moment.MERGING: ("files", 0.5),
    Moment.BEFORE_SEAL: ("seal", 0.0),
}


# What a guest says when it is kept for others to go on from, and has not read yet what the cases change.
_KEPT_AT = {
    Moment.ROOT_HALF: r"Starting .*secex-firstboot\.service",
    Moment.PROVISIONED: started.BEFORE_UDEV,
}


@dataclass(frozen=True)
class Target:
    """A recorded first boot, the raw disk at each moment of it, and guests to go on from."""

    first_boot: FirstBoot
    disks: dict[Moment, Path]
    kept: dict[Moment, Started]

    @property
    def tree(self) -> Path:
        return debian.build()

    def host_key(self, moment: Moment) -> ultravisor.HostKey:
        """Of a host that starts the disk's sdboot."""
        return self.first_boot.where.hosts["universal" if moment is Moment.IMAGE else "customer-1"].key

    def sdboot(self, moment: Moment) -> bytes:
        with tempfile.TemporaryDirectory() as work:
            output = Path(work, "sdboot")
            raw_disk.debugfs(self.disks[moment], "se", f"dump /{boot_record.IMAGE} {output}")
            return output.read_bytes()

    def overlay(self, moment: Moment) -> dict[str, bytes]:
        """What the ramdisk of the sdboot holds beyond the initramfs of /boot."""
        ramdisk = ultravisor.unpack(self.sdboot(moment), self.host_key(moment)).ramdisk
        with tempfile.TemporaryDirectory() as work:
            return firstboot.overlay_files(ramdisk, debian.initramfs(self.tree), Path(work))

    @cached_property
    def plan(self) -> Plan:
        return Plan.model_validate_json(self.overlay(Moment.COMMITTED)["/etc/secex-firstboot/plan.json"])


def prepare(directory: Path, first_boot: FirstBoot) -> Target:
    """Make the disks, and start the guests that others go on from."""
    disks = _disks(directory, first_boot)
    kept = {}
    for moment, says in _KEPT_AT.items():
        disk = disks[moment]
        system = Disk(disk, "system", format="raw", snapshot=True)
        starting = first_boot.start(disk, directory / f"{moment}.log", Network(), system)
        kept[moment] = started.keep(disk, starting, directory / f"kept {moment}", says)
    return Target(first_boot, disks, kept)


def _disks(directory: Path, first_boot: FirstBoot) -> dict[Moment, Path]:
    recording, events = first_boot.recording, first_boot.events
    disks = {Moment.IMAGE: recording.before}
    for moment in Moment:
        disk = disks.setdefault(moment, directory / f"{moment.replace(' ', '-')}.raw")
        if moment is Moment.IMAGE:
            continue
        recording.cut(events[: _cut_at(first_boot, moment)], disk, loss=Loss.NOTHING, seed=0)
        raw_disk.replay_journal(disk, "se")
    return disks


def _cut_at(first_boot: FirstBoot, moment: Moment) -> int:
    cut = _CUTS.get(moment)
    recording, events = first_boot.recording, first_boot.events
    if isinstance(cut, bytes):
        return recording.first_write_of(cut, events)
    if isinstance(cut, Behind):
        noted = recording.first_write_of(cut.words, events)
        root = raw_disk.partition_start(recording.before, "root")
        return next(at for at in range(noted, len(events)) if events[at].position >= root)
    if cut:
        begin, end = first_boot.spans[cut[0]]
        return begin + round(cut[1] * (end - begin))
    return len(events)


def what_differs(first_boot: FirstBoot, found: Manifest) -> list[str]:
    """Paths that are not as first boot left them. At later boots /boot is mounted after the initramfs."""
    goes_on = "./boot/loader" in found
    wrong = firstboot.differences(first_boot.provisioned, found, PARTS if goes_on else ROOT)
    return [path for path in wrong["unexplained"] + wrong["Ignition"] if path != firstboot.HAS_THE_TIME]


# --- how it ends -------------------------------------------------------------------------------------------


class End(StrEnum):
    NO_START = "nothing was started"
    ULTRAVISOR = "refused by the ultravisor"
    REFUSED = "refused in the guest"
    CORRECT = "correct"
    LINUX = "LINUX FROM A CHANGED IMAGE"
    CHANGED = "CHANGED CONTENT"


@dataclass(frozen=True)
class Ending:
    end: End
    detail: str = ""
    reason: ultravisor.Reason | None = None

    def __str__(self) -> str:
        return f"{self.end}: {self.detail}" if self.detail else self.end


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def watch(target: Target, guest: Guest, *, linux: bool) -> Ending:
    """Wait until it is known how this ends; unless ``linux``, a kernel that starts is an end, too."""
    try:
        if not guest.saved:
            guest.wait_for(console.LINUX, BOUND if linux else START_BOUND)
            if not linux:
                return Ending(End.LINUX)
        found = guest.wait_for(f"{console.MANIFEST_BEGINS}|{console.NAMES_ITS_REFUSAL}", BOUND)
    except GuestError:
        return _ended(guest)
    if re.fullmatch(console.MANIFEST_BEGINS, found[0]):
        return _compare(target, guest)
    return Ending(End.REFUSED, _why(guest, next(filter(None, found.groupdict().values()))))


def _compare(target: Target, guest: Guest) -> Ending:
    text = guest.wait_for(console.MANIFEST, BOUND)[1]
    wrong = what_differs(
        target.first_boot, firstboot.load_manifest(zlib.decompress(b64decode(text)).decode())
    )
    return Ending(End.CHANGED, " ".join(wrong)) if wrong else Ending(End.CORRECT)


def _why(guest: Guest, words: str) -> str:
    """The agent's line, or what the emergency's explanation says."""
    if not words.startswith(console.CANNOT_START):
        return _COLOURS.sub("", words).strip()
    found = guest.wait_for(console.WHAT_AND_WHY, BOUND)
    return "; ".join(filter(None, found.groups()))


def _ended(guest: Guest) -> Ending:
    if refusal := guest.refusal:
        detail = f"{refusal.reason.name} {refusal.rc:#06x}/{refusal.rrc:#06x}"
        return Ending(End.ULTRAVISOR, detail, refusal.reason)
    if guest.saved or console.LINUX in guest.console:
        if guest.end is None:
            raise guest.error("neither started nor gave up")
        return Ending(End.REFUSED, guest.end)
    words = " ".join(guest.console.split())
    return Ending(End.NO_START, f"{guest.end or 'hangs'}: {words[-60:]}")


def in_boot_map(disk: Path, image: str) -> int:
    """A byte of the number of an image's first block, where the boot map's block pointers have it."""
    number = struct.pack(">Q", raw_disk.address(disk, "se", f"/{image}", 0) // SECTOR)
    start = raw_disk.partition_start(disk, "se")
    with disk.open("rb") as stream:
        for block in raw_disk.blocks(disk, "se", f"/{boot_record.BOOT_MAP}"):
            stream.seek(start + block * BLOCK)
            if (found := stream.read(BLOCK).find(number)) >= 0:
                return start + block * BLOCK + found + 6
    raise AssertionError(f"the boot map does not name the first block of {image}")


# --- what the host does ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """Works on ``disk`` and ``config_disk``, copies of its own; ``others`` are further disks to attach."""

    target: Target
    moment: Moment
    directory: Path
    others: list[Disk] = field(default_factory=list)

    @property
    def saved(self) -> Saved | None:
        """A guest to go on from, unless what it has read or what is attached to it is another."""
        config_disk = self.target.first_boot.where.config_disk
        if self.others or self.config_disk.stat().st_size != config_disk.stat().st_size:
            return None
        kept = self.target.kept
        furthest = [kept[self.moment]] if self.moment in kept else []
        return started.find(self.disk, [*furthest, *self.target.first_boot.kept])

    @property
    def disk(self) -> Path:
        return self.directory / "disk.raw"

    @property
    def config_disk(self) -> Path:
        return self.directory / "config.asc"

    # --- bytes ---

    def flip(self, position: int, bit: int = 1) -> None:
        raw_disk.flip(self.disk, position, bit)

    def read(self, position: int, size: int) -> bytes:
        with self.disk.open("rb") as stream:
            stream.seek(position)
            return stream.read(size)

    def write(self, position: int, content: bytes) -> None:
        with self.disk.open("r+b") as stream:
            stream.seek(position)
            stream.write(content)

    # --- partitions, files on se ---

    def partition(self, name: str) -> int:
        return raw_disk.partition_start(self.disk, name)

    def se_file(self, name: str, offset: int) -> int:
        """Where byte ``offset`` of a file on ``se`` lies on the disk."""
        return raw_disk.address(self.disk, "se", f"/{name}", offset)

    def on_se(self, *commands: str) -> None:
        """Change the file system ``se``, with debugfs(8)."""
        raw_disk.debugfs(self.disk, "se", *commands, write=True)

    def put_back_se(self, moment: Moment, *, table: bool = False) -> None:
        """Partition ``se`` and the boot record as they were; with ``table`` also the partition table."""
        head = se_ready.MIB if table else SECTOR
        start, size = self.partition("se"), SMALL.se_size * se_ready.MIB
        with self.target.disks[moment].open("rb") as old:
            for position, length in ((0, head), (start, size)):
                old.seek(position)
                self.write(position, old.read(length))

    def rewrite_table(self, change: dict[str, str]) -> None:
        """Replace texts, all at once, in what ``sfdisk --dump`` says of the disk."""
        dump = subprocess.run(["sfdisk", "--dump", self.disk], check=True, capture_output=True, text=True)
        pattern = "|".join(map(re.escape, change))
        script = re.sub(pattern, lambda found: change[found[0]], dump.stdout)
        subprocess.run(
            ["sfdisk", "--quiet", "--no-reread", "--force", self.disk], input=script, text=True, check=True
        )

    # --- the volumes ---

    def flip_sdboot(self, part: str, bit: int = 1) -> None:
        content = self.target.sdboot(self.moment)
        at = sdboot_parts(content, self.target.host_key(self.moment))[part]
        self.flip(self.se_file(boot_record.IMAGE, at), bit)

    def in_volume(self, name: str, place: str, offset: int = 0) -> int:
        """Where a place of the encrypted volume lies on the disk; ``offset`` is a byte of the volume."""
        layout = layout_of(self.target.plan, name)
        places = {
            "header": 0,
            "superblock": layout.data_offset,
            "journal": layout.data_offset + BLOCK,
            "tags": layout.tags_address(offset)
            + offset % layout.interleave // layout.sector_size * layout.tag_size,
            "data": layout.data_address(offset),
        }
        return self.partition(name) + places[place]

    @property
    def copied_from(self) -> int:
        """From this byte of root on, the target has it; what is below is still to be read."""
        content = self.read(self.se_file("firstboot-record", 0), BLOCK)
        return ProgressRecord.model_validate_json(content[32:].split(b"\0", 1)[0]).root.copied_from or 0

    def used(self, name: str, low: int = 0, high: int | None = None) -> int:
        """A byte of the source, between two others, that is some file's content."""
        part = getattr(self.target.plan, name)
        image = self.target.disks[Moment.IMAGE]
        for path in _large_files(self.target.first_boot.provisioned, name):
            for block in raw_disk.blocks(image, name, path):
                if low <= block * BLOCK < (high or part.source_size):
                    return block * BLOCK + 100
        raise AssertionError("no file lies there")


def _large_files(manifest: dict[str, dict[str, Any]], name: str) -> list[str]:
    size = {
        path: entry["size"]
        for path, entry in manifest.items()
        if "size" in entry and path.startswith("./boot/") == (name == "boot")
    }
    by_size = sorted(size, key=lambda path: -size[path])[:200]
    return [path.removeprefix("./boot" if name == "boot" else ".") for path in by_size]


def layout_of(plan: Plan, name: str) -> Layout:
    sector_size = (plan.boot if name == "boot" else plan.root).sector_size
    return Layout.planned(
        sector_size=sector_size, journal_bytes=encrypted.JOURNAL_SIZE, data_offset=DATA_OFFSET
    )


def sdboot_parts(content: bytes, key: ultravisor.HostKey) -> dict[str, int]:
    """Where each part of an sdboot lies in the file; see the tables of secex_firstboot.sdboot.image."""
    place = ultravisor.find_place(bytearray(content))
    kernel, ramdisk, command_line, stage3b = ultravisor.start(bytearray(content), [key]).components
    ipib, header = place.ipib_address, place.header_address
    (slots,) = struct.unpack_from(">Q", content, header + 32)
    slot = content.index(ultravisor.host_key_hash(key), header + 416)
    area = header + 416 + 80 * slots
    entry = ipib + 136  # tweak prefix, address, length of the kernel
    return {
        "stage3a: entry": ultravisor.ENTRY_ADDRESS,
        "stage3a: arguments": place.arguments_address + 7,
        "IPIB: length": ipib + 2,
        "IPIB: type": ipib + 12,
        "IPIB: tweak": entry + 7,
        "IPIB: address": entry + 8 + 6,
        "IPIB: size": entry + 16 + 6,
        "header: magic": header,
        "header: version": header + 11,
        "header: size": header + 15,
        "header: IV": header + 16,
        "header: key slots": header + 39,
        "header: encrypted area size": header + 47,
        "header: pages": header + 55,
        "header: flag 34": header + 56 + 34 // 8,
        "header: flag 0": header + 56,
        "header: customer key": header + 64 + 79,
        "header: page digest": header + 224,
        "header: address digest": header + 288,
        "header: tweak digest": header + 352,
        "key slot: hash": slot,
        "key slot: wrapped key": slot + 32,
        "key slot: tag": slot + 64,
        "encrypted area": area,
        "tag": header + place.header_size - 1,
        "kernel": kernel.address + kernel.length // 2,
        "command line": command_line.address,
        "ramdisk": ramdisk.address + ramdisk.length // 2,
        "stage3b": stage3b.address,
    }


def rewrite_luks_header(header: bytes, old: bytes, new: bytes) -> bytes:
    """A LUKS2 header (both copies) with other metadata and right checksums, as anybody can make it.

    LUKS2 On-Disk Format Specification 1.1, 2.1: size at 8, checksum (SHA-256) at 448, JSON from 4096 on.
    """
    assert len(old) == len(new)
    (size,) = struct.unpack_from(">Q", header, 8)
    copies = []
    for at in (0, size):
        copy = bytearray(header[at : at + size].replace(old, new))
        copy[448:512] = bytes(64)
        copy[448:480] = hashlib.sha256(copy).digest()
        copies.append(bytes(copy))
    return b"".join(copies) + header[2 * size :]
