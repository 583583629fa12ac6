"""The running system: whether first boot made it."""

from __future__ import annotations

from pathlib import Path

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import exists
from secex_firstboot.contract import paths


def check_provisioned(root: Path, nothing: str) -> None:
    """Raise Refusal if first boot did not set up the system on ``root``; ``nothing`` says what follows."""
    if not exists(paths.below(root, paths.LUKS_KEYS / "root")):
        raise Refusal("SX-SYSTEM-01", "this system was not set up by secex-firstboot", nothing)
