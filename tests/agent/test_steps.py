"""What each step says of what it sees. Disks and mappings are stand-ins, files are real."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from support import REPOSITORY, TEST_VECTORS, elsewhere

from secex_firstboot.agent import machine as state_machine
from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context, Phase, State, Status, Step
from secex_firstboot.agent.steps import STEPS, encrypt, hostkeys, personalise, seal
from secex_firstboot.agent.steps.config import Config
from secex_firstboot.agent.steps.encrypt import EncryptBoot, Encryption, EncryptRoot
from secex_firstboot.agent.steps.hostkeys import HostKeys
from secex_firstboot.agent.steps.mount import Mount
from secex_firstboot.agent.steps.partition import Partition as PartitionStep
from secex_firstboot.agent.steps.personalise import Personalise
from secex_firstboot.agent.steps.platform import Platform
from secex_firstboot.agent.steps.seal import Seal
from secex_firstboot.agent.steps.verity import Verity
from secex_firstboot.basic.errors import DeviceMissing, FirstbootError, Refusal
from secex_firstboot.contract import paths
from secex_firstboot.contract.partitions import LASTING, NUMBERS
from secex_firstboot.ignition import openpgp, ownership
from secex_firstboot.sdboot.boot_entry import BootEntry
from secex_firstboot.sdboot.initramfs import Directory, File
from secex_firstboot.storage import devicemapper, disk, filesystem, partition_table, progress_record
from secex_firstboot.storage.devicemapper import Target
from secex_firstboot.storage.disk import Disk, Partition
from secex_firstboot.storage.filesystem import FileSystem
from secex_firstboot.storage.plan import MIB, Plan, Source, lay_out
from secex_firstboot.storage.progress_record import Progress

NO_LOCAL_LOGIN = REPOSITORY / "dracut/no-local-login.ign"
MODULE_SETUP = REPOSITORY / "dracut/module-setup.sh"
VECTORS = TEST_VECTORS / "se-image"
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
    overlay: bool = False  # on /sysroot
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
            raise DeviceMissing(f"no disk has the serial {serial}", f"serial={serial}")
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

    def provision(self) -> None:
        put(paths.LUKS_KEYS / "root")
        for name in ("boot", "root"):
            put(paths.LUKS_KEYS / f"{name}.header", header(name))
        self.disks[0] = without_hash_trees(self.disk)


UUIDS = {name: f"0e4a2f11-6a0c-4a6e-9d1b-2b6f3a1d90d{number}" for number, name in enumerate(SOURCES)}


def header(name: str) -> str:
    """As far as it is read here: the UUID, where a LUKS2 header has it."""
    return f"header of {name}".ljust(168, "\0") + UUIDS[name].ljust(40, "\0")


NO_SWAP = "Filename Type Size Used Priority\n"  # proc(5): a line of headings


def put(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def partitions(directory: Path) -> dict[str, Partition]:
    sizes = {"se": 8, "boot": 96, "root": 64, "boothash": 1, "roothash": 1}
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
    monkeypatch.setattr(partition_table, "is_sound", lambda disk, block_size: found.table_is_sound)
    found = Machine(tmp_path, [Disk(tmp_path / "dev" / "vda", 400 * MIB, 512, partitions(tmp_path / "dev"))])

    monkeypatch.setattr(devicemapper, "MAPPER", mapper)
    monkeypatch.setattr(devicemapper, "BLOCK", tmp_path / "sys/class/block")
    monkeypatch.setattr(devicemapper, "table", lambda name: found.tables[name])
    monkeypatch.setattr(devicemapper, "number_of", lambda device: found.number(device))
    monkeypatch.setattr(disk, "disks", lambda: iter(found.disks))
    monkeypatch.setattr(disk, "find_by_serial", found.find_by_serial)

    def mounted_on(where: Path) -> list[str]:
        return [found.mounts[where]] if where in found.mounts else []

    def sources(where: Path) -> list[str]:
        return [*mounted_on(where), *(["overlay"] if found.overlay and where == places.SYSROOT else [])]

    monkeypatch.setattr(filesystem, "mounted_numbers", mounted_on)
    monkeypatch.setattr(filesystem, "mount_sources", sources)
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


# --- phases ---


def test_an_se_ready_image_is_in_its_first_phase(machine):
    assert Context(FIRST_BOOT).phase is Phase.FIRST
    assert Context("ignition.firstboot=1").phase is Phase.FIRST


@pytest.mark.parametrize("command_line", ["", "ignition.firstbootx", "x=ignition.firstboot", "quiet ro"])
def test_without_the_first_boot_argument_it_is_another_machine(machine, command_line):
    assert Context(command_line).phase is Phase.ELSEWHERE


def test_after_the_commit_point_the_command_line_does_not_matter(machine):
    put(places.COMMITTED)
    assert Context(FIRST_BOOT).phase is Phase.COMMITTED
    assert Context("").phase is Phase.COMMITTED


@pytest.mark.parametrize("below", ["etc/luks/root", "sysroot/etc/luks/root"])
def test_a_system_with_its_keys_is_provisioned(machine, below):
    put(machine.root / below)
    assert Context("").phase is Phase.PROVISIONED


def test_a_plan_that_is_still_there_is_not_done_with(machine):
    """Seal writes the keys to the system before its image boots; until then the plan counts."""
    put(places.SYSROOT / "etc/luks/root")
    put(places.COMMITTED)
    assert Context(FIRST_BOOT).phase is Phase.COMMITTED


def test_an_argument_has_the_value_after_its_first_equals_sign():
    context = Context("a=1 b c= d=x=y aa=2")
    assert [context.argument(name) for name in ("a", "b", "c", "d", "e")] == ["1", None, "", "x=y", None]


# --- platform ---


def test_a_secure_execution_guest_with_its_disk_is_the_right_platform(machine):
    assert observe(machine, Platform()).done


@pytest.mark.parametrize("content", ["0\n", "", "11", None])
def test_a_machine_that_is_no_secure_execution_guest_is_refused(machine, content):
    if content is None:
        places.SECURE_EXECUTION_GUEST.unlink()
    else:
        places.SECURE_EXECUTION_GUEST.write_text(content)
    with pytest.raises(Refusal, match="not an IBM Secure Execution guest"):
        observe(machine, Platform())


def test_swap_is_refused_as_long_as_secrets_are_in_memory(machine):
    put(places.SWAPS, f"{NO_SWAP}/dev/zram0 partition 524284 0 100\n")
    with pytest.raises(Refusal, match="swap is on in the initramfs"):
        observe(machine, Platform())
    machine.provision()
    assert observe(machine, Platform(), command_line="").done


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (FIRST_BOOT.replace("/dev/mapper/root", "LABEL=root"), "is not /dev/mapper/root"),
        (f"root=LABEL=root {FIRST_BOOT}", "is not /dev/mapper/root"),
        (FIRST_BOOT.replace("init_on_free=1", "init_on_free=0"), "no init_on_free=1"),
        (FIRST_BOOT.replace("systemd.gpt_auto=0", ""), "no systemd.gpt_auto=0"),
        (FIRST_BOOT.replace("fsck.mode=skip", "fsck.mode=auto"), "no fsck.mode=skip"),
    ],
)
def test_an_image_that_would_let_the_host_in_is_refused(machine, wrong, says):
    with pytest.raises(Refusal, match=says):
        observe(machine, Platform(), wrong)


def test_no_disk_is_refused_as_what_may_still_appear(machine):
    machine.disks.clear()
    with pytest.raises(DeviceMissing, match="no disk has the partitions of an SE-ready image"):
        observe(machine, Platform())


@pytest.mark.parametrize("name", ["boot", "root", "se"])
def test_a_missing_partition_is_refused_by_number_and_name(machine, name):
    left = {other: machine.disk.partitions[other] for other in machine.disk.partitions if other != name}
    machine.disks[0] = replace(machine.disk, partitions=left)
    with pytest.raises(Refusal, match=rf"has no partition {LASTING[name]} '{name}'"):
        observe(machine, Platform())


def test_two_disks_with_the_partitions_are_refused_and_named(machine):
    machine.disks.append(replace(machine.disk, device=Path("/dev/vdb")))
    with pytest.raises(Refusal, match=r"vda and /dev/vdb both carry"):
        observe(machine, Platform())
    machine.disks[1] = replace(machine.disks[1], partitions={"se": machine.disk.partitions["se"]})
    assert observe(machine, Platform()).done


def test_a_provisioned_disk_started_from_the_old_boot_record_is_refused(machine):
    machine.disks[0] = without_hash_trees(machine.disk)
    with pytest.raises(Refusal, match="was provisioned before"):
        observe(machine, Platform())
    put(places.COMMITTED)
    assert observe(machine, Platform()).done


# --- config ---


def test_config_is_ready_with_a_private_key_and_a_config_disk(machine):
    put(paths.PRIVATE_KEY)
    machine.serials["ignition_crypted"] = Path("/dev/vdb")
    assert observe(machine, Config()) == Status(State.READY, "decrypt the Ignition config on /dev/vdb")


def test_config_without_a_disk_is_refused(machine):
    put(paths.PRIVATE_KEY)
    with pytest.raises(DeviceMissing, match=r"serial=ignition_crypted$"):
        observe(machine, Config())


def test_a_config_that_was_refused_is_refused_again_for_the_same_reason(machine, monkeypatch):
    machine.serials["ignition_crypted"] = put(machine.root / "dev" / "vdb", "not OpenPGP")
    put(paths.PRIVATE_KEY)
    context = Context("ignition.firstboot")
    with pytest.raises(Refusal) as first:
        Config().perform(context)
    assert not paths.PRIVATE_KEY.exists()
    with pytest.raises(Refusal) as second:
        observe(machine, Config())
    assert str(second.value) == str(first.value)


def test_config_without_a_private_key_is_refused(machine):
    machine.serials["ignition_crypted"] = Path("/dev/vdb")
    with pytest.raises(Refusal, match="no private key"):
        observe(machine, Config())


def test_config_is_done_only_when_the_private_key_is_gone(machine):
    put(places.IGNITION_USER_CONFIG, "{}")
    assert observe(machine, Config()).done
    put(paths.PRIVATE_KEY)
    machine.serials["ignition_crypted"] = Path("/dev/vdb")
    assert observe(machine, Config()).state is State.READY


def test_the_private_key_is_gone_also_after_a_config_that_cannot_be_read(machine):
    put(paths.PRIVATE_KEY, "no key")
    machine.serials["ignition_crypted"] = put(machine.root / "vdb", "no message")
    with pytest.raises(FirstbootError):
        Config().perform(Context(FIRST_BOOT))
    assert not paths.PRIVATE_KEY.exists()
    assert not places.IGNITION_USER_CONFIG.exists()


@pytest.fixture
def decrypted(machine, monkeypatch):
    """Ground on which the config step can be performed; what Ignition would get in addition."""
    monkeypatch.setattr(openpgp, "decrypt", lambda message, key, work: (CONFIG % "").encode())
    machine.serials["ignition_crypted"] = put(machine.root / "vdb", "-----BEGIN PGP MESSAGE-----")
    monkeypatch.setattr(openpgp, "read_message", lambda device: b"")
    put(paths.PRIVATE_KEY)
    put(paths.NO_LOCAL_LOGIN, NO_LOCAL_LOGIN.read_text())
    return places.IGNITION_BASE_CONFIGS / "no-local-login.ign"


def test_the_config_is_merged_into_one_that_masks_local_logins(decrypted):
    Config().perform(Context(FIRST_BOOT))
    units = json.loads(decrypted.read_text())["systemd"]["units"]
    masked = {unit["name"] for unit in units if unit.get("mask")}
    assert masked >= {"getty@.service", "serial-getty@.service", "console-getty.service", "autovt@.service"}


def test_an_image_that_allows_logins_masks_none_and_says_so(decrypted):
    said = []
    Config().perform(Context(f"{FIRST_BOOT} secex.login=allowed", say=said.append))
    assert not decrypted.exists()
    assert [line for line in said if line.startswith("WARNING: secex.login=allowed")]


def test_another_value_for_logins_is_refused(machine, decrypted):
    assert observe(machine, Config()).state is State.READY
    with pytest.raises(Refusal, match=r"secex\.login=yes is not secex\.login=allowed"):
        Config().observe(Context(f"{FIRST_BOOT} secex.login=yes"))


def test_without_its_own_config_against_logins_none_is_handed_over(decrypted):
    paths.NO_LOCAL_LOGIN.unlink()
    with pytest.raises(OSError):
        Config().perform(Context(FIRST_BOOT))
    assert not places.IGNITION_USER_CONFIG.exists()


# --- hostkeys ---


def test_hostkeys_wait_for_the_merged_config(machine):
    assert observe(machine, HostKeys()).state is State.WAITING


def test_a_config_that_names_no_host_key_is_refused(machine):
    put(places.IGNITION_MERGED_CONFIG, CONFIG % '{"path": "/etc/motd"}')
    with pytest.raises(Refusal, match="names no host key"):
        observe(machine, HostKeys())


def test_hostkeys_are_done_when_every_document_is_there(machine):
    put(places.IGNITION_MERGED_CONFIG, CONFIG % f"{HOST_KEY % 'a'}, {HOST_KEY % 'b'}")
    assert observe(machine, HostKeys()).detail == "fetch ibm-z-hostkey-a, ibm-z-hostkey-b"
    put(places.HOST_KEYS / "ibm-z-hostkey-a")
    assert observe(machine, HostKeys()).state is State.READY
    put(places.HOST_KEYS / "ibm-z-hostkey-b")
    assert observe(machine, HostKeys()).done


def test_no_document_is_kept_unless_all_are_good(machine, monkeypatch):
    monkeypatch.setattr(ownership, "device_numbers", lambda disk: frozenset())
    context = Context(f"{FIRST_BOOT} secex.hostkey_verify=no")
    good = (VECTORS / "host-a.crt").read_text().replace("\n", "%0A").replace(" ", "%20")
    entry = '{"path": "/etc/se-hostkeys/ibm-z-hostkey-%s", "contents": {"source": "data:,%s"}}'
    put(places.IGNITION_MERGED_CONFIG, CONFIG % f"{entry % ('a', good)}, {entry % ('b', 'garbage')}")
    with pytest.raises(Refusal, match="ibm-z-hostkey-b"):
        HostKeys().perform(context)
    assert not places.HOST_KEYS.exists()
    put(places.IGNITION_MERGED_CONFIG, CONFIG % (entry % ("a", good)))
    HostKeys().perform(context)
    assert (places.HOST_KEYS / "ibm-z-hostkey-a").read_bytes() == (VECTORS / "host-a.crt").read_bytes()
    assert observe(machine, HostKeys()).done


# --- verity ---


def test_verity_is_ready_with_both_root_hashes_and_done_with_both_mappings(machine):
    assert observe(machine, Verity()).state is State.READY
    machine.open_verity("boot")
    assert observe(machine, Verity()).state is State.READY
    machine.open_verity()
    assert observe(machine, Verity()).done


@pytest.mark.parametrize(
    "table",
    [
        f"verity 1 252:4 252:6 4096 4096 8192 1 sha256 {'0' * 64} 5a17",
        f"verity 1 252:40 252:6 4096 4096 8192 1 sha256 {HASHES['root']} 5a17",
        f"verity 1 252:4 252:5 4096 4096 8192 1 sha256 {HASHES['root']} 5a17",
        "linear 252:4 0",
    ],
)
def test_another_mapping_of_the_name_is_not_the_verified_volume(machine, table):
    machine.open_verity()
    machine.map("root_verity", table, "CRYPT-VERITY-0e4a-root_verity")
    assert observe(machine, Verity()).state is State.READY
    assert observe(machine, Personalise()).state is State.WAITING


def test_a_verified_volume_is_known_by_its_uuid(machine):
    machine.open_verity()
    (target,) = machine.tables["root_verity"]
    machine.map("root_verity", " ".join([target.type, *target.arguments]), "LVM-root_verity")
    assert observe(machine, Verity()).state is State.READY


@pytest.mark.parametrize(
    "wrong", ["", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "0x" + "0" * 62, "\u0660" * 64]
)
@pytest.mark.parametrize("name", ["boot", "root"])
def test_a_root_hash_in_another_form_is_refused(machine, name, wrong):
    argument = f"{name}fs.roothash"
    command_line = FIRST_BOOT.replace(f"{argument}={HASHES[name]}", f"{argument}={wrong}")
    with pytest.raises(Refusal, match=argument):
        observe(machine, Verity(), command_line)


@pytest.mark.parametrize("name", ["boot", "root"])
def test_a_missing_root_hash_is_refused(machine, name):
    with pytest.raises(Refusal, match=f"{name}fs.roothash"):
        observe(machine, Verity(), FIRST_BOOT.replace(f"{name}fs.roothash=", "x="))


# --- personalise ---


def test_personalise_waits_for_both_volumes(machine):
    assert observe(machine, Personalise()).state is State.WAITING
    machine.open_verity("boot")
    assert observe(machine, Personalise()).state is State.WAITING
    machine.open_verity()
    assert observe(machine, Personalise()).state is State.READY


def test_a_disk_without_room_is_refused_before_the_commit_point(machine):
    machine.open_verity()
    machine.disks[0] = replace(machine.disk, size=200 * MIB)
    with pytest.raises(Refusal, match=r"too small by \d+ MiB"):
        observe(machine, Personalise())


@pytest.mark.parametrize("name", ["boot", "root"])
def test_a_hash_tree_shorter_than_the_file_system_is_refused(machine, name):
    machine.sizes[name] = SOURCES[name] - 4096
    machine.open_verity()
    with pytest.raises(Refusal, match=f"hash tree for {name} does not cover the whole file system"):
        observe(machine, Personalise())


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1G", "1234567890"])
def test_a_headroom_that_is_no_number_of_mib_is_refused(machine, text):
    machine.open_verity()
    with pytest.raises(Refusal, match=r"secex\.headroom="):
        observe(machine, Personalise(), f"{FIRST_BOOT} secex.headroom={text}")


def test_an_unknown_way_to_grow_is_refused_before_the_commit_point(machine):
    machine.open_verity()
    assert observe(machine, Personalise(), f"{FIRST_BOOT} secex.grow=off").state is State.READY
    with pytest.raises(Refusal, match=r"secex\.grow on the kernel command line has an unknown value"):
        observe(machine, Personalise(), f"{FIRST_BOOT} secex.grow=sometimes")


@pytest.mark.parametrize(("argument", "mib"), [("", 256), ("secex.headroom=0", 0), ("secex.headroom=12", 12)])
def test_the_headroom_is_taken_from_the_command_line(machine, argument, mib):
    machine.open_verity()
    assert observe(machine, Personalise(), f"{FIRST_BOOT} {argument}").state is State.READY
    assert personalise._plan(Context(f"{FIRST_BOOT} {argument}"), "00" * 32).headroom == mib * MIB


def test_personalise_asks_the_boot_entry_for_what_was_asked_of_the_image(machine):
    context = Context(f"{FIRST_BOOT} secex.grow=off secex.identity=replace")
    entry = "root=LABEL=root secex.identity=replace quiet init_on_free=1 secex.grow=off"
    personalise._check_options(context, entry)  # it gets the rest from us
    with pytest.raises(Refusal, match="no init_on_free=1"):
        personalise._check_options(context, entry.replace("init_on_free=1", ""))
    for other in ("", "secex.identity=other", "secex.identity=replace secex.headroom=64"):
        with pytest.raises(Refusal, match="has other secex arguments than its boot image: build the image"):
            personalise._check_options(context, entry.replace("secex.identity=replace", other))


@pytest.mark.parametrize(("argument", "replaced"), [("", False), ("secex.identity=replace", True)])
def test_the_plan_says_whether_what_identifies_a_machine_goes(machine, argument, replaced):
    """The volumes are encrypted under another command line than the one that was judged."""
    machine.open_verity()
    assert personalise._plan(Context(f"{FIRST_BOOT} {argument}"), "00" * 32).replace_identity is replaced


def test_an_se_partition_without_room_for_a_second_image_is_refused(machine, monkeypatch):
    kernel, initrd = machine.root / "kernel", machine.root / "initrd"
    for path, mib in ((kernel, 10), (initrd, 50)):
        path.touch()
        os.truncate(path, mib * MIB)
    entry = BootEntry("", "", kernel, (initrd,), "")
    before = shutil.disk_usage(machine.root)

    def free(mib: int) -> None:
        usage = before._replace(free=mib * MIB)
        monkeypatch.setattr(personalise.shutil, "disk_usage", lambda path: usage)

    put(places.IGNITION_MERGED_CONFIG, "x" * MIB)
    free(69)
    personalise._check_room(machine.root, entry)
    free(68)
    with pytest.raises(Refusal, match="partition se is too small by 1 MiB"):
        personalise._check_room(machine.root, entry)


def test_the_committed_image_brings_back_all_state_and_the_merged_config(machine):
    machine.commit()
    places.COMMITTED.unlink()
    files = personalise._state_files()
    assert files[str(places.STATE)] == Directory(0o700)
    assert files[str(places.COMMITTED)] == File(b"")
    assert files[str(places.IGNITION_USER_CONFIG)] == File(places.IGNITION_USER_CONFIG)
    for path in (places.PLAN, places.STATE / "volumes/boot/key", places.HOST_KEYS / "ibm-z-hostkey-a"):
        assert files[str(path)] == File(path)
    assert all(str(path) in files for path in places.STATE.rglob("*"))
    assert str(paths.PRIVATE_KEY) not in files


def test_the_committed_image_brings_back_the_masks_of_logins_where_they_are_wanted(machine):
    machine.commit()
    base = places.IGNITION_BASE_CONFIGS / paths.NO_LOCAL_LOGIN.name
    assert str(base) not in personalise._state_files()
    put(base, "masks")
    assert personalise._state_files()[str(base)] == File(base)


# --- partition ---


def test_partition_waits_for_the_commit_point(machine):
    assert observe(machine, PartitionStep()).state is State.WAITING


def test_partition_is_done_when_root_has_the_planned_size(machine):
    machine.commit()
    planned = machine.plan().root_partition_size
    assert observe(machine, PartitionStep()).state is State.READY
    for size, state in ((planned - MIB, State.READY), (planned, State.DONE)):
        root = replace(machine.disk.partitions["root"], size=size)
        machine.disks[0] = replace(machine.disk, partitions=machine.disk.partitions | {"root": root})
        assert observe(machine, PartitionStep()).state is state


def test_partition_is_not_done_while_one_of_the_two_tables_is_torn(machine):
    machine.commit()
    root = replace(machine.disk.partitions["root"], size=machine.plan().root_partition_size)
    machine.disks[0] = replace(machine.disk, partitions=machine.disk.partitions | {"root": root})
    machine.table_is_sound = False
    assert observe(machine, PartitionStep()).state is State.READY


# --- encrypt ---


@pytest.mark.parametrize("step", [EncryptBoot(), EncryptRoot()])
def test_encrypting_waits_for_the_commit_point(machine, step):
    assert observe(machine, step).state is State.WAITING
    machine.commit()
    status = observe(machine, step)
    assert status.state is State.READY
    assert f"encrypt {SOURCES[step.volume] >> 20} MiB of {step.volume}" in status.detail


@pytest.mark.parametrize("step", [EncryptBoot(), EncryptRoot()])
def test_encrypting_is_done_only_with_dm_crypt_on_dm_integrity_on_the_partition(machine, step):
    machine.commit()
    (machine.root / "dev" / "mapper" / step.volume).touch()
    assert observe(machine, step).state is State.READY
    machine.open_encrypted(step.volume)
    assert observe(machine, step).done
    machine.map(f"{step.volume}_dif", "linear 252:3 0")
    assert observe(machine, step).state is State.READY
    machine.map(f"{step.volume}_dif", "integrity 252:16 32768 32 J 7 journal_sectors:1")
    assert observe(machine, step).state is State.READY


@pytest.mark.parametrize("step", [EncryptBoot(), EncryptRoot()])
@pytest.mark.parametrize(
    ("table", "uuid"),
    [
        ("linear 252:16 0", "{uuid}"),
        ("crypt cipher_null-ecb - 0 252:16 0", "{uuid}"),
        ("{table}", "mpath-{name}"),
        ("{table}", "{uuid}2"),
        ("{table}", ""),
    ],
)
def test_a_mapping_that_has_only_the_name_is_not_the_encrypted_volume(machine, step, table, uuid):
    machine.commit()
    machine.open_encrypted(step.volume)
    (target,), found = machine.tables[step.volume], devicemapper.find(step.volume)
    same = " ".join([target.type, *target.arguments])
    machine.map(step.volume, table.format(table=same), uuid.format(uuid=found.uuid, name=step.volume))
    assert observe(machine, step).state is State.READY


@pytest.fixture
def devices(machine: Machine) -> Machine:
    """Files with random content as the partitions, root already grown."""
    machine.commit()
    grown = replace(machine.disk.partitions["root"], size=machine.plan().root_partition_size)
    machine.disks[0] = replace(machine.disk, partitions=machine.disk.partitions | {"root": grown})
    for name in ("boot", "root"):
        partition = machine.disk.partitions[name]
        partition.device.write_bytes(os.urandom(64 * MIB))
        os.truncate(partition.device, partition.size)
    (machine.root / "se").mkdir()
    return machine


def encryption(machine: Machine, name: str) -> Encryption:
    plan = Plan.load(places.PLAN)
    return Encryption(Context(""), plan, encrypt._volume(plan, name), machine.root / "se")


def part(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


@pytest.mark.parametrize("name", ["boot", "root"])
def test_what_the_target_would_overwrite_is_saved_at_the_end_of_the_disk(devices, name):
    run = encryption(devices, name)
    source, root = (devices.disk.partitions[each].device for each in (name, "root"))
    head, tree, saved_tree = run.volume_plan.saved_head, run.volume_plan.tree, run.volume_plan.saved_tree
    before = part(source, 0, run.volume_plan.source_size), part(root, tree.offset, tree.size)
    for _ in range(2):
        run.save()
        assert part(root, head.offset, head.size) == before[0][: head.size]
        assert part(root, saved_tree.offset, saved_tree.size) == before[1]
        assert part(source, 0, run.volume_plan.source_size) == before[0]
    seen = progress_record.load(devices.root / "se", run.key)
    assert seen.of(name).progress is Progress.SAVED
    assert seen.of({"boot": "root", "root": "boot"}[name]).progress is Progress.UNTOUCHED


@pytest.mark.parametrize(
    ("progress", "left"),
    [
        (Progress.UNTOUCHED, ["save", "place", "copy", "zero", "grow"]),
        (Progress.SAVED, ["place", "copy", "zero", "grow"]),
        (Progress.PLACED, ["copy", "zero", "grow"]),
        (Progress.COPIED, ["zero", "grow"]),
        (Progress.ZEROED, ["grow"]),
        (Progress.FINISHED, []),
    ],
)
def test_encrypting_goes_on_with_the_part_after_the_recorded_one(devices, monkeypatch, progress, left):
    encryption(devices, "root")._note(progress)
    run = encryption(devices, "root")
    done: list[str] = []

    def part_that_records(name: str, reached: Progress) -> Callable[[], None]:
        return lambda: (done.append(name), run._note(reached))[1]

    monkeypatch.setattr(run, "_settle_files", lambda root: done.append("settle files"))
    for name, reached in zip(("save", "place", "copy", "zero", "grow"), list(Progress)[1:], strict=True):
        monkeypatch.setattr(run, name, part_that_records(name, reached))
    monkeypatch.setattr(
        encrypt.encrypted,
        "open_volume",
        lambda files, device, name: done.append(f"open {device.name} as {name}"),
    )
    run.run()
    opened = "open vda4 as root"
    assert done == [*([opened, "settle files"] if len(left) <= 2 else []), *left, opened]


def test_a_root_on_which_first_boot_ended_is_not_set_up_again(tmp_path):
    encrypt.refuse_sealed(tmp_path)
    put(tmp_path / "etc/luks/sealed")
    with pytest.raises(FirstbootError, match="an older boot image was put back"):
        encrypt.refuse_sealed(tmp_path)


@pytest.mark.parametrize(
    ("name", "headroom", "grown"),
    [("boot", 64, 32), ("root", 0, 64), ("root", 15, 64), ("root", 16, 80), ("root", 900, 128)],
)
def test_only_root_grows_by_the_headroom_and_never_into_the_tail(devices, name, headroom, grown):
    run = encryption(devices, name)
    run.plan = run.plan.model_copy(update={"headroom": headroom * MIB})
    assert run._grown_size(147 * MIB) == grown * MIB


def test_a_volume_too_small_for_headroom_keeps_its_file_system(devices):
    assert encryption(devices, "root")._grown_size(65 * MIB) == SOURCES["root"]


# --- mount ---


def mounted(machine: Machine) -> None:
    for name in ("root", "boot"):
        machine.mounts[machine.where(name)] = machine.open_encrypted(name)
    machine.overlay = True


def test_mount_waits_for_both_volumes(machine):
    assert observe(machine, Mount()).state is State.WAITING
    machine.commit()
    assert observe(machine, Mount()).state is State.WAITING
    machine.mounts[places.SYSROOT] = machine.open_encrypted("root")
    assert observe(machine, Mount()).state is State.WAITING
    mounted(machine)
    assert observe(machine, Mount()).done


@pytest.mark.parametrize("name", ["boot", "root"])
def test_a_mounted_device_that_is_not_the_encrypted_volume_is_refused(machine, name):
    machine.commit()
    mounted(machine)
    machine.mounts[machine.where(name)] = "252:16"
    where = machine.where(name)
    with pytest.raises(
        FirstbootError, match=f"what is mounted on {where} is not the encrypted volume {name}: "
    ):
        observe(machine, Mount())


@pytest.mark.parametrize("name", ["boot", "root"])
def test_what_is_mounted_from_a_mapping_that_has_only_the_name_is_refused(machine, name):
    machine.commit()
    mounted(machine)
    machine.map(name, "linear 252:16 0", "mpath-root")
    with pytest.raises(FirstbootError, match="is not the encrypted volume"):
        observe(machine, Mount())


def test_ignition_does_not_write_where_the_overlay_is_missing(machine):
    machine.commit()
    mounted(machine)
    machine.overlay = False
    status = observe(machine, Mount())
    assert (status.state, status.detail) == (
        State.WAITING,
        "the overlay that Ignition writes to is mounted first",
    )
    put(places.FILES_FINISHED)  # what it wrote is taken over, and nothing lies over root any more
    assert observe(machine, Mount()).done


def test_what_is_mounted_is_looked_at_before_ignition_writes_there():
    units = REPOSITORY / "systemd"
    unit = (units / "secex-firstboot-mount.service").read_text()
    assert "ExecStart=/usr/bin/secex-firstboot --stage=mount\n" in unit
    assert Mount.stage == "mount"
    needed = {
        "secex-firstboot-overlay.service",
        "ignition-disks.service",
        "sysroot.mount",
        "sysroot-boot.mount",
    }
    for order in ("Requires=", "After="):
        assert (
            set(next(line for line in unit.splitlines() if line.startswith(order))[len(order) :].split())
            == needed
        )
    assert "Before=ignition-mount.service ignition-files.service\n" in unit
    assert "Requires=secex-firstboot-mount.service\n" in (units / "ignition-after-mount.conf").read_text()
    assert 'drop_in ignition-after-mount.conf "ignition-$unit.service"' in MODULE_SETUP.read_text()


# --- seal ---


def test_seal_waits_for_commit_point_and_mounts(machine):
    assert observe(machine, Seal()).detail == "the commit point comes first"
    machine.commit()
    assert observe(machine, Seal()).detail == "the encrypted volumes are mounted first"
    machine.mounts[places.SYSROOT / "boot"] = "253:1"
    assert observe(machine, Seal()).state is State.READY


def test_the_provisioned_system_gets_keys_detached_headers_and_crypttab(machine, monkeypatch):
    monkeypatch.setattr(paths, "LUKS_KEYS", Path("/etc/luks"))
    monkeypatch.setattr(devicemapper, "crypt_mode", lambda name: f"aes-of-{name} integrity:32:aead")
    machine.commit()
    assert {str(path): content for path, content in seal.key_files().items()} == {
        "/etc/luks/boot": b"key of boot",
        "/etc/luks/boot.header": header("boot").encode(),
        "/etc/luks/boot.mode": b"aes-of-boot integrity:32:aead\n",
        "/etc/luks/root": b"key of root",
        "/etc/luks/root.header": header("root").encode(),
        "/etc/luks/root.mode": b"aes-of-root integrity:32:aead\n",
    }
    assert [line.split() for line in seal.crypttab_lines()] == [
        [
            name,
            f"PARTUUID=00000000-0000-4000-8000-00000000000{number}",
            f"/etc/luks/{name}",
            f"luks,header=/etc/luks/{name}.header,x-initrd.attach,x-systemd.device-timeout=0,headless=yes",
        ]
        for name, number in (("boot", 3), ("root", 4))
    ]


# --- all of them ---


def test_on_a_provisioned_system_every_step_is_done(machine):
    machine.provision()
    for name in ("boot", "root"):
        machine.open_encrypted(name)
    for step in STEPS:
        assert observe(machine, step, command_line="").done, step.name


def test_after_a_crash_the_steps_before_the_commit_point_are_done(machine):
    machine.commit()
    done = [step.name for step in STEPS if observe(machine, step).done]
    assert done == ["platform", "config", "hostkeys", "verity", "personalise"]


def test_on_a_first_boot_the_dry_run_says_where_it_stands(machine):
    put(paths.PRIVATE_KEY)
    machine.serials["ignition_crypted"] = Path("/dev/vdb")
    before = snapshot(machine.root)
    seen = {row.step.name: row.state for row in state_machine.dry_run(Context(FIRST_BOOT))}
    assert snapshot(machine.root) == before
    assert seen.pop("platform") == "done"
    assert (seen.pop("config"), seen.pop("verity")) == ("ready", "ready")
    assert set(seen.values()) == {"waiting"}


def test_exactly_the_steps_that_write_to_the_disk_are_marked_destructive():
    marked = {step.name for step in STEPS if step.destructive}
    assert marked == {"personalise", "partition", "encrypt boot", "encrypt root", "seal"}


def test_no_destructive_step_runs_before_the_commit_point():
    names = [step.name for step in STEPS]
    first = next(step.name for step in STEPS if step.destructive)
    assert first == "personalise"
    assert names.index("seal") == len(names) - 1
    assert hostkeys.HostKeys.stage == personalise.Personalise.stage
