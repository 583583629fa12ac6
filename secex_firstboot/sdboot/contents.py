"""What goes into an sdboot."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import write_private
from secex_firstboot.hostkeys import document
from secex_firstboot.hostkeys.document import Document
from secex_firstboot.sdboot import boot_entry, boot_record, create, image
from secex_firstboot.sdboot.initramfs import Entry, write_archive

_ROOM = 8 << 20  # bytes; for what is not of these files: headers, and a recovery message beside the last


def check_room(se: Path, entry: boot_entry.BootEntry, *more: Path) -> None:
    """Raise Refusal if there is no room on ``se`` for one more image, with these ``more`` files in it."""
    parts = (entry.linux, *entry.initrd, *more)
    missing = sum(path.stat().st_size for path in parts) + _ROOM - shutil.disk_usage(se).free
    if missing > 0:
        raise Refusal(
            "SX-STEP-12",
            f"partition se is too small by {-(-missing >> 20)} MiB for a second boot image",
            "build the image with a larger partition se",
        )


def check_documents(documents: Collection[Document]) -> None:
    """Raise Refusal unless one image can be for the hosts of all of them."""
    document.check_one_kind(documents)
    image.check_host_keys([each.key for each in document.distinct(documents)])


@contextmanager
def documents_in(scratch: Path, documents: Mapping[str, bytes]) -> Iterator[Path]:
    """A directory with these host-key documents (name -> content), for the length of a ``with`` block."""
    directory = scratch / "hosts"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    try:
        for name, content in documents.items():
            write_private(directory / name, content)
        yield directory
    finally:
        shutil.rmtree(directory)


def build_sdboot(
    context: Context,
    entry: boot_entry.BootEntry,
    se: Path,
    *,
    command_line: str,
    overlay: Mapping[str, Entry],
    documents: Path,
    archive: Path,
    scratch: Path,
) -> None:
    """Write ``sdboot.new`` on ``se``: kernel and initramfs of ``entry``, and ``overlay`` appended.

    ``documents`` is a directory with the proven host-key documents; ``archive``, a private file, has the
    overlay for a moment; ``scratch`` is a directory for a moment's files.
    """
    found = [document.parse(path.name, path.read_bytes()) for path in sorted(documents.iterdir())]
    try:
        write_archive(archive, overlay)
        builder = create.create(
            se / boot_record.NEW_IMAGE,
            kernel=entry.linux,
            ramdisk=[*entry.initrd, archive],
            command_line=command_line,
            host_keys={documents / each.name: each.key for each in document.distinct(found)},
            progress=lambda done, total: context.progress("build sdboot", done, total),
            scratch=scratch,
        )
    finally:
        archive.unlink(missing_ok=True)
    context.say(f"sdboot built with {builder}")
