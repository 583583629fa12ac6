"""A host that changes what it holds gets a refusal, or the right system: never another one, and no secret.

Each case starts from the disk of one and the same first boot at some moment. Allowed are the endings that the
case names; changed content, and Linux from a changed sdboot, never are.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import (
    console,
    debian,
    firstboot,
    once,
    raw_disk,
    remains,
    sample,
    se_ready,
    secrets_scan,
    tamper,
    ultravisor,
)
from harness.guest import Disk, Network
from harness.raw_disk import BLOCK
from harness.recorded import FirstBoot
from harness.secrets_scan import Scanner
from harness.tamper import End, Ending, Host, Moment, Target
from harness.ultravisor import Reason

from secex_firstboot.builder import config_key
from secex_firstboot.hostkeys import document
from secex_firstboot.sdboot import boot_record, image
from secex_firstboot.storage import encrypted

IMAGE, COMMITTED, BOOT_HALF, ROOT_HALF, ROOT_TO_ERASE, ROOT_TO_GROW, ROOT_COPIED, *LATER = Moment
MERGING, BEFORE_SEAL, PROVISIONED = LATER
Change = Callable[[Host], None]


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory, first_boot: FirstBoot) -> Target:
    return once.made(tmp_path_factory, "tamper", lambda directory: tamper.prepare(directory, first_boot))


# --- changes -----------------------------------------------------------------------------------------------


def flip_sdboot(part: str, bit: int = 1) -> Change:
    return lambda host: host.flip_sdboot(part, bit)


def flip_partition(name: str, offset: int) -> Change:
    return lambda host: host.flip(host.partition(name) + offset)


def flip_file(name: str) -> Change:
    """In the content of a file of the source."""
    return lambda host: host.flip(host.partition(name) + host.used(name))


def flip_encrypted_file(name: str) -> Change:
    return lambda host: host.flip(host.in_volume(name, "data", host.used(name)))


def flip_encrypted_block(name: str, path: str) -> Change:
    """In the first block of a directory, or of what else has an inode."""

    def change(host: Host) -> None:
        block = raw_disk.blocks(host.target.disks[IMAGE], name, path)[0]
        host.flip(host.in_volume(name, "data", block * BLOCK + 100))

    return change


def flip_file_to_copy(host: Host) -> None:
    """In root, behind the part that is saved elsewhere."""
    root = host.target.plan.root
    at = host.used("root", root.saved_head.size, host.copied_from)
    host.flip(host.partition("root") - root.shift + at)


def flip_copied_file(host: Host) -> None:
    host.flip(host.in_volume("root", "data", host.used("root", host.copied_from)))


def flip_target(name: str, place: str, offset: int = 0) -> Change:
    return lambda host: host.flip(host.in_volume(name, place) + offset)


def zero_target(name: str, place: str, size: int) -> Change:
    return lambda host: host.write(host.in_volume(name, place), bytes(size))


def flip_saved(which: str, offset: int) -> Change:
    """In what lies at the end of the disk while a volume is encrypted."""

    def change(host: Host) -> None:
        plan = host.target.plan
        spans = {
            "root head": plan.root.saved_head,
            "root tree": plan.root.saved_tree,
        }
        host.flip(host.partition("root") + spans[which].offset + offset)

    return change


def flip_record(host: Host) -> None:
    host.flip(host.se_file("firstboot-record", 60))


def delete_record(host: Host) -> None:
    host.on_se("rm /firstboot-record")


def put_back_record(moment: Moment) -> Change:
    """That of an earlier moment of the same first boot."""

    def change(host: Host) -> None:
        old = host.directory / "record"
        raw_disk.debugfs(host.target.disks[moment], "se", f"dump /firstboot-record {old}")
        host.on_se("rm /firstboot-record", f"write {old} firstboot-record")

    return change


def flip_boot_map(host: Host) -> None:
    host.flip(tamper.in_boot_map(host.disk, boot_record.IMAGE))


def put_back(moment: Moment, *, table: bool = False) -> Change:
    return lambda host: host.put_back_se(moment, table=table)


def other_headers(host: Host) -> None:
    """For boot its own with a null cipher, for root that of boot."""
    header = host.read(host.in_volume("boot", "header"), 1 << 20)
    host.write(host.in_volume("root", "header"), header)
    changed = tamper.rewrite_luks_header(header[: 1 << 16], b"aes-xts-plain64", b"cipher_null-ecb")
    host.write(host.in_volume("boot", "header"), changed)


def swap_in_table(*fields: str) -> Change:
    """Swap these fields of the entries of boot and root."""

    def change(host: Host) -> None:
        entries = {}
        dump = subprocess.run(["sfdisk", "--dump", host.disk], check=True, capture_output=True, text=True)
        for line in dump.stdout.splitlines():
            if found := re.search(r'name="(boot|root)"', line):
                entries[found[1]] = {
                    field: re.search(rf"{field}=[^,]*", line)[0]  # type: ignore[index]
                    for field in fields
                }
        swapped = {entries["boot"][field]: entries["root"][field] for field in fields}
        host.rewrite_table(swapped | {new: old for old, new in swapped.items()})

    return change


def attach_image(host: Host) -> None:
    """A second disk with the same partitions, even the same PARTUUIDs."""
    host.others.append(Disk(host.target.disks[IMAGE], "second", format="raw", snapshot=True))


def attach_namesakes(host: Host) -> None:
    """A second disk whose partitions and file systems are called as ours, and hold other files."""
    disk = host.directory / "namesakes.raw"
    os.truncate(os.open(disk, os.O_CREAT | os.O_WRONLY), 64 << 20)
    script = "label: gpt\n" + "".join(f"{number}: size=16MiB, name={name}\n" for number, name in NAMESAKES)
    subprocess.run(["sfdisk", "--quiet", disk], input=script, text=True, check=True)
    with tempfile.TemporaryDirectory() as tree:
        Path(tree, "etc").mkdir()
        Path(tree, "etc/user-file").write_text("from the host")
        for _, name in NAMESAKES[1:]:
            start = raw_disk.partition_start(disk, name)
            options = ["-q", "-F", "-L", name, "-d", tree, "-E", f"offset={start}"]
            subprocess.run(["mkfs.ext4", *options, disk, "16m"], check=True, capture_output=True)
    host.others.append(Disk(disk, "second", format="raw"))


JOURNAL = "<8>"  # its inode (kernel: Documentation/filesystems/ext4/special_inodes.rst)
UNITS = "/etc/systemd/system"
NAMESAKES = ((1, "se"), (4, "boot"), (3, "root"))


def attach_second_config(host: Host) -> None:
    shutil.copy(host.config_disk, host.directory / "second.asc")
    host.others.append(Disk(host.directory / "second.asc", "ignition_crypted", format="raw", read_only=True))


def sdboot_of_another_machine(host: Host) -> None:
    """Of a guest of the same owner on the same host: everything alike, but for the keys and headers."""
    files = {path: host.target.overlay(PROVISIONED)[path] for path in ("/etc/luks/boot", "/etc/luks/root")}
    size = encrypted.KEY_SIZE
    rebuild_sdboot(host, {path: file[:-size] + os.urandom(size) for path, file in files.items()})


def sdboot_for_another_cipher(host: Host) -> None:
    """As if first boot had made another volume than the one that is open now."""
    *before, mode = host.target.overlay(PROVISIONED)["/etc/crypttab"].partition(b"# secex-firstboot root: ")
    assert b"xts(aes)" in mode
    rebuild_sdboot(host, {"/etc/crypttab": b"".join([*before, mode.replace(b"xts(aes)", b"xts(sm4)")])})


def sdboot_for_another_host(host: Host) -> None:
    rebuild_sdboot(host, {}, "customer-2")


def rebuild_sdboot(host: Host, files: dict[str, bytes], name: str = "customer-1") -> None:
    """Put onto the blocks of the final sdboot one of the same size with other files, for another host."""
    final = ultravisor.unpack(host.target.sdboot(PROVISIONED), host.target.host_key(PROVISIONED))
    ramdisk, content = host.directory / "ramdisk", final.ramdisk
    for path, other in files.items():
        ours = host.target.overlay(PROVISIONED)[path]
        assert content.count(ours) == 1  # in an archive that is not compressed
        assert len(ours) == len(other)
        content = content.replace(ours, other)
    ramdisk.write_bytes(content)
    tree, sdboot = host.target.tree, host.directory / "sdboot"
    with sdboot.open("wb") as stream:
        image.build(
            stream,
            kernel=debian.kernel(tree),
            ramdisk=[ramdisk],
            command_line=final.command_line,
            host_keys=[
                document.parse(name, host.target.first_boot.where.hosts[name].document.read_bytes()).key
            ],
            boot_loaders=image.BootLoaders(
                tree / "usr/share/s390-tools/pvimg/stage3a.bin",
                tree / "usr/share/s390-tools/pvimg/stage3b_reloc.bin",
            ),
        )
    rebuilt = sdboot.read_bytes()
    blocks = raw_disk.blocks(host.disk, "se", f"/{boot_record.IMAGE}")
    assert len(rebuilt) == len(host.target.sdboot(PROVISIONED))
    se = host.partition("se")
    for number, block in enumerate(blocks):
        host.write(se + block * BLOCK, rebuilt[number * BLOCK : (number + 1) * BLOCK])


def flip_armor(host: Host) -> None:
    content = bytearray(host.config_disk.read_bytes())
    middle = content.rindex(b"\n", 0, len(content) // 2) + 10
    content[middle] = ord("A") if content[middle] != ord("A") else ord("B")
    host.config_disk.write_bytes(content)


def truncate_config(host: Host) -> None:
    size = host.config_disk.stat().st_size
    os.truncate(host.config_disk, size // 2 // 512 * 512)


def config_for_another_image(host: Host) -> None:
    with tempfile.TemporaryDirectory() as directory:
        public = Path(directory, "public.asc")
        public.write_bytes(config_key.key_pair().public)
        se_ready.encrypt_config({"ignition": {"version": "3.3.0"}}, public, host.config_disk)


def config_within_one_of_the_hosts(host: Host) -> None:
    """The owner's message, altered, where another has its plaintext. All that it takes is gpg."""
    armor = host.config_disk.read_bytes().rstrip(b"\0")
    with tempfile.TemporaryDirectory() as home:
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--trust-model=always"]
        owners = subprocess.run([*gpg, "--dearmor"], input=armor, check=True, capture_output=True).stdout
        to_image = [
            f"--recipient-file={host.target.first_boot.public_key}",
            "--no-literal",
            "--compress-algo=none",
        ]
        altered = owners[:-40] + bytes([owners[-40] ^ 1]) + owners[-39:]
        done = subprocess.run([*gpg, *to_image, "--encrypt"], input=altered, check=True, capture_output=True)
    host.config_disk.write_bytes(done.stdout + bytes(-len(done.stdout) % 512))


