"""Provision a root the usual way, inside a guest: into RAM, format with a wipe, a new file system, and back.

Disks: ``system`` (the SE-ready image), ``hash`` (its root hash, in the first 64 bytes), ``target`` (empty, as
large as root becomes). The programs are those of the root itself, first on its volume, then from its copy.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from secex_firstboot.agent.report import MemorySampler
from secex_firstboot.storage import cryptsetup, disk, verity

SOURCE, RAM, TARGET = (Path("/usual-way", name) for name in ("source", "ram", "target"))
KEY_FILE = Path("/run/usual-way-key")
# As first boot makes its volumes; a random key needs no costly derivation.
CIPHER = ["--cipher=aes-xts-plain64", "--integrity=hmac-sha256", "--sector-size=4096"]
DERIVATION = ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"]


def run(*command: str | Path, root: str | Path = "/") -> None:
    """As in chroot(1), which the initramfs does not have."""
    print("+", *command, flush=True)
    subprocess.run(command, check=True, preexec_fn=lambda: os.chroot(root), cwd=root)


def from_root(root: Path, *command: str | Path, mnt: Path | None = None) -> None:
    """Run a program of this root, which sees the directory ``mnt`` as /mnt."""
    places: dict[str | Path, str]
    places = {"/dev": "dev", "/proc": "proc", "/sys": "sys", "/run": "run"} | ({mnt: "mnt"} if mnt else {})
    for source, name in places.items():
        run("mount", "--bind", source, root / name)
    try:
        run(*command, root=root)
    finally:
        for name in places.values():
            run("umount", root / name)


def copy(source: Path, target: Path) -> None:
    from_root(source, "cp", "--archive", "--one-file-system", "/.", "/mnt", mnt=target)


def save() -> None:
    """Everything of the root, into compressed RAM."""
    root, tree = (Path("/dev/disk/by-partlabel", name) for name in ("root", "roothash"))
    root_hash = disk.find_by_serial("hash").read_bytes()[:64].decode()
    run("mount", "-o", "ro", verity.open_verified(root, tree, "usual_source", root_hash), SOURCE)
    status = os.statvfs(SOURCE)
    from_root(SOURCE, "modprobe", "zram")
    size = status.f_blocks * status.f_frsize
    Path("/sys/block/zram0/disksize").write_text(str(size), encoding="ascii")
    from_root(SOURCE, "mkfs.ext4", "-q", "-O", "^has_journal", "/dev/zram0")
    run("mount", "/dev/zram0", RAM)
    copy(SOURCE, RAM)
    run("umount", SOURCE)
    cryptsetup.close("usual_source")


def make_volume(target: Path) -> None:
    """With a wipe, so that every sector has its integrity tag."""
    options = [*CIPHER, *DERIVATION, f"--key-file={KEY_FILE}"]
    from_root(RAM, "cryptsetup", "luksFormat", "--batch-mode", *options, target)


def restore(target: Path) -> None:
    from_root(RAM, "cryptsetup", "open", f"--key-file={KEY_FILE}", target, "usual_target")
    from_root(RAM, "mkfs.xfs", "-q", "/dev/mapper/usual_target")
    run("mount", "/dev/mapper/usual_target", TARGET)
    copy(RAM, TARGET)
    run("umount", TARGET)
    from_root(RAM, "cryptsetup", "close", "usual_target")


def seconds(work: Callable[..., None], *arguments: Path) -> float:
    started = time.monotonic()
    work(*arguments)
    return round(time.monotonic() - started, 1)


def main() -> None:
    for path in (SOURCE, RAM, TARGET):
        path.mkdir(parents=True)
    KEY_FILE.write_bytes(os.urandom(64))
    target = disk.find_by_serial("target")
    memory = MemorySampler()
    with memory:
        result = {
            "save": seconds(save),
            "format": seconds(make_volume, target),
            "restore": seconds(restore, target),
        }
    print("RESULT " + json.dumps({"seconds": result, "peak memory": memory.peak_mib}))


main()
