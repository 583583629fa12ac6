"""The root file system of a provisioned guest, as far as ``secex status`` looks at it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from secex_firstboot.contract import boot_image as images
from secex_firstboot.contract.boot_image import Image, Images
from secex_firstboot.contract.report import Report, StepReport
from secex_firstboot.roots import crypttab
from support import TEST_VECTORS

REPORT = Report(
    version="0.1.0",
    peak_memory_mib=500,
    total_memory_mib=981,
    steps=[StepReport(name="platform", seconds=0.5, outcome="done")],
    warnings=["a warning"],
)


MODES = {
    "boot": "CRYPT-LUKS2-2-boot aes sector_size:4096",
    "root": "CRYPT-LUKS2-1-root aes sector_size:4096",
}

IMAGES = Images(
    newest=Image(
        generation=3,
        identity="0f" * 32,
        kernel="7.2.1-s390x",
        state=images.State.FAILED,
        inputs={"kernel": "f0" * 32},
    ),
    fallback=Image(generation=2, identity="1f" * 32, kernel="6.12.1-s390x", state=images.State.UP, inputs={}),
)


def make(root: Path) -> Path:
    files = {
        "etc/luks/root": "",
        "etc/luks/boot": "",
        "etc/crypttab": "".join(f"{crypttab.made(name, mode)}\n" for name, mode in MODES.items()),
        "etc/luks/sealed": "",
        "var/lib/secex-firstboot/report.json": REPORT.model_dump_json(),
        "etc/luks/boot-image/images.json": IMAGES.model_dump_json(),
        "var/lib/secex-firstboot/grown": "",
        "proc/sys/kernel/osrelease": "6.12.1-s390x\n",
        "usr/lib/dracut/dracut-version.sh": "#!/bin/sh\nDRACUT_VERSION=106-6\n",
        "usr/lib/s390x-linux-gnu/systemd/libsystemd-shared-257.so": "",
        "usr/lib/modules/6.12.1-s390x/modules.dep": "",
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    documents = root / "etc/se-hostkeys"
    (documents / "certs").mkdir(parents=True)
    for name in "ab":
        shutil.copy(TEST_VECTORS / f"se-image/host-{name}.crt", documents / f"ibm-z-hostkey-{name}")
    return root


def make_headers(root: Path) -> None:
    """By cryptsetup, without dm-integrity, which needs the kernel's help. Behind those of ours is the key."""
    for name in ("boot", "root", "my-data"):
        device, header = root / f"{name}.device", root / f"{name}.header"
        with device.open("wb") as stream:
            stream.truncate(32 << 20)
        options = "--type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-size 512"
        options += " --sector-size 4096 --luks2-metadata-size 16k --luks2-keyslots-size 512k --offset 8192"
        command: list[str | Path]
        command = ["cryptsetup", "luksFormat", *options.split(), "--batch-mode", "--key-file", "-", device]
        subprocess.run(command, input=b"key", check=True)
        backup: list[str | Path] = ["cryptsetup", "luksHeaderBackup", device, "--header-backup-file", header]
        subprocess.run(backup, check=True)
        device.unlink()
        ours = name in MODES
        with (root / "etc/luks" / (name if ours else header.name)).open("wb") as stream:
            stream.write(header.read_bytes() + b"key" * ours)
        header.unlink()