# --- cases -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """``may``: how it may end; a Reason is the ultravisor's. ``says``: what a refusal in the guest says."""

    name: str
    moment: Moment
    change: Change
    may: tuple[End | Reason, ...]
    says: str = ""
    linux: bool = True
    """Whether Linux may start."""

    def __str__(self) -> str:
        return f"{self.moment}: {self.name}"

    def allows(self, ending: Ending) -> bool:
        if ending.end is End.REFUSED and not re.search(self.says, ending.detail):
            return False
        return (ending.reason or ending.end) in self.may


def sdboot(part: str, expected: Reason | End, moment: Moment = IMAGE, bit: int = 1) -> Case:
    return Case(f"a bit of sdboot, {part}", moment, flip_sdboot(part, bit), (expected,), linux=False)


REFUSED = (End.REFUSED,)
EITHER = (End.NO_START, End.REFUSED, End.CORRECT)
UNREADABLE = r"(?i)content|input/output|verity|cannot|print-manifest|error"

SDBOOT = [
    sdboot("stage3a: entry", End.NO_START),
    sdboot("stage3a: arguments", Reason.INVALID_PARAMETERS),
    sdboot("IPIB: length", Reason.INVALID_PARAMETERS),
    sdboot("IPIB: type", Reason.INVALID_PARAMETERS),
    sdboot("IPIB: tweak", Reason.TLD_MISMATCH),
    sdboot("IPIB: address", Reason.ALD_MISMATCH, bit=0x10),
    sdboot("IPIB: size", Reason.PAGE_COUNT, bit=0x10),
    sdboot("header: magic", Reason.HEADER_CORRUPT),
    sdboot("header: version", Reason.HEADER_VERSION),
    sdboot("header: size", Reason.HEADER_SIZE),
    sdboot("header: IV", Reason.HEADER_CORRUPT),
    sdboot("header: key slots", Reason.NO_KEY_SLOT),
    sdboot("header: encrypted area size", Reason.ENCRYPTED_AREA_SIZE),
    sdboot("header: pages", Reason.HEADER_CORRUPT),
    sdboot("header: flag 34", Reason.HEADER_CORRUPT, bit=0x80 >> 34 % 8),
    sdboot("header: flag 0", Reason.PLAINTEXT_FLAG, bit=0x80),
    sdboot("header: customer key", Reason.CUSTOMER_KEY),
    sdboot("header: page digest", Reason.HEADER_CORRUPT),
    sdboot("header: address digest", Reason.HEADER_CORRUPT),
    sdboot("header: tweak digest", Reason.HEADER_CORRUPT),
    sdboot("key slot: hash", Reason.HOST_KEY),
    sdboot("key slot: wrapped key", Reason.KEY_SLOT_CORRUPT),
    sdboot("key slot: tag", Reason.KEY_SLOT_CORRUPT),
    sdboot("encrypted area", Reason.HEADER_CORRUPT),
    sdboot("tag", Reason.HEADER_CORRUPT),
    *(sdboot(part, Reason.PLD_MISMATCH) for part in ("kernel", "command line", "ramdisk", "stage3b")),
    sdboot("header: key slots", Reason.HEADER_SIZE, PROVISIONED),
    sdboot("key slot: hash", Reason.HOST_KEY, PROVISIONED),
    sdboot("encrypted area", Reason.HEADER_CORRUPT, PROVISIONED),
    *(sdboot(part, Reason.PLD_MISMATCH, PROVISIONED) for part in ("kernel", "command line", "ramdisk")),
    Case("a bit of the boot record", PROVISIONED, lambda host: host.flip(0), (End.NO_START,), linux=False),
    Case("a bit of the boot map", PROVISIONED, flip_boot_map, (End.NO_START,), linux=False),
]  # fmt: skip

