"""Measure, inside a guest: copying a volume through dm-verity into LUKS2, and building an image.

Disks: serial ``source`` (content), ``tree`` (its hash tree; the root hash in the first 64 bytes of the disk
with serial ``hash``), the same of zeros as ``free``, ``free-tree`` and ``free-hash``; ``target``. Each figure
is taken several times, the ones to be compared in turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from secex_firstboot.hostkeys.key import HostKey
from secex_firstboot.sdboot import create, image
from secex_firstboot.storage import cryptsetup, disk, encrypted, verity
from secex_firstboot.storage.backward_copy import copy_backwards

MIB = 1 << 20
SIZE = 96 * MIB
ROUNDS = 3


def seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return round(time.monotonic() - started, 2)


def dd(*operands: str) -> None:
    command = ["dd", "bs=4M", f"count={SIZE // (4 * MIB)}", *operands]
    subprocess.run(command, check=True, capture_output=True)


def write(target: Path) -> None:
    dd("if=/dev/zero", f"of={target}", "oflag=direct", "conv=fdatasync")


def read(source: Path) -> None:
    dd(f"if={source}", "of=/dev/null", "iflag=direct")


def copying(source: Path, target: Path) -> None:
    copy_backwards(
        source, target, SIZE, on_chunk_durable=lambda offset: None, progress=lambda done, total: None
    )


def opened(data: str, tree: str, root_hash: str) -> Path:
    proven_by = disk.find_by_serial(root_hash).read_bytes()[:64].decode()
    return verity.open_verified(
        disk.find_by_serial(data), disk.find_by_serial(tree), f"bench_{data}", proven_by
    )


def measure_copy(scratch: Path) -> list[dict[str, float]]:
    """Seconds: of the copy, of one of nothing but zeros, and of its parts, each alone: writing, reading,
    reading through dm-verity.
    """
    source, target = disk.find_by_serial("source"), disk.find_by_serial("target")
    with target.open("rb") as stream:
        device_size = stream.seek(0, os.SEEK_END)
    secrets = encrypted.Secrets.below(scratch / "volume")
    encrypted.prepare(secrets, label="bench", device_size=device_size, sector_size=4096, scratch=scratch)
    encrypted.place(secrets, target)
    rows = []
    verified, free = opened("source", "tree", "hash"), opened("free", "free-tree", "free-hash")
    with encrypted.opened(secrets, target, "bench_target") as volume:
        for _ in range(ROUNDS):
            row = {
                "copy": seconds(lambda: copying(verified, volume)),
                "zeros": seconds(lambda: copying(free, volume)),
                "write": seconds(lambda: write(volume)),
                "read": seconds(lambda: read(source)),
                "verify": seconds(lambda: read(verified)),
            }
            print(row, flush=True)
            rows.append(row)
    for name in ("bench_source", "bench_free"):
        cryptsetup.close(name)
    return rows


def measure_build(scratch: Path) -> float:
    """A 100 MiB image; noise instead of a kernel, which no builder looks into."""
    kernel, ramdisk = scratch / "kernel", scratch / "ramdisk"
    kernel.write_bytes(b"\0" * 0x20000)
    with ramdisk.open("wb") as stream:
        for _ in range(100):
            stream.write(os.urandom(MIB))
    key = HostKey(ec.generate_private_key(ec.SECP521R1()).public_key())
    with (scratch / "image").open("wb") as output:
        return seconds(
            lambda: image.build(
                output,
                kernel=kernel,
                ramdisk=[ramdisk],
                command_line="",
                host_keys=[key],
                boot_loaders=create.find_boot_loaders(),
            )
        )


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/run") as scratch:
        rows = measure_copy(Path(scratch))
        build = measure_build(Path(scratch))
    print("RESULT " + json.dumps({"MiB": SIZE // MIB, "rows": rows, "build seconds": build}))


main()
