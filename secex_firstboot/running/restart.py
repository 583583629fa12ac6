"""What the machine starts at the guest's next restart."""

from __future__ import annotations

from contextlib import suppress
from pathlib import PurePath

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import exists
from secex_firstboot.contract import paths, settings
from secex_firstboot.roots.kinds import Root

# Linux: arch/s390/kernel/ipl.c; the type is a directory beside it.
_REIPL = PurePath("/sys/firmware/reipl")


def ask_for(root: Root, entry: int) -> None:
    """Let the machine start this entry of the boot map.

    What a guest has asked for stays until it asks for another: Linux takes what it was started with for what
    a restart, and a panic, shall start (reipl_block_ccw_fill_parms). Raises FirstbootError if the machine
    does not let it choose.
    """
    _ask_for(root, str(entry))


def take_back(root: Root) -> None:
    """Let the machine start what it does if nobody chooses; one that lets no guest choose does so anyway."""
    with suppress(FirstbootError):
        _ask_for(root, "")


def _ask_for(root: Root, loadparm: str) -> None:
    where = root.place(_REIPL)
    try:
        kind = where / (where / "reipl_type").read_text().strip()
        (kind / "loadparm").write_text(f"{loadparm}\n")
        if exists(kind / "clear"):
            (kind / "clear").write_text("1\n")  # nothing of this start is left in memory for the next
    except OSError as error:
        raise FirstbootError(
            "SX-SYSTEM-02",
            f"this machine does not let the guest choose what starts next: {error.strerror}",
            f"set {settings.FALLBACK.key}={settings.Fallback.DIRECT} in {paths.SETTINGS}",
        ) from error