CONFIG = [
    Case("a byte of the config's armor", IMAGE, flip_armor, REFUSED, "config"),
    Case("the config cut in half", IMAGE, truncate_config, REFUSED, "config|armor"),
    Case("a config for another image", IMAGE, config_for_another_image, REFUSED, "key"),
    Case(
        "the config within one of the host's",
        IMAGE,
        config_within_one_of_the_hosts,
        REFUSED,
        "the config is damaged or was altered, is not for this image's key or by none of its signers, "
        "or is no valid Ignition config",
    ),
    Case("two config disks", IMAGE, attach_second_config, REFUSED, "both have the serial"),
]

VERITY = [
    Case("the hash tree's superblock, boot", IMAGE, flip_partition("boothash", 64), REFUSED),
    Case("the hash tree's root block, root", IMAGE, flip_partition("roothash", BLOCK + 8), REFUSED),
    Case("boot, a file in the middle", IMAGE, flip_file("boot"), REFUSED),
]  # fmt: skip

HALF_WAY = [
    Case("saved head of root", ROOT_HALF, flip_saved("root head", 1024 + 0x78), REFUSED, UNREADABLE),
    Case("saved hash tree", ROOT_HALF, flip_saved("root tree", BLOCK + 8), REFUSED, UNREADABLE),
    Case("progress record, a bit", ROOT_HALF, flip_record, REFUSED, "not written by this first boot"),
    Case("progress record, deleted", ROOT_HALF, delete_record, REFUSED, UNREADABLE),
    Case("progress record, older", ROOT_HALF, put_back_record(BOOT_HALF), REFUSED, UNREADABLE),
    Case("progress record, older", BEFORE_SEAL, put_back_record(ROOT_TO_ERASE), REFUSED, "older than what"),
    Case("progress record, older", BEFORE_SEAL, put_back_record(ROOT_TO_GROW), REFUSED, "older than what"),
    Case("source, a file not yet copied", ROOT_HALF, flip_file_to_copy, REFUSED, UNREADABLE),
    Case("target, a copied file", ROOT_HALF, flip_copied_file, REFUSED, UNREADABLE),
    Case("target, superblock", ROOT_HALF, flip_target("root", "superblock", 20), REFUSED),
    Case("encrypted boot, a file", ROOT_HALF, flip_encrypted_file("boot"), REFUSED, UNREADABLE),
    Case("a second disk with the partitions", ROOT_HALF, attach_image, REFUSED, "both carry partitions"),
]

