"""The running system: whether first boot made it, and which of its boot images it has started from."""

from __future__ import annotations

from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import exists
from secex_firstboot.contract import parameters, paths


def check_provisioned(root: Path, nothing: str) -> None:
    """Raise Refusal if first boot did not set up the system on ``root``; ``nothing`` says what follows."""
    if not exists(paths.below(root, paths.LUKS_KEYS / "root")):
        raise Refusal("SX-SYSTEM-01", "this system was not set up by secex-firstboot", nothing)


def generation(context: Context) -> int:
    """The number of the boot image that runs; 0 in first boot's own session. Raises Refusal."""
    return parameters.value(context.command_line, parameters.GENERATION)
