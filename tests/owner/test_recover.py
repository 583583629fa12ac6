"""A disk whose hosts are gone, on another machine. Mounts, mappings, zipl and the builder are stand-ins; the
whole of it runs in a guest, vm-tests/test_recovery.py."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
import pyudev
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from harness import ultravisor
from support import TEST_VECTORS, deployments, needs, plain, recovery_keys
from support.machine import put
from support.recovery_keys import Owner

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.contract.boot_image import Arguments, Image, Images, Origin, State
from secex_firstboot.contract.evidence import BootImage, Evidence
from secex_firstboot.contract.partitions import VOLUMES
from secex_firstboot.contract.recovery import MESSAGE, Recovery, Volume
from secex_firstboot.hostkeys import document
from secex_firstboot.ignition import openpgp, recipients
from secex_firstboot.owner import recover
from secex_firstboot.roots import system_image
from secex_firstboot.roots.kinds import Root
from secex_firstboot.sdboot import boot_record, contents, create, image
from secex_firstboot.storage import cryptsetup, devicemapper, encrypted, loop
from secex_firstboot.storage import disk as storage
from secex_firstboot.storage.cryptsetup import VolumeDescription
from secex_firstboot.storage.disk import Disk, Partition
from secex_firstboot.storage.encrypted import Secrets

OPENS = {name: f"header of {name}".encode() + bytes(64) for name in VOLUMES}
UUIDS = {name: f"0e4a2f11-6a0c-4a6e-9d1b-2b6f3a1d90d{number}" for number, name in enumerate(VOLUMES)}
DISK = Disk.of(
    Path("/dev/sdb"),
    1 << 30,
    512,
    [
        Partition(number, name, Path(f"/dev/sdb{number}"), UUIDS.get(name, ""), 0, 0)
        for number, name in ((1, "se"), (3, "boot"), (4, "root"))
    ],
)
FOUND = Recovery(
    generation=3,
    kernel="6.12",
    command_line="quiet",
    hosts=(),
    boot=Volume(partition=UUIDS["boot"], opens=OPENS["boot"]),
    root=Volume(partition=UUIDS["root"], opens=OPENS["root"]),
)
DESCRIPTION = VolumeDescription(
    uuid="",
    label="",
    cipher="aes-xts-plain64",
    integrity="hmac(sha256)",
    tag_size=32,
    volume_key_size=96,
    sector_size=4096,
    data_offset=16 << 20,
)
OLD, NEW = (
    document.parse(f"ibm-z-hostkey-{name}", (TEST_VECTORS / f"se-image/host-{name}.crt").read_bytes())
    for name in "ab"
)


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    yield from recovery_keys.owner(monkeypatch)


@pytest.fixture
def se(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Partition se, mounted."""
    where = tmp_path / "se"
    where.mkdir()

    @contextmanager
    def mounted(disk: Disk, work: Path, options: str) -> Iterator[Path]:
        assert options == "nosymfollow"
        yield where

    monkeypatch.setattr(boot_record, "mounted", mounted)
    return where


def left(owner: Owner, content: bytes) -> bytes:
    return openpgp.encrypt(content, [recipients.parse("a", owner.key("a"))], Path("/tmp"))


# --- what it is ---


def test_only_a_disk_of_this_machine_with_a_guests_partitions_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "disk.raw"
    image.touch()
    with pytest.raises(Refusal, match=r"disk\.raw is no disk of this machine: attach the image as one"):
        storage.of_device(image)
    monkeypatch.setattr(pyudev.Devices, "from_device_file", lambda context, path: path)
    monkeypatch.setattr(storage, "_disk", lambda device: DISK)
    assert storage.of_device(Path("/dev/sdb")) is DISK
    monkeypatch.setattr(storage, "_disk", lambda device: replace(DISK, partitions={}))
    with pytest.raises(Refusal, match="has no partition 1 'se', 3 'boot', 4 'root'"):
        storage.of_device(Path("/dev/sdb"))


def test_the_owners_key_opens_what_was_left(owner: Owner, se: Path) -> None:
    (se / MESSAGE).write_bytes(left(owner, FOUND.padded()))
    assert recover.find(DISK, se) == FOUND


