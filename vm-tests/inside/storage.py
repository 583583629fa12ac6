"""The checks of test_storage.py, inside a guest: what is under ``secex_firstboot.storage``, on real devices.

Disks: serial ``facts`` (JSON: the names of the others, their root hashes and digests, padded with zeros),
``scratch`` (empty), ``null-keyslot`` (see check_reopen), SE-ready ones, which lose what they had. The result
has an answer under each name, or a text that begins with "failed" where a check raised.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secex_firstboot.agent import places, volumes
from secex_firstboot.agent.step import Context
from secex_firstboot.agent.steps import encrypt, partition
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import write_private
from secex_firstboot.storage import (
    cryptsetup,
    devicemapper,
    disk,
    encrypted,
    filesystem,
    plan,
    reopen,
    verity,
)
from secex_firstboot.storage.cryptsetup import CryptSetup
from secex_firstboot.storage.devicemapper import Piece
from secex_firstboot.storage.disk import Disk
from secex_firstboot.storage.encrypted import Secrets
from secex_firstboot.storage.filesystem import FileSystem
from secex_firstboot.storage.plan import Plan, Source, VolumePlan
from secex_firstboot.storage.progress_record import Progress

MIB = 1 << 20
BLOCK = 4096
SCRATCH = Path("/run/scratch")
CHUNK = 4 * MIB  # copy_backwards' own
STARTED = time.monotonic()
RESULT: dict[str, Any] = {}


@contextmanager
def checks(group: str) -> Iterator[Callable[..., None]]:
    """``answer(name, function, ...)`` notes what the function returns, or how it failed."""
    answers = RESULT.setdefault(group, {})

    def answer(name: str, function: Callable[..., object], *arguments: object) -> None:
        print(f"[{time.monotonic() - STARTED:6.1f}] {group}: {name}", flush=True)
        try:
            answers[name] = function(*arguments)
        except Exception as error:
            traceback.print_exc()
            answers[name] = f"failed: {type(error).__name__}: {error}"
        print(f"    {answers[name]}", flush=True)

    yield answer


# --- devices ---


def size_of(device: Path) -> int:
    with device.open("rb", buffering=0) as stream:
        return stream.seek(0, os.SEEK_END)


def read(device: Path, offset: int, size: int = BLOCK) -> bytes:
    """What lies on the device, past the page cache."""
    return b"".join(bytes(part) for part in parts(device, offset, size))


def parts(device: Path, offset: int, size: int) -> Iterator[memoryview]:
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, MIB)
        while size:
            count = os.preadv(descriptor, [memoryview(buffer)[: min(size, MIB)]], offset)
            assert count, f"{device} ends at {offset}"
            yield memoryview(buffer)[:count]
            offset, size = offset + count, size - count
    finally:
        os.close(descriptor)


def write(device: Path, offset: int, content: bytes) -> None:
    descriptor = os.open(device, os.O_WRONLY | os.O_DIRECT)
    try:
        for at in range(0, len(content), MIB):
            piece = content[at : at + MIB]
            buffer = mmap.mmap(-1, len(piece))
            buffer.write(piece)
            assert os.pwritev(descriptor, [buffer], offset + at) == len(piece)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(device: Path, size: int) -> str:
    found = hashlib.sha256()
    for part in parts(device, 0, size):
        found.update(part)
    return found.hexdigest()


def read_error(device: Path, offset: int, size: int = BLOCK) -> str | None:
    """The error's name (EILSEQ …), or None if the bytes can be read."""
    try:
        read(device, offset, size)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


def flip_bit(device: Path, address: int) -> None:
    start = address // BLOCK * BLOCK
    content = bytearray(read(device, start))
    content[address - start] ^= 1
    write(device, start, bytes(content))


@contextmanager
def flipped_bit(device: Path, address: int) -> Iterator[None]:
    flip_bit(device, address)
    try:
        yield
    finally:
        flip_bit(device, address)


def mappings() -> list[str]:
    return sorted(path.name for path in devicemapper.MAPPER.iterdir() if path.name != "control")


@contextmanager
def opened_with_journal(secrets: Secrets, device: Path, name: str) -> Iterator[Path]:
    try:
        yield encrypted.open_volume(secrets, device, name)
    finally:
        cryptsetup.close(name)


# --- one volume, made elsewhere and placed on a disk ---


