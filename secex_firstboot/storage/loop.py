"""A file as a block device, for tools that want one: what they write is looked at and placed by us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.basic.process import run


def detach_all(file: Path) -> None:
    """Detach the loop devices over ``file`` that somebody has left who was killed."""
    for device in run(["losetup", f"--associated={file}", "--noheadings", "--output=NAME"]).split():
        run(["losetup", "--detach", device])


@contextmanager
def attached(file: Path, *, block_size: int) -> Iterator[Path]:
    """A loop device over ``file`` with logical blocks of ``block_size`` bytes, for a ``with`` block."""
    device = Path(run(["losetup", "--find", "--show", f"--sector-size={block_size}", file]).strip())
    try:
        yield device
    finally:
        run(["losetup", "--detach", device])
