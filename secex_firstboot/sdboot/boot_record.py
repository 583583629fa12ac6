"""Making an image on ``se`` what the firmware starts: zipl, and the order that survives a power cut.

The new image is complete on disk before zipl runs, and the old one stays until zipl has succeeded. zipl
writes a new boot map beside the old one and replaces the boot record, one block, last (zipl(8),
--targetbase).
"""

from __future__ import annotations

from pathlib import Path

from secex_firstboot.files import sync
from secex_firstboot.process import run
from secex_firstboot.storage.disk import Disk

IMAGE = "sdboot"
NEW_IMAGE = "sdboot.new"


def install(se: Path, disk: Disk) -> None:
    """Make ``sdboot.new`` on the mounted partition ``se`` the image that boots, and then the only one."""
    run(
        [
            "zipl",
            f"--target={se}",
            f"--image={se / NEW_IMAGE}",
            f"--targetbase={disk.device}",
            "--targettype=SCSI",
            f"--targetblocksize={disk.block_size}",
            f"--targetoffset={disk.partitions['se'].start // disk.block_size}",
        ]
    )
    sync(disk.device)
    # The boot map names blocks, not files: renaming does not touch what was made bootable.
    (se / NEW_IMAGE).replace(se / IMAGE)
    sync(se)
