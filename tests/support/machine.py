"""The machine that the steps look at. Disks and mappings are stand-ins, files are real."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context, Status, Step
from secex_firstboot.basic.errors import DeviceMissing
from secex_firstboot.contract import paths
from secex_firstboot.contract.partitions import LASTING, NUMBERS
from secex_firstboot.ignition import ownership
from secex_firstboot.storage import devicemapper, disk, filesystem, partition_table
from secex_firstboot.storage.devicemapper import Target
from secex_firstboot.storage.disk import Disk, Partition
from secex_firstboot.storage.filesystem import FileSystem
from secex_firstboot.storage.plan import MIB, Plan, Source, lay_out
from support import elsewhere

HASHES = {"boot": "b0" * 32, "root": "0f" * 32}
ARGUMENTS = f"bootfs.roothash={HASHES['boot']} rootfs.roothash={HASHES['root']}"
FIRST_BOOT = (
    "root=/dev/mapper/root init_on_free=1 systemd.gpt_auto=0 fsck.mode=skip ignition.firstboot " + ARGUMENTS
)
SOURCES = {"boot": 32 * MIB, "root": 64 * MIB}
CONFIG = '{"ignition": {"version": "3.3.0"}, "storage": {"files": [%s]}}'
HOST_KEY = '{"path": "/etc/se-hostkeys/ibm-z-hostkey-%s", "contents": {"source": "data:,"}}'


@dataclass
class Machine:
    """The ground the steps look at: everything that is not a file."""

    root: Path
    disks: list[Disk]
    serials: dict[str, Path] = field(default_factory=dict)
    mounts: dict[Path, str] = field(default_factory=dict)
    tables: dict[str, list[Target]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=lambda: dict(SOURCES))
    table_is_sound: bool = True

    @property
    def disk(self) -> Disk:
        return self.disks[0]

    def where(self, name: str) -> Path:
        return {"root": places.SYSROOT, "boot": places.SYSROOT / "boot"}[name]

    def map(self, name: str, table: str, uuid: str = "") -> str:
        """Returns the number; ``table`` without start and size."""
        type, *arguments = table.split()
        self.tables[name] = [Target(type, arguments)]
        minor = list(self.tables).index(name)
        for key, content in {"dev": f"253:{minor}", "dm/name": name, "dm/uuid": uuid}.items():
            put(devicemapper.BLOCK / f"dm-{minor}" / key, f"{content}\n")
        return f"253:{minor}"

    def number(self, device: Path) -> str:
        return f"252:{device.name.removeprefix('vda')}"

    def find_by_serial(self, serial: str) -> Path:
        if serial not in self.serials:
            raise DeviceMissing("SX-TEST-01", f"no disk has the serial {serial}", f"serial={serial}")
        return self.serials[serial]

    def open_verity(self, *names: str, root_hash: str = "") -> None:
        for name in names or ("boot", "root"):
            data, tree = (self.disk.partitions[each].device for each in (name, f"{name}hash"))
            devices = f"{self.number(data)} {self.number(tree)}"
            kind = f"4096 4096 {self.sizes[name] // 4096} 1 sha256"
            table = f"verity 1 {devices} {kind} {root_hash or HASHES[name]} 5a17"
            self.map(f"{name}_verity", table, f"CRYPT-VERITY-0e4a-{name}_verity")

    def open_encrypted(self, name: str) -> str:
        """As first boot does it; returns the number of the mapping."""
        partition = self.number(self.disk.partitions[name].device)
        below = self.map(f"{name}_dif", f"integrity {partition} 32768 32 J 7 journal_sectors:1")
        table = (
            f"crypt capi:authenc(hmac(sha256),xts(aes))-plain64 :96:logon:x 0 {below} 0 1 integrity:32:aead"
        )
        return self.map(name, table, f"CRYPT-LUKS2-{UUIDS[name].replace('-', '')}-{name}")

    def plan(self) -> Plan:
        boot, root = (
            Source(root_hash=HASHES[name], size=size, file_system=FileSystem("xfs", size, 4096))
            for name, size in self.sizes.items()
        )
        return lay_out(self.disk, boot, root, 0, "00" * 32)

    def commit(self) -> None:
        put(places.PLAN, self.plan().model_dump_json())
        put(places.HOST_KEYS / "ibm-z-hostkey-a", "document")
        for name in ("boot", "root"):
            put(places.STATE / "volumes" / name / "key", f"key of {name}")
            put(places.STATE / "volumes" / name / "header", header(name))
        put(places.IGNITION_USER_CONFIG, CONFIG % "")
        put(places.COMMITTED)

    def partition(self) -> None:
        """As step partition does it, but for the hash trees."""
        plan, parts = Plan.load(places.PLAN), dict(self.disk.partitions)
        for each in plan.volumes:
            place = each.partition
            parts[each.name] = replace(parts[each.name], start=place.offset, size=place.size)
        self.disks[0] = replace(self.disk, partitions=parts)

    def provision(self) -> None:
        for name in ("boot", "root"):
            put(paths.LUKS_KEYS / name, f"{header(name)}key of {name}")
        self.disks[0] = without_hash_trees(self.disk)


UUIDS = {name: f"0e4a2f11-6a0c-4a6e-9d1b-2b6f3a1d90d{number}" for number, name in enumerate(SOURCES)}


def header(name: str) -> str:
    """As far as it is read here: the UUID, where a LUKS2 header has it."""
    return f"header of {name}".ljust(168, "\0") + UUIDS[name].ljust(40, "\0")


NO_SWAP = "Filename Type Size Used Priority\n"  # proc(5): a line of headings


def put(path: Path, content: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def partitions(directory: Path, boot: int = 96) -> dict[str, Partition]:
    """``boot`` in MiB."""
    sizes = {"se": 8, "boot": boot, "root": 64, "boothash": 1, "roothash": 1}
    numbers = NUMBERS
    found, at = {}, MIB
    for name, mib in sizes.items():
        number = numbers[name]
        device = directory / f"vda{number}"
        uuid = f"00000000-0000-4000-8000-00000000000{number}"
        found[name] = Partition(number, name, device, uuid, at, mib * MIB)
        at += mib * MIB
    return found


def without_hash_trees(found: Disk) -> Disk:
    return replace(found, partitions={name: found.partitions[name] for name in LASTING})


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """An SE-ready image with room, in a Secure Execution guest."""
    elsewhere.move(monkeypatch, tmp_path)
    mapper = tmp_path / "dev" / "mapper"
    mapper.mkdir(parents=True)
    put(places.SECURE_EXECUTION_GUEST, "1\n")
    put(places.SWAPS, NO_SWAP)
    found = Machine(tmp_path, [Disk(tmp_path / "dev" / "vda", 400 * MIB, 512, partitions(tmp_path / "dev"))])
    monkeypatch.setattr(partition_table, "is_sound", lambda disk, block_size: found.table_is_sound)

    monkeypatch.setattr(devicemapper, "MAPPER", mapper)
    monkeypatch.setattr(devicemapper, "BLOCK", tmp_path / "sys/class/block")
    monkeypatch.setattr(devicemapper, "table", lambda name: found.tables[name])
    monkeypatch.setattr(devicemapper, "number_of", lambda device: found.number(device))
    monkeypatch.setattr(disk, "disks", lambda: iter(found.disks))
    monkeypatch.setattr(disk, "find_by_serial", found.find_by_serial)

    def mounted_on(where: Path) -> list[str]:
        return [found.mounts[where]] if where in found.mounts else []

    monkeypatch.setattr(filesystem, "mounted_numbers", mounted_on)
    monkeypatch.setattr(filesystem, "mount_sources", mounted_on)
    monkeypatch.setattr(filesystem, "mount", lambda *_, **__: None)
    monkeypatch.setattr(filesystem, "unmount", lambda where: None)
    monkeypatch.setattr(ownership, "device_numbers", lambda disk: frozenset())
    monkeypatch.setattr(filesystem, "identify", lambda device, name: FileSystem("xfs", SOURCES[name], 4096))
    return found


def snapshot(directory: Path) -> dict[Path, tuple[object, ...]]:
    found: dict[Path, tuple[object, ...]] = {}
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[path] = (status.st_mode, status.st_mtime_ns, status.st_ino, content)
    return found


def observe(machine: Machine, step: Step, command_line: str = FIRST_BOOT) -> Status:
    """What the step says; that it changed nothing is checked each time."""
    before = snapshot(machine.root)
    try:
        return step.observe(Context(command_line))
    finally:
        assert snapshot(machine.root) == before