# The volume keys are those of the sealed sdboot already.
EARLIER = [
    *(
        Case("the sealed sdboot", moment, put_back(PROVISIONED, table=True), REFUSED)
        for moment in (IMAGE, COMMITTED, BOOT_HALF, ROOT_HALF)
    ),
    *(
        Case("the sealed sdboot", moment, put_back(PROVISIONED), REFUSED, "from before first boot had ended")
        for moment in (ROOT_COPIED, MERGING, BEFORE_SEAL)
    ),
]

AFTERWARDS = [
    Case("LUKS2 headers, null cipher and another key", PROVISIONED, other_headers, (End.CORRECT,)),
    Case("superblock zeroed", PROVISIONED, zero_target("root", "superblock", BLOCK), REFUSED),
    Case("journal zeroed", PROVISIONED, zero_target("root", "journal", 1 << 20), EITHER),
    Case("tags zeroed", PROVISIONED, zero_target("root", "tags", 16 << 10), REFUSED),
    Case("superblock of boot zeroed", PROVISIONED, zero_target("boot", "superblock", BLOCK), REFUSED),
    Case("root, a file", PROVISIONED, flip_encrypted_file("root"), REFUSED, UNREADABLE),
    # What was written last may still be in dm-integrity's journal, which then writes the block anew.
    Case(
        "root, its journal",
        PROVISIONED,
        flip_encrypted_block("root", JOURNAL),
        (End.REFUSED, End.CORRECT),
    ),
    Case("boot and root exchanged in the table", PROVISIONED, swap_in_table("start", "size"), REFUSED),
    Case("the image's sdboot put back", PROVISIONED, put_back(IMAGE), REFUSED, "provisioned before"),
    Case("also its partition table", PROVISIONED, put_back(IMAGE, table=True), REFUSED),
    Case("the personalised sdboot put back", PROVISIONED, put_back(COMMITTED), REFUSED, UNREADABLE),
    Case("also an early progress record", PROVISIONED, put_back(ROOT_COPIED), REFUSED, "set up before"),
    Case("also the last progress record", PROVISIONED, put_back(BEFORE_SEAL), (End.REFUSED, End.CORRECT)),
    Case("sdboot of another machine", PROVISIONED, sdboot_of_another_machine, REFUSED),
    Case("sdboot with another cipher", PROVISIONED, sdboot_for_another_cipher, REFUSED, "not as first boot"),
    Case("sdboot for another host", PROVISIONED, sdboot_for_another_host, (Reason.HOST_KEY,), linux=False),
    Case("a copy of the image as second disk", PROVISIONED, attach_image, EITHER),
    Case("a second disk with our names", PROVISIONED, attach_namesakes, (End.CORRECT,)),
]