def test_a_disk_without_it_and_one_with_something_else_there_are_refused(owner: Owner, se: Path) -> None:
    with pytest.raises(Refusal, match=r"has no recovery\.gpg: without recovery keys"):
        recover.find(DISK, se)
    (se / "elsewhere").write_bytes(left(owner, FOUND.padded()))
    (se / MESSAGE).symlink_to(se / "elsewhere")
    with pytest.raises(Refusal, match=r"has no recovery\.gpg"):
        recover.find(DISK, se)
    (se / MESSAGE).unlink()
    (se / MESSAGE).write_bytes(b"\x85garbage")
    with pytest.raises(Refusal, match=r"recovery\.gpg on partition se is damaged"):
        recover.find(DISK, se)


def test_what_anybody_can_encrypt_to_the_key_is_read_as_a_grammar(owner: Owner, se: Path) -> None:
    (se / MESSAGE).write_bytes(left(owner, b"of the host's"))
    with pytest.raises(Refusal, match="is not what secex-firstboot leaves"):
        recover.find(DISK, se)


def test_the_message_of_another_disk_is_refused(owner: Owner, se: Path) -> None:
    other = FOUND.root.model_copy(update={"partition": UUIDS["boot"]})
    (se / MESSAGE).write_bytes(left(owner, FOUND.model_copy(update={"root": other}).padded()))
    with pytest.raises(Refusal, match="of another disk: partition root has another UUID"):
        recover.find(DISK, se)


# --- whose it is ---


def evidence(opens: dict[str, bytes]) -> Evidence:
    inputs = {
        f"file /etc/luks/{name}": hashlib.sha256(content).hexdigest() for name, content in opens.items()
    }
    made = BootImage(
        generation=1, state=State.UP, kernel="", command_line="", header="", host_keys=(), inputs=inputs
    )
    return Evidence(running=1, images=(made,), root_hashes={})


def test_evidence_tells_the_guests_message_from_one_of_the_hosts() -> None:
    recover.prove(FOUND, evidence(OPENS))
    with pytest.raises(Refusal, match="opens another volume root than the guest's that gave the evidence"):
        recover.prove(FOUND, evidence(OPENS | {"root": b"the host's own"}))
    with pytest.raises(Refusal, match="opens another volume boot"):
        recover.prove(FOUND, evidence({}))


# --- what it opens ---


