"""Measure, inside a guest: copying a volume through dm-verity into LUKS2, and building an image.

Disks: serial ``source`` (content), ``tree`` (its hash tree; the root hash in the first 64 bytes of the disk
with serial ``hash``), ``target``. Each figure is taken several times, the ones to be compared in turn.
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


def dd(target: Path) -> None:
    command = ["dd", "if=/dev/zero", f"of={target}", "bs=4M", f"count={SIZE // (4 * MIB)}", "oflag=direct"]
    subprocess.run([*command, "conv=fdatasync"], check=True, capture_output=True)


def copying(source: Path, target: Path) -> None:
    copy_backwards(
        source, target, SIZE, on_chunk_durable=lambda offset: None, progress=lambda done, total: None
    )


def measure_copy(scratch: Path) -> list[dict[str, float]]:
    source, tree, target = (disk.find_by_serial(name) for name in ("source", "tree", "target"))
    root_hash = disk.find_by_serial("hash").read_bytes()[:64].decode()
    with target.open("rb") as stream:
        device_size = stream.seek(0, os.SEEK_END)
    secrets = encrypted.Secrets.below(scratch / "volume")
    encrypted.prepare(secrets, label="bench", device_size=device_size, sector_size=4096, scratch=scratch)
    encrypted.place(secrets, target)
    rows = []
    verified = verity.open_verified(source, tree, "bench_source", root_hash)
    with encrypted.opened(secrets, target, "bench_target") as opened:
        for _ in range(ROUNDS):
            row = {"copy": seconds(lambda: copying(verified, opened)), "dd": seconds(lambda: dd(opened))}
            print(row, flush=True)
            rows.append(row)
    cryptsetup.close("bench_source")
    return rows


def measure_build(scratch: Path) -> float:
    """A 100 MiB image; noise instead of a kernel, which no builder looks into."""
    kernel, ramdisk = scratch / "kernel", scratch / "ramdisk"
    kernel.write_bytes(b"\0" * 0x20000)
    with ramdisk.open("wb") as stream:
        for _ in range(100):
            stream.write(os.urandom(MIB))
    key = ec.generate_private_key(ec.SECP521R1()).public_key()
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