CASES = [
    *sample.kind("SDBOOT", SDBOOT, 4),
    *sample.kind("CONFIG", CONFIG),
    *sample.kind("VERITY", VERITY),
    *sample.kind("HALF_WAY", HALF_WAY),
    *sample.kind("EARLIER", EARLIER),
    *sample.kind("AFTERWARDS", AFTERWARDS, 2),
]


@pytest.mark.parametrize("case", CASES)
def test_what_the_host_changes_is_refused_or_without_effect(
    case: Case,
    target: Target,
    network: Network,
    scanner: Scanner,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    host, log = host_with(target, case.moment, tmp_path), tmp_path / "console.log"
    case.change(host)
    began = time.monotonic()
    ending = started_on(host, log, network, linux=case.linux)
    record_property("tampering", f"{case}: {ending} ({time.monotonic() - began:.0f} s)")
    assert case.allows(ending)
    assert found_outside(scanner, log) == []
    assert scanner.found_in_changes(host.disk, target.disks[case.moment]) == []
    host.disk.unlink()


def host_with(target: Target, moment: Moment, directory: Path) -> Host:
    host = Host(target, moment, directory)
    subprocess.run(["cp", "--sparse=always", target.disks[moment], host.disk], check=True)
    shutil.copy(target.first_boot.where.config_disk, host.config_disk)
    return host


def started_on(host: Host, log: Path, network: Network, *, linux: bool = True) -> Ending:
    """How a guest on the host's disk ends."""
    system = Disk(host.disk, "system", format="raw")
    with host.target.first_boot.where.start(
        system, log, network, saved=host.saved, config_disk=host.config_disk, others=host.others
    ) as guest:
        ending = tamper.watch(host.target, guest, linux=linux)
        guest.kill()
    return ending


@pytest.mark.long
def test_what_the_host_makes_unreadable_is_not_taken_for_lost(
    target: Target, network: Network, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """While ext4 is about to grow: a check would have emptied the directory, and given that valid tags."""
    host = host_with(target, ROOT_TO_GROW, tmp_path)
    flip = flip_encrypted_block("root", UNITS)
    flip(host)
    ending = started_on(host, tmp_path / "spoiled.log", network)
    record_property("tampering", f"{ROOT_TO_GROW}: root, a directory: {ending}")
    assert ending.end is End.REFUSED
    flip(host)
    assert started_on(host, tmp_path / "as-it-was.log", network).end is End.CORRECT
    host.disk.unlink()


def found_outside(scanner: Scanner, log: Path) -> list[str]:
    """Secrets on the console, and in the packets and TCP streams that were captured beside its log."""
    capture = log.with_suffix(".pcap").read_bytes()
    seen = [log.read_bytes(), capture, *secrets_scan.tcp_streams(capture)]
    return sorted({name for content in seen for name in scanner.found(content)})


@pytest.fixture(scope="session")
def scanner(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Scanner:
    """Knows every secret of the recorded first boot."""
    where = tmp_path_factory.mktemp("secrets")
    key_files, image_files = target.overlay(PROVISIONED), target.overlay(IMAGE)
    secrets = {"record key": bytes.fromhex(target.plan.record_key)}
    secrets |= secrets_scan.of_volumes(key_files, where)
    private = image_files["/usr/lib/coreos/ignition.asc"].decode()
    numbers = secrets_scan.private_numbers(private, target.first_boot.public_key.read_text())
    secrets |= {f"number {at} of the GPG key": number for at, number in enumerate(numbers)}
    markers = dataclasses.asdict(target.first_boot.markers)
    secrets |= {f"marker, {name}": marker.encode() for name, marker in markers.items()}
    return Scanner(
        secrets, lines=secrets_scan.armored_lines(private, target.first_boot.public_key.read_text())
    )


@pytest.mark.early
def test_first_boot_lets_no_secret_out(target: Target, scanner: Scanner) -> None:
    """Not to the disk, not even for a moment; not to the console or the network."""
    assert scanner.found_in_file(target.disks[PROVISIONED]) == []
    assert scanner.found_in_file(target.first_boot.recording.log) == []
    log = target.first_boot.log
    assert found_outside(scanner, log) == []
    streams = secrets_scan.tcp_streams(log.with_suffix(".pcap").read_bytes())
    assert any(stream.startswith(b"\x16\x03") for stream in streams)  # TLS: what was fetched was seen


def test_nothing_of_the_image_stays_on_the_disk(target: Target, tmp_path: Path) -> None:
    assert remains.of_image(target.disks[ROOT_TO_ERASE], target.disks[IMAGE], tmp_path)  # it would be found
    assert remains.of_image(target.disks[PROVISIONED], target.disks[IMAGE], tmp_path) == []


def test_a_good_first_boot_has_no_integrity_error_on_the_console(target: Target) -> None:
    log = target.first_boot.log.read_text(errors="replace")
    assert console.COMPLETE in log
    assert firstboot.integrity_errors(log) == []