def test_without_device_mapper_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devicemapper, "MAPPER", tmp_path)
    with pytest.raises(Refusal, match="this machine has no device-mapper"):
        recover.open_volumes(DISK, FOUND, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with device-mapper, and what describes the headers."""

    def describe(header: bytes) -> VolumeDescription:
        return replace(DESCRIPTION, label=f"crypt_{header.decode().removeprefix('header of ')}fs")

    (tmp_path / "control").touch()
    monkeypatch.setattr(devicemapper, "MAPPER", tmp_path)
    monkeypatch.setattr(cryptsetup, "describe", describe)


@pytest.mark.usefixtures("headers")
@pytest.mark.parametrize(
    "change",
    [{"cipher": "cipher_null-ecb"}, {"integrity": "none"}, {"label": "x"}, {"data_offset": 0}],
    ids=str,
)
def test_a_header_that_first_boot_does_not_make_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    made = replace(replace(DESCRIPTION, label="crypt_bootfs"), **change)  # type: ignore[arg-type]
    monkeypatch.setattr(cryptsetup, "describe", lambda header: made)
    with pytest.raises(Refusal, match="for another kind of volume boot than first boot makes"):
        recover.open_volumes(DISK, FOUND, tmp_path)


@pytest.mark.usefixtures("headers")
def test_keys_are_in_files_no_longer_than_it_takes_to_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def open_volume(files: Secrets, device: Path, name: str, *, private: bool) -> Path:
        seen[name] = device, files.header.read_bytes() + files.key.read_bytes(), private
        if name == "recover-root":
            raise FirstbootError("SX-DISK-03", "does not open")
        return Path("/dev/mapper", name)

    monkeypatch.setattr(encrypted, "open_volume", open_volume)
    with pytest.raises(FirstbootError, match="does not open"):
        recover.open_volumes(DISK, FOUND, tmp_path)
    assert seen == {
        "recover-boot": (Path("/dev/sdb3"), OPENS["boot"], True),
        "recover-root": (Path("/dev/sdb4"), OPENS["root"], True),
    }
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "control"]


@contextmanager
def file_systems(tmp_path: Path, names: Iterable[str]) -> Iterator[dict[str, Path]]:
    """Of what is in the directories of these names: block devices, for the length of a ``with`` block."""
    with ExitStack() as stack:
        devices = {}
        for name in names:
            made = tmp_path / f"{name}.img"
            with made.open("wb") as stream:
                stream.truncate(32 << 20)
            subprocess.run(["mkfs.ext4", "-q", "-d", tmp_path / name, made], check=True)
            devices[name] = stack.enter_context(loop.attached(made, block_size=512))
        yield devices


@needs.mounting("mkfs.ext4")
def test_no_link_on_the_disk_leads_to_what_is_this_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a deployment are found by their text, and so go on."""
    here = tmp_path / "here"
    here.mkdir()
    put(tmp_path / "boot/loader/entries/a.conf", f"options {deployments.ARGUMENT}\nlinux /vmlinuz\n".encode())
    put(tmp_path / "boot/vmlinuz", b"kernel")
    deployment = deployments.make(tmp_path / "root")
    put(deployment / "etc/os-release", b"")
    (deployment / "etc/se-hostkeys").symlink_to(here)
    with file_systems(tmp_path, VOLUMES) as devices:
        monkeypatch.setattr(recover, "open_volumes", lambda *_: devices)
        monkeypatch.setattr(recover, "close_volumes", lambda: None)
        with recover._mounted(DISK, FOUND, tmp_path) as (root, boot):
            assert root.place(PurePosixPath("/etc/os-release")).read_bytes() == b""
            assert (boot / "vmlinuz").is_file()
            with pytest.raises(OSError, match="se-hostkeys"):
                recover._replace_hosts(root, [NEW], {})
    assert list(here.iterdir()) == []


ZIPL = f"""#!{sys.executable}
import sys
options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
with open(options["target"] + "/bootmap", "w") as stream:
    stream.write(options["image"])
with open(options["targetbase"], "r+b") as device:
    device.write(b"another boot record".ljust(512))
"""


@needs.mounting("mkfs.ext4")
def test_the_whole_way_but_for_what_encrypts_the_volumes(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real are gpg, the file systems, the builder, and what opens the boot image."""
    make_guest(tmp_path, owner.key("owner"))
    (tmp_path / "disk").write_bytes(bytes(2 << 20))
    (tmp_path / "zipl").write_text(ZIPL)
    (tmp_path / "zipl").chmod(0o755)
    stage3a = (TEST_VECTORS / "se-image/two-keys.img").read_bytes()[0x10000:0x13000].rstrip(b"\0")
    (tmp_path / "stage3a.bin").write_bytes(stage3a[:-24] + bytes(24))  # its arguments are blank before
    (tmp_path / "stage3b_reloc.bin").write_bytes(bytes(8000))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(create, "BOOT_LOADER_DIRECTORIES", (tmp_path,))
    monkeypatch.setattr(recover, "close_volumes", lambda: None)
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    with file_systems(tmp_path, ("se", *VOLUMES)) as devices:
        parts = [replace(each, device=devices[each.name], start=1 << 20) for each in DISK.all]
        disk = Disk.of(tmp_path / "disk", 2 << 20, 512, parts)
        monkeypatch.setattr(recover, "open_volumes", lambda *_: {name: devices[name] for name in VOLUMES})
        made = recover.start_on(Context(""), disk, FOUND, [NEW], {}, work)
        with boot_record.mounted(disk, tmp_path / "mounted") as se:
            sdboot = (se / boot_record.IMAGE).read_bytes()
            message = owner.reads((se / MESSAGE).read_bytes(), tmp_path)
    assert disk.device.read_bytes()[:512] == b"another boot record".ljust(512)
    unpacked = ultravisor.unpack(sdboot, private_key("host-b"))
    assert unpacked.command_line.endswith("secex.generation=6")
    assert OPENS["root"] in unpacked.ramdisk
    with pytest.raises(ultravisor.Refused):
        ultravisor.unpack(sdboot, private_key("host-a"))
    left = Recovery.parse(message)
    assert (left.generation, left.hosts) == (made.generation, (document.key_hash(NEW).hex(),))
    assert [path for path in work.rglob("*") if path.is_file()] == []


def make_guest(top: Path, recovery_key: bytes) -> None:
    """What is on se, boot and root of a guest for a host that is gone."""
    vectors = TEST_VECTORS / "se-image"
    put(top / "se" / boot_record.IMAGE, b"the image of before")
    put(top / "boot/vmlinuz", (vectors / "kernel.bin").read_bytes())
    put(top / "boot/initrd", (vectors / "ramdisk.bin").read_bytes())
    put(top / "boot/loader/entries/a.conf", b"linux /vmlinuz\ninitrd /initrd\noptions quiet\n")
    fill_root(top / "root", {"owner.asc": recovery_key})


def fill_root(top: Path, keys: dict[str, bytes]) -> None:
    for name, content in OPENS.items():
        put(top / f"etc/luks/{name}", content)
    put(top / "etc/crypttab", b"boot PARTUUID=2 - luks\nroot PARTUUID=3 - luks\n")
    put(top / "etc/se-hostkeys" / OLD.name, OLD.pem)
    system_image.remember(plain(top), Arguments(), {}, {OLD.name: OLD.pem}, {}, keys, Origin(root_hashes={}))
    newest, fallback = (
        Image(generation=number, identity="", kernel="", state=State.UP, inputs={}) for number in (5, 4)
    )
    system_image.record(plain(top), Images(newest=newest, fallback=fallback))


def private_key(name: str) -> ultravisor.HostKey:
    key = load_pem_private_key((TEST_VECTORS / f"se-image/{name}.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


# --- and that it starts on another host ---


@pytest.fixture
def root(tmp_path: Path, se: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a guest with two boot images, for a host that is gone."""
    top = tmp_path / "root"
    fill_root(top, {})
    put(top / "boot/vmlinuz", b"kernel")
    put(top / "boot/initrd", b"initramfs")
    put(top / "boot/loader/entries/a.conf", b"linux /vmlinuz\ninitrd /initrd\noptions quiet\n")
    (se / boot_record.IMAGE).write_text("5")

    @contextmanager
    def opened(disk: Disk, found: Recovery, work: Path) -> Iterator[tuple[Root, Path]]:
        yield plain(top), top / "boot"

    def build(
        context: Context, entry: object, se: Path, *, command_line: str, documents: Path, **_: object
    ) -> None:
        names = " ".join(sorted(path.name for path in documents.iterdir()))
        (se / boot_record.NEW_IMAGE).write_text(f"{command_line} for {names}")

    def install(se: Path, disk: Disk, scratch: Path) -> None:
        assert 6 in system_image.allowed(plain(top))  # before the firmware can start it
        (se / boot_record.NEW_IMAGE).replace(se / boot_record.IMAGE)

    monkeypatch.setattr(recover, "_mounted", opened)
    monkeypatch.setattr(contents, "build_sdboot", build)
    monkeypatch.setattr(image, "header_bytes", lambda path: b"SE header")
    monkeypatch.setattr(boot_record, "settle", lambda se, disk: None)
    monkeypatch.setattr(boot_record, "install", install)
    return top


def start_on(tmp_path: Path) -> Image:
    return recover.start_on(Context(""), DISK, FOUND, [NEW], {"ca.crt": b"certificate"}, tmp_path)


def test_the_new_image_is_for_the_new_hosts_and_for_no_other(root: Path, se: Path, tmp_path: Path) -> None:
    made = start_on(tmp_path)
    assert made.generation == 6
    assert (se / boot_record.IMAGE).read_text().endswith(f"secex.generation=6 for {NEW.name}")
    assert system_image.allowed(plain(root)) == {6}
    images = system_image.images(plain(root))
    assert images and (images.newest, images.fallback) == (made, None)


def test_the_guest_goes_on_with_the_new_hosts(root: Path, tmp_path: Path) -> None:
    start_on(tmp_path)
    directory = root / "etc/se-hostkeys"
    assert sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()) == [
        "certs/ca.crt",
        NEW.name,
    ]
    assert system_image.hosts(plain(root)) == {NEW.name: NEW.pem}


def test_cut_short_it_is_done_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(contents, "build_sdboot", killed)
        with pytest.raises(Killed):
            start_on(tmp_path)
    assert system_image.allowed(plain(root)) == {4, 5}
    monkeypatch.setattr(boot_record, "install", lambda se, disk, scratch: None)
    assert start_on(tmp_path).generation == 7  # as the host may have what was half made


def test_where_there_is_no_room_the_other_image_goes_first(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def check_room(se: Path, entry: object) -> None:
        if not done:
            raise Refusal("SX-STEP-12", "too small")

    monkeypatch.setattr(contents, "check_room", check_room)
    monkeypatch.setattr(boot_record, "leave", lambda se, disk, work, name: done.append(name))
    start_on(tmp_path)
    assert done == [boot_record.IMAGE]


def test_a_root_of_another_volume_is_left_alone(root: Path, tmp_path: Path) -> None:
    put(root / "etc/luks/root", b"of another")
    with pytest.raises(FirstbootError, match="has not what opens its volume root"):
        start_on(tmp_path)
    assert (root / "etc/se-hostkeys" / OLD.name).exists()
