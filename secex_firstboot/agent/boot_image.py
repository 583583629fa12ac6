"""What the two steps share that make a boot image."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context
from secex_firstboot.basic.files import exists
from secex_firstboot.contract import paths
from secex_firstboot.ignition import config, local_login
from secex_firstboot.ignition.config import Unit
from secex_firstboot.sdboot import boot_record, contents, options
from secex_firstboot.sdboot.boot_entry import BootEntry
from secex_firstboot.sdboot.initramfs import Entry
from secex_firstboot.storage.disk import Disk


def se_mounted(system_disk: Disk) -> AbstractContextManager[Path]:
    return boot_record.mounted(system_disk, places.SE_MOUNT)


def login_units() -> list[Unit]:
    """What forbids local logins; nothing, if the image allows them."""
    base = places.IGNITION_BASE_CONFIGS / paths.NO_LOCAL_LOGIN.name
    if not exists(base):
        return []
    return local_login.forbidden(base.read_bytes(), places.IGNITION_MERGED_CONFIG.read_bytes())


def system_command_line(of_entry: str) -> str:
    """For the final sdboot: the boot entry's options, as the config and the image want them."""
    merged = config.parse(places.IGNITION_MERGED_CONFIG.read_bytes())
    return options.system_command_line(
        of_entry, merged.kernel_arguments, *local_login.arguments(login_units())
    )


def build(
    context: Context, entry: BootEntry, se: Path, *, command_line: str, overlay: Mapping[str, Entry]
) -> None:
    """Write ``sdboot.new`` on ``se``, for the hosts whose documents were proven."""
    contents.build_sdboot(
        context,
        entry,
        se,
        command_line=command_line,
        overlay=overlay,
        documents=places.HOST_KEYS,
        archive=places.STATE.with_name("secex-firstboot-overlay.cpio"),
        scratch=places.RUNTIME,
    )
