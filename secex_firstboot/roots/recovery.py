"""What opens the disk without its hosts: left on ``se`` with every boot image, for recovery keys."""

from __future__ import annotations

import tempfile
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import exists, sync, write_private
from secex_firstboot.contract import paths
from secex_firstboot.contract.boot_image import Image
from secex_firstboot.contract.partitions import VOLUMES
from secex_firstboot.contract.recovery import MESSAGE, Recovery, Volume
from secex_firstboot.hostkeys import document, recovery_keys
from secex_firstboot.ignition import openpgp
from secex_firstboot.roots.system_image import SystemImage
from secex_firstboot.storage.disk import Disk


def leave(context: Context, se: Path, disk: Disk, image: SystemImage, made: Image) -> None:
    """Put the message on ``se``; without recovery keys there is none, nor one from before.

    A key that has expired since it was given stops nothing: the message from before opens as much.
    """
    path = se / MESSAGE
    if not image.recovery_keys:
        path.unlink(missing_ok=True)
        sync(se)
        return
    recipients = recovery_keys.of_files(image.recovery_keys)
    plain = _message(disk, image, made).padded()
    try:
        write_private(path, openpgp.encrypt(plain, recipients, Path(tempfile.gettempdir())))
    except Refusal as refusal:
        if not exists(path):
            raise
        context.say(f"{MESSAGE} stays as it was: {refusal}")


def _message(disk: Disk, image: SystemImage, made: Image) -> Recovery:
    hosts = (document.parse(name, content) for name, content in image.documents.items())
    opens = {name: image.files[str(paths.LUKS_KEYS / name)] for name in VOLUMES}
    boot, root = (Volume(partition=disk.partitions[name].uuid, opens=opens[name]) for name in VOLUMES)
    return Recovery(
        generation=made.generation,
        kernel=made.kernel,
        command_line=made.command_line,
        hosts=tuple(document.key_hash(each).hex() for each in hosts),
        boot=boot,
        root=root,
    )
