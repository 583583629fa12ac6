"""The least tree that an SE-ready image can be made of; it starts nothing."""

from __future__ import annotations

import struct
from pathlib import Path

from secex_firstboot.sdboot.initramfs import File, write_archive
from support import TEST_VECTORS

RELEASE = "7.1.0-s390x"
_KERNEL_MAGIC_AT = 0x10008
_VECTOR = TEST_VECTORS / "se-image/two-keys.img"
_STAGE3A, _STAGE3A_END, _ARGUMENTS = 0x10000, 0x13000, 24  # in that; bytes
OPTIONS = "root=/dev/mapper/root rw init_on_free=1 systemd.gpt_auto=0 fsck.mode=skip"


def make(tree: Path) -> Path:
    """A kernel by its looks, an initramfs with the agent by its names, boot loaders by their size."""
    files = {
        f"boot/vmlinuz-{RELEASE}": _kernel(),
        "etc/os-release": b'PRETTY_NAME="The Test Linux"\n',
        "etc/shadow": b"root:*:20000:0:99999:7:::\ndaemon:!*:20000::::::\n",
        "usr/lib/os-release": b'PRETTY_NAME="The Test Linux"\n',
        "usr/lib/python3/dist-packages/secex_firstboot/__init__.py": b'__version__ = "0.1.0"\n',
        "usr/bin/program": bytes(range(256)) * 4000,
        "var/lib/empty": b"",
        "usr/share/s390-tools/pvimg/stage3a.bin": _stage3a(),
        "usr/share/s390-tools/pvimg/stage3b_reloc.bin": b"stage3b".ljust(9000, b"\1"),
        "usr/lib/s390-tools/stage3.bin": b"stage3".ljust(16 << 10, b"\1"),
    }
    for name, content in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    make_initramfs(tree / f"boot/initrd.img-{RELEASE}")
    (tree / "usr/bin/link").symlink_to("program")
    (tree / "usr/bin/hard-link").hardlink_to(tree / "usr/bin/program")
    return tree


AGENT = (
    "/usr/lib/secex-firstboot/check-root",
    "/usr/lib/python3/dist-packages/secex_firstboot/ignition/signers.pyc",
)


def make_initramfs(path: Path, *names: str) -> None:
    write_archive(path, {name: File(b"#!/bin/sh\n", 0o755) for name in names or AGENT})
    path.chmod(0o644)


def _stage3a() -> bytes:
    """IBM's, which says where the image's parameters are; blank again."""
    found = _VECTOR.read_bytes()[_STAGE3A:_STAGE3A_END].rstrip(b"\0")
    return found[:-_ARGUMENTS] + bytes(_ARGUMENTS)


def _kernel() -> bytes:
    kernel = bytearray(200 << 10)
    struct.pack_into(">6s", kernel, _KERNEL_MAGIC_AT, b"S390EP")
    return bytes(kernel)
