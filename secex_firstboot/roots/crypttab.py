"""crypttab(5) of the provisioned system: what Ignition put there for volumes of its own, and our lines."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import exists
from secex_firstboot.contract import paths

_LIMIT = 1 << 20  # bytes


def merge(existing: bytes, ours: Sequence[str]) -> bytes:
    """``existing`` with the lines ``ours`` (without line ends) at the end; other lines stay, each once.

    Merging again changes nothing: Ignition's files stage and ours may run twice after a crash. Raises Refusal
    for another line that names one of our volumes.
    """
    if len(existing) > _LIMIT or b"\0" in existing:
        raise Refusal(
            "SX-ROOT-01",
            f"{paths.CRYPTTAB} of the image is no crypttab",
            "build the image with a crypttab as crypttab(5) says",
        )
    mine = [line.encode() for line in ours]
    names = {line.split()[0] for line in mine}
    others = [line for line in dict.fromkeys(existing.split(b"\n")) if line not in mine and line.strip()]
    for line in others:
        if (name := line.split()[0]) in names:
            raise Refusal(
                "SX-ROOT-02",
                f"{paths.CRYPTTAB} has another line for the volume {name.decode()}",
                "build the image, and write the config, without it: first boot makes this volume",
            )
    return b"".join(line + b"\n" for line in [*others, *mine])


def of(names: Collection[str], content: bytes) -> bytes:
    """The lines of these volumes, as they are."""
    lines = [
        line
        for line in content.split(b"\n")
        if line.split()[:1] and line.split()[0].decode(errors="replace") in names
    ]
    return b"".join(line + b"\n" for line in lines)


def read(path: Path) -> bytes:
    """What the file holds; nothing, if there is none."""
    return path.read_bytes() if exists(path) else b""
