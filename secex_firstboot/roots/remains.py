"""What only first boot needed, on partition se and in the root file system."""

from __future__ import annotations

from pathlib import Path

from secex_firstboot.basic.files import sync, write_private
from secex_firstboot.contract import paths
from secex_firstboot.roots import overlay
from secex_firstboot.roots.kinds import Root
from secex_firstboot.sdboot import boot_record
from secex_firstboot.storage import progress_record


def remove(se: Path, root: Root) -> None:
    """Remove what only first boot needed; as long as some of it is there, the system does this again.

    The mark that stops an earlier boot image that is put back comes before the overlay's directory goes:
    without that, nothing shows that Ignition has run.
    """
    boot_record.tidy(se)
    progress_record.remove(se)
    sync(se)
    write_private(root.state(paths.SEALED), b"")
    overlay.remove(root.volume)
