"""The checks of test_grow.py, inside a guest: file systems grow over never-written sectors, and are killed.

Disks: ``scratch`` (empty), and for some of KINDS one each with a file system of SIZE bytes. The result has,
for each such kind, what ``check`` gathers.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import DeviceMissing
from secex_firstboot.roots import growing
from secex_firstboot.roots.kinds import Plain
from secex_firstboot.storage import cryptsetup, devicemapper, disk, encrypted, filesystem
from secex_firstboot.storage.backward_copy import copy_backwards
from secex_firstboot.storage.devicemapper import Piece
from secex_firstboot.storage.encrypted import Secrets
from secex_firstboot.storage.mounted import Mounted

MIB = 1 << 20
SIZE = 64 * MIB
STEP = 8 * MIB
CUTS = 3
# Sector size, bytes of the volume. xfs: 8 allocation groups of 16 MiB and less than it can use; 7 and a half.
# ext4: more than its first block group, which is 128 MiB; with 1 KiB blocks 15 block groups of 8 MiB,
# and less than it can use.
KINDS = {
    "xfs4096": (4096, 128 * MIB + 63 * 4096),
    "xfs512": (512, 120 * MIB),
    "ext4-4096": (4096, 140 * MIB),
    "ext4-1024": (512, 120 * MIB + 4096),
}

# kernel: include/uapi/linux/fs.h, fs/xfs/libxfs/xfs_fs.h (ext4 has the same as EXT4_IOC_SHUTDOWN)
FITRIM = 0xC0185879
XFS_IOC_GOINGDOWN, NO_LOG_FLUSH = 0x8004587D, struct.pack("=I", 2)

WHERE, SCRATCH, LOCK = Path("/run/root"), Path("/run/scratch"), Path("/run/secex-test/grow.lock")
ROOT = Plain(WHERE, WHERE)
STARTED = time.monotonic()
RESULT: dict[str, Any] = {}


def say(line: object) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f}] {line}", flush=True)


# --- devices ---


def read_error(device: Path, start: int, end: int) -> list[int | str] | None:
    """Read all bytes, past the page cache: [offset, name] of the first error, or None."""
    descriptor, buffer = os.open(device, os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, MIB)
    try:
        at = start
        while at < end:
            at += os.preadv(descriptor, [memoryview(buffer)[: min(MIB, end - at)]], at)
    except OSError as error:
        return [at, errno.errorcode[error.errno or 0]]
    finally:
        os.close(descriptor)
    return None


@contextmanager
def made_volume(kind: str) -> Iterator[Path]:
    """As first boot leaves it: the file system in its head, its tail zeroed, the rest never written."""
    sector_size, size = KINDS[kind]
    secrets = Secrets.below(SCRATCH / kind)
    device_size = encrypted.required_device_size(size - encrypted.TAIL_SIZE, sector_size)
    below = devicemapper.create_linear("below", [Piece(disk.find_by_serial("scratch"), 0, device_size)])
    encrypted.prepare(
        secrets, label="root", device_size=device_size, sector_size=sector_size, scratch=SCRATCH
    )
    encrypted.place(secrets, below)
    with encrypted.opened(secrets, below, "root") as device:
        source = disk.find_by_serial(kind)
        copy_backwards(source, device, SIZE, on_chunk_durable=lambda _: None, progress=lambda *_: None)
        encrypted.write_zeros(device, size - encrypted.TAIL_SIZE, encrypted.TAIL_SIZE, lambda *_: None)
    try:
        yield encrypted.open_volume(secrets, below, "root")
    finally:
        cryptsetup.close("root")
        devicemapper.remove("below")


# --- growing ---


def type_of(kind: str) -> str:
    return kind[: 4 if kind.startswith("ext4") else 3]


def mount(device: Path, kind: str) -> None:
    filesystem.mount(device, WHERE, type=type_of(kind))


def umount() -> None:
    subprocess.run(["umount", WHERE], check=True)


def grow_and_kill(device: Path, chance: random.Random) -> int:
    """Let a process grow until it has written a few MiB, then kill it a moment later; its exit status."""
    receiving, sending = os.pipe()
    if (child := os.fork()) == 0:
        try:

            def tell(label: str, done: int, total: int) -> None:
                os.write(sending, b".")

            growing.grow_all(Context("", progress=tell), ROOT, device, LOCK, step=STEP)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(sending)
    # At most 54 of at least 56 MiB in three times, so none of the three is finished.
    for _ in range(chance.randint(1, 17)):
        os.read(receiving, 1)
    time.sleep(chance.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.close(receiving)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def crash(device: Path, kind: str) -> None:
    """What a power cut leaves: nothing more is written, and the next mount replays the journal."""
    descriptor = os.open(WHERE, os.O_RDONLY)
    fcntl.ioctl(descriptor, XFS_IOC_GOINGDOWN, NO_LOG_FLUSH)
    os.close(descriptor)
    umount()
    mount(device, kind)


def grow_to_the_end(device: Path) -> int:
    """The most memory that waited to be written meanwhile, in KiB."""
    waiting: list[int] = []
    growing.grow_all(Context("", progress=lambda *_: waiting.append(dirty())), ROOT, device, LOCK, step=STEP)
    return max(waiting)


def dirty() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Dirty:", "Writeback:")))


# --- what reads over the whole file system ---


def digest() -> str:
    return hashlib.sha256((WHERE / "file").read_bytes()).hexdigest()


def trim() -> str | None:
    """As fstrim(8): the volume may not be able to, but must not fail otherwise."""
    descriptor = os.open(WHERE, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, FITRIM, struct.pack("=QQQ", 0, (1 << 64) - 1, 0))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        os.close(descriptor)
    return None


def look(device: Path, kind: str) -> list[object]:
    """[size, digest of the file, trim, exit status of the checkers and of blkid, what they complain of]"""
    size = Mounted.find(WHERE, device).size()
    seen = [size, digest(), trim()]
    umount()
    codes, words = [], ""
    checker = {"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n"]}[type_of(kind)]
    for tool in (checker, ["blkid", "-p"]):
        done = subprocess.run([*tool, device], capture_output=True, text=True)
        codes.append(done.returncode)
        words += (done.stdout + done.stderr)[-500:] if done.returncode else ""
    mount(device, kind)
    return [*seen, codes, words]


def check(kind: str, seed: int) -> None:
    answers = RESULT[kind] = {"stages": [], "exits": []}
    chance = random.Random(seed)  # noqa: S311
    say(f"{kind}, seed {seed}")
    with made_volume(kind) as device:
        _, size = KINDS[kind]
        answers["never written"] = read_error(device, SIZE, size)
        mount(device, kind)
        (WHERE / "file").write_bytes(chance.randbytes(MIB))
        os.sync()
        answers["digest"] = digest()
        for cut in range(CUTS):
            answers["exits"].append(grow_and_kill(device, chance))
            if cut != 1:
                crash(device, kind)
            answers["stages"].append(look(device, kind))
            say(answers["stages"][-1])
        answers["dirty"] = grow_to_the_end(device)
        answers["stamp"] = (WHERE / "var/lib/secex-firstboot/grown").exists()
        answers["stages"].append(look(device, kind))
        say(answers["stages"][-1])
        end = Mounted.find(WHERE, device).size()
        umount()
        answers["read error"] = read_error(device, 0, end)
        answers["complete"] = True


def main() -> None:
    SCRATCH.mkdir(mode=0o700)
    for kind in KINDS:
        try:
            disk.find_by_serial(kind)
        except DeviceMissing:
            continue
        try:
            check(kind, random.SystemRandom().randrange(1 << 32))
        except Exception:
            traceback.print_exc()  # the answers that are missing fail their tests
    RESULT["seconds"] = round(time.monotonic() - STARTED)
    print("RESULT " + json.dumps(RESULT), flush=True)


main()