def check_volume(device: Path, sector_size: int) -> None:
    secrets = encrypted.Secrets.below(SCRATCH / f"volume{sector_size}")
    contents = {0: os.urandom(MIB), 20 * MIB: os.urandom(MIB)}
    flipped, never_written = 100 * sector_size, 40 * MIB

    def prepare() -> int:
        encrypted.prepare(
            secrets, label="check", device_size=size_of(device), sector_size=sector_size, scratch=SCRATCH
        )
        encrypted.place(secrets, device)
        with CryptSetup(device, header=secrets.header) as handle:
            return handle.load_luks2().sector_size

    def write_without_journal() -> None:
        with encrypted.opened(secrets, device, "check") as opened:
            write(opened, 0, contents[0])

    def read_with_journal() -> bool:
        with opened_with_journal(secrets, device, "check") as opened:
            write(opened, 20 * MIB, contents[20 * MIB])
            return is_there(opened, 0)

    def read_without_header() -> bool:
        write(device, 0, bytes(cryptsetup.DATA_OFFSET))
        with encrypted.opened(secrets, device, "check") as opened:
            return all(is_there(opened, offset) for offset in contents)

    def is_there(opened: Path, offset: int) -> bool:
        return read(opened, offset, MIB) == contents[offset]

    def errors() -> list[str | None]:
        address = encrypted._layout(sector_size).data_address(flipped) + 7
        with flipped_bit(device, address), encrypted.opened(secrets, device, "check") as opened:
            offsets = [*(flipped + step * sector_size for step in (-1, 0, 1)), never_written]
            return [read_error(opened, offset, sector_size) for offset in offsets]

    def open_with_wrong_key() -> object:
        with CryptSetup(device, header=secrets.header) as handle:
            handle.load_luks2()
            try:
                handle.activate("check", bytearray(os.urandom(encrypted.KEY_SIZE)))
            except FirstbootError as error:
                return [str(error), mappings()]
        cryptsetup.close("check")
        return "opened"

    with checks(f"volume {sector_size}") as answer:
        answer("sector size", prepare)
        answer("written without journal", write_without_journal)
        answer("read with journal", read_with_journal)
        answer("read without header on disk", read_without_header)
        answer("read errors", errors)
        answer("wrong key", open_with_wrong_key)
        answer("room", check_room, device, sector_size)


def check_room(device: Path, sector_size: int) -> dict[int, int]:
    """Source size -> bytes of the volume beyond source and tail, on the least device for it."""
    rooms: dict[int, int] = {}
    for size in (16 * MIB - encrypted.TAIL_SIZE, 16 * MIB - encrypted.TAIL_SIZE + BLOCK):
        needed = encrypted.required_device_size(size, sector_size)
        secrets = encrypted.Secrets.below(SCRATCH / "room")
        encrypted.prepare(
            secrets, label="check", device_size=needed, sector_size=sector_size, scratch=SCRATCH
        )
        below = devicemapper.create_linear("below", [Piece(device, 0, needed)])
        try:
            encrypted.place(secrets, below)
            with encrypted.opened(secrets, below, "check") as opened:
                rooms[size] = size_of(opened) - size - encrypted.TAIL_SIZE
        finally:
            devicemapper.remove("below")
    return rooms


# --- a volume that Ignition made, opened anew ---


def check_reopen(scratch: Path, null_keyslot: Path) -> None:
    """``null_keyslot`` is a disk with a LUKS2 header whose keyslot every key opens."""
    key, key_file, header = bytearray(os.urandom(64)), SCRATCH / "key", SCRATCH / "reopened.header"
    write_private(key_file, key)
    device = devicemapper.create_linear("partition", [Piece(scratch, 0, 32 * MIB)])

    def cryptsetup_opens(device: Path, *options: str | Path) -> bool:
        return subprocess.run(["cryptsetup", "luksOpen", device, "--key-file", key_file, *options],
                              capture_output=True).returncode == 0  # fmt: skip

    def reopen_volume() -> list[bool]:
        """The last: what was written before is there, without the header on the disk."""
        options: list[str | Path]
        options = ["--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--key-file", key_file]
        subprocess.run(["cryptsetup", "luksFormat", *options, device], check=True)
        assert cryptsetup_opens(device, "owned")
        content = os.urandom(MIB)
        write(devicemapper.MAPPER / "owned", 0, content)
        before = devicemapper.crypt_mode("owned")
        found = [reopen.device_below("owned").stat().st_rdev == device.stat().st_rdev]
        reopen.reopen("owned", reopen.device_below("owned"), bytearray(key), header, SCRATCH)
        found += [reopen.is_open(header, "owned"), devicemapper.crypt_mode("owned") == before]
        cryptsetup.close("owned")
        write(device, 0, bytes(MIB))
        assert cryptsetup_opens(device, "owned", "--header", header)
        found.append(read(devicemapper.MAPPER / "owned", 0, MIB) == content)
        cryptsetup.close("owned")
        return found

    def reopen_null_keyslot() -> object:
        """[whether cryptsetup opens it with our key, the refusal, mappings left]"""
        opens = cryptsetup_opens(null_keyslot, "owned")
        mode = devicemapper.crypt_mode("owned").split()[1]
        try:
            reopen.reopen("owned", null_keyslot, bytearray(key), header, SCRATCH)
        except FirstbootError as error:
            return [opens, mode, str(error)]
        finally:
            cryptsetup.close("owned")
        return "opened anew"

    with checks("reopen") as answer:
        answer("reopened", reopen_volume)
        answer("null keyslot", reopen_null_keyslot)
    devicemapper.remove("partition")


