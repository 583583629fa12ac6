"""What the two steps that build an sdboot share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from secex_firstboot import paths
from secex_firstboot.sdboot import boot_entry, boot_record, create
from secex_firstboot.sdboot.initramfs import Entry, write_archive
from secex_firstboot.step import Context

ROOT_DEVICE = "/dev/mapper/root"


def system_command_line(options: str) -> str:
    """The boot entry's options with the encrypted volume as root, whatever label or UUID they name."""
    return boot_entry.command_line(
        options, add=[f"root={ROOT_DEVICE}"], remove={"root", paths.CMDLINE_FIRSTBOOT}
    )


def build_sdboot(
    context: Context,
    entry: boot_entry.BootEntry,
    se: Path,
    *,
    command_line: str,
    overlay: Mapping[str, Entry],
) -> None:
    """Write ``sdboot.new`` on ``se``: kernel and initramfs of ``entry``, and ``overlay`` appended."""
    archive = paths.STATE.with_name("secex-firstboot-overlay.cpio")
    try:
        write_archive(archive, overlay)
        builder = create.create(
            se / boot_record.NEW_IMAGE,
            kernel=entry.linux,
            ramdisk=[*entry.initrd, archive],
            command_line=command_line,
            host_key_documents=sorted(paths.HOST_KEYS.iterdir()),
            progress=lambda done, total: context.progress("build sdboot", done, total),
        )
    finally:
        archive.unlink(missing_ok=True)
    context.say(f"sdboot built with {builder}")
