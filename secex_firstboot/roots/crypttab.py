"""crypttab(5) of the provisioned system: what Ignition put there for volumes of its own, and our lines.

For each volume of ours that is a comment as well, with what check-volume compares: so whoever takes crypttab
into an initramfs, as libostree does, takes that along.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import exists
from secex_firstboot.contract import paths

_LIMIT = 1 << 20  # bytes
_MADE = "# secex-firstboot {}: "  # dracut/check-volume.sh and check-root.sh read it


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
    names = {_volume(line) for line in mine}
    others = [line for line in dict.fromkeys(existing.split(b"\n")) if line not in mine and line.strip()]
    for line in others:
        if (name := _volume(line)) in names:
            raise Refusal(
                "SX-ROOT-02",
                f"{paths.CRYPTTAB} has another line for the volume {name.decode()}",
                "build the image, and write the config, without it: first boot makes this volume",
            )
    return b"".join(line + b"\n" for line in [*others, *mine])


def of(names: Collection[str], content: bytes) -> bytes:
    """The lines of these volumes, as they are."""
    lines = [line for line in content.split(b"\n") if _volume(line).decode(errors="replace") in names]
    return b"".join(line + b"\n" for line in lines)


def made(name: str, mode: str) -> str:
    """The line that says as what first boot made a volume, see devicemapper.crypt_mode."""
    return f"{_MADE.format(name)}{mode}"


def mode(name: str, content: str) -> str | None:
    """What ``made`` noted; None if that is not there, or not once."""
    start = _MADE.format(name)
    found = [line.removeprefix(start) for line in content.split("\n") if line.startswith(start)]
    return found[0] if len(found) == 1 else None


def _volume(line: bytes) -> bytes:
    """That which the line is about; nothing, or no name, if it is about none."""
    words = [*line.split(), b"", b"", b""]
    return words[2].removesuffix(b":") if words[:2] == _MADE.encode().split()[:2] else words[0]


def read(path: Path) -> bytes:
    """What the file holds; nothing, if there is none."""
    return path.read_bytes() if exists(path) else b""