# --- an SE-ready disk, as the steps encrypt it ---


Moment = tuple[Progress, int | None]  # what is to be recorded, and with which figure


class Cut(Exception):
    """The power is cut."""


class CutEncryption(encrypt.Encryption):
    """Fails at the first time each of ``cuts`` is to be recorded: done, but no later start knows of it."""

    def __init__(self, *arguments: Any, cuts: list[Moment], digests: list[str]) -> None:
        super().__init__(*arguments)
        self.cuts, self.digests = cuts, digests

    def _note(self, progress: Progress, copied_from: int | None = None) -> None:
        if progress is Progress.COPIED and not self.digests:
            with encrypted.opened(self.secrets, self.partition, "check") as opened:
                self.digests.append(digest(opened, self.volume_plan.source_size))
        if (progress, copied_from) in self.cuts:
            self.cuts.remove((progress, copied_from))
            raise Cut
        super()._note(progress, copied_from)


@contextmanager
def partitions_of(device: Path) -> Iterator[Disk]:
    """Only one disk with the partitions of an SE-ready image at a time; the others' are hidden."""
    subprocess.run(["partx", "--add", device], check=True, capture_output=True)
    subprocess.run(["udevadm", "settle"], check=True)
    try:
        yield disk.find_disk()
    finally:
        subprocess.run(["partx", "--delete", device], check=True, capture_output=True)
        subprocess.run(["udevadm", "settle"], check=True)


def lay_out(found: Disk, root_hashes: dict[str, str], headroom: int) -> Plan:
    """What verity and personalise do: look through dm-verity, plan, make keys and headers."""
    sources = []
    for name in ("boot", "root"):
        data, tree = found.partitions[name].device, found.partitions[f"{name}hash"].device
        verified = verity.open_verified(data, tree, "check", root_hashes[name])
        file_system = filesystem.identify(verified, name)
        size = verity.data_size("check")
        cryptsetup.close("check")
        sources.append(Source(root_hash=root_hashes[name], size=size, file_system=file_system))
    boot, root = sources
    made = plan.lay_out(found, boot, root, headroom, "5e" * 32)
    write_private(places.PLAN, made.model_dump_json().encode())
    write_private(places.COMMITTED, b"")
    for each in made.volumes:
        encrypted.prepare(volumes.secrets_of(each.name), label=each.label, device_size=each.partition.size,
                       sector_size=each.sector_size, scratch=SCRATCH)  # fmt: skip
    return made


def run_encryption(made: Plan, name: str, cuts: list[Moment], digests: list[str]) -> None:
    """Run it to its end, started again after each cut."""
    chosen = made.boot if name == "boot" else made.root
    se = disk.find_disk().partitions["se"].device
    while True:
        with filesystem.mounted(se, places.SE_MOUNT, type="ext4") as where:
            try:
                CutEncryption(Context(""), made, chosen, where, cuts=cuts, digests=digests).run()
                return
            except Cut:
                print(f"{name} was cut; left: {cuts}", flush=True)


def check_se_disk(serial: str, facts: dict[str, Any], headroom: int) -> None:
    with partitions_of(disk.find_by_serial(serial)) as found, checks(serial) as answer:
        answer("wrong root hash", open_with_wrong_hash, found, facts["root hashes"]["root"])
        answer("damaged blocks", read_damaged_blocks, found, facts["root hashes"]["root"])
        made = lay_out(found, facts["root hashes"], headroom)
        partition.GrowPartition().perform(Context(""))
        cuts = cuts_of(made.root) if facts["interrupted"] else [(Progress.FINISHED, None)]
        answer("sector sizes", lambda: [each.sector_size for each in made.volumes])
        if facts["interrupted"]:
            answer("bad source", encrypt_bad_source, made, cuts)
        else:
            subprocess.run(["dmesg", "--clear"], check=True)
        for name in facts["encrypted"]:
            answer(f"content of {name}", encrypt_volume, made, name, cuts if name == "root" else [])
        answer("integrity errors", integrity_errors)
        for name in facts["encrypted"]:
            answer(f"file system of {name}", check_file_system, name)
        answer("growth of root", lambda: identify("root").size - made.root.file_system_size)
        answer("read errors", read_errors_of_root, made)
        for name in facts["encrypted"]:
            cryptsetup.close(name)


def identify(name: str) -> FileSystem:
    return filesystem.identify(devicemapper.MAPPER / name, name)


