"""A file as a block device, for tools that want one: what they write is looked at and placed by us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.basic.process import run


@contextmanager
def attached(file: Path, *, block_size: int) -> Iterator[Path]:
    """A loop device over ``file`` with logical blocks of ``block_size`` bytes, for a ``with`` block."""
    device = Path(run(["losetup", "--find", "--show", f"--sector-size={block_size}", file]).strip())
    try:
        yield device
    finally:
        run(["losetup", "--detach", device])
