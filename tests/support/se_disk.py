"""The disk of an SE-ready image as far as its layout goes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from secex_firstboot.contract.partitions import NUMBERS
from support import needs

MIB = 1 << 20


def make(tmp_path: Path, size: int) -> Path:
    """File systems and hash trees, no sdboot; ``size`` in MiB."""
    needs.require("sfdisk", "mkfs.ext4", "veritysetup", "qemu-img")
    sizes = {"se": 8, "boot": 64, "root": 48, "boothash": 2, "roothash": 2}
    raw, at, script = tmp_path / "image.raw", MIB, ["label: gpt"]
    raw.touch()
    os.truncate(raw, size * MIB)
    for name, mib in sizes.items():
        script.append(f"{NUMBERS[name]}: start={at // 512}, size={mib * MIB // 512}, name={name}")
        if name in ("boot", "root"):
            part = tmp_path / name
            part.touch()
            os.truncate(part, 32 * MIB)
            subprocess.run(["mkfs.ext4", "-q", "-b", "4096", part], check=True)
            subprocess.run(
                ["veritysetup", "format", part, tmp_path / f"{name}hash"], check=True, capture_output=True
            )
        if name != "se":
            with raw.open("r+b") as stream:
                stream.seek(at)
                stream.write((tmp_path / name).read_bytes())
        at += mib * MIB
    subprocess.run(["sfdisk", "--quiet", raw], input="\n".join(script), text=True, check=True)
    return raw