def open_with_wrong_hash(found: Disk, root_hash: str) -> list[object]:
    """[refusal, mappings left, the right one opens]"""
    data, tree = (found.partitions[name].device for name in ("root", "roothash"))
    wrong = root_hash[:-1] + ("0" if root_hash[-1] != "0" else "1")
    try:
        verity.open_verified(data, tree, "check", wrong)
        refusal = ""
    except FirstbootError as error:
        refusal = str(error)
    left = mappings()
    right = verity.open_verified(data, tree, "check", root_hash)
    reads = read_error(right, 0)
    cryptsetup.close("check")
    return [refusal, left, reads]


def read_damaged_blocks(found: Disk, root_hash: str) -> dict[str, object]:
    """What comes of a block of zeros, and of another one, once each has a flipped bit."""
    data, tree = (found.partitions[name].device for name in ("root", "roothash"))
    content, nothing = read(data, 0, size_of(data)), bytes(BLOCK)
    blocks = {content[at : at + BLOCK] == nothing: at for at in range(0, len(content), BLOCK)}
    zeros, other = blocks[True], blocks[False]
    with flipped_bit(data, zeros + 7), flipped_bit(data, other + 7):
        verified = verity.open_verified(data, tree, "check", root_hash)
        made: dict[str, object] = {
            "zeros": read(verified, zeros) == nothing,
            "other": read_error(verified, other),
        }
        cryptsetup.close("check")
    return made


def encrypt_bad_source(made: Plan, cuts: list[Moment]) -> list[object]:
    """[refusal, the flipped byte, mappings left]"""
    at = made.root.source_size * 5 // 8 + 5
    assert at > made.root.saved_head.size  # so it is read where it always was
    refusal = ""
    with flipped_bit(disk.find_disk().partitions["root"].device, at):
        try:
            run_encryption(made, "root", cuts, [])
        except FirstbootError as error:
            refusal = str(error)
    return [refusal, at, mappings()]


def cuts_of(chosen: VolumePlan) -> list[Moment]:
    """Before the flipped bit: while saving, placing, and copying; afterwards: at the end of the copy, and
    when the file system has grown."""
    return [
        (Progress.SAVED, None),
        (Progress.PLACED, chosen.source_size),
        (Progress.PLACED, chosen.source_size - 3 * CHUNK),
        (Progress.COPIED, None),
        (Progress.FINISHED, None),
    ]


def encrypt_volume(made: Plan, name: str, cuts: list[Moment]) -> list[object]:
    """[digest of what was copied, cuts that never happened]"""
    seen: list[str] = []
    run_encryption(made, name, cuts, seen)
    return [*seen, [str(cut) for cut in cuts]]


def integrity_errors() -> list[str]:
    """What the kernel says of sectors that cannot be read, once udev has nothing left to look at."""
    subprocess.run(["udevadm", "settle"], check=True)
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    return [line for line in log.splitlines() if "AEAD ERROR" in line or "I/O error" in line]


def check_file_system(name: str) -> object:
    device = devicemapper.MAPPER / name
    tool = {"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n"]}[identify(name).type]
    done = subprocess.run([*tool, device], capture_output=True, text=True)
    return [tool[0], done.returncode, (done.stdout + done.stderr)[-400:] if done.returncode else ""]


def read_errors_of_root(made: Plan) -> list[str | None]:
    """At both ends, and between headroom and tail: never written, so a thin disk stays thin."""
    device = devicemapper.MAPPER / "root"
    end = size_of(device)
    start = max(made.root.source_size, identify("root").size)
    middle = (start + end - encrypted.TAIL_SIZE) // 2 // BLOCK * BLOCK
    return [read_error(device, at) for at in (0, middle, end - BLOCK)]


def main() -> None:
    SCRATCH.mkdir(mode=0o700)
    places.RUNTIME.mkdir(mode=0o700, parents=True, exist_ok=True)
    with disk.find_by_serial("facts").open("rb") as stream:
        facts = json.loads(stream.read().rstrip(b"\0"))
    scratch = disk.find_by_serial("scratch")
    for serial in facts["disks"]:
        subprocess.run(["partx", "--delete", disk.find_by_serial(serial)], check=True, capture_output=True)
    for sector_size in (4096, 512):
        check_volume(scratch, sector_size)
    check_reopen(scratch, disk.find_by_serial("null-keyslot"))
    for serial, of in facts["disks"].items():
        try:
            check_se_disk(serial, of, facts["headroom"])
        except Exception:
            traceback.print_exc()  # the answers that are missing fail their tests
    RESULT["mappings left"] = mappings()
    RESULT["seconds"] = round(time.monotonic() - STARTED)
    print("RESULT " + json.dumps(RESULT), flush=True)


main()
