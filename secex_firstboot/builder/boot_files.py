"""What an image is sealed with, from the file system of its ``boot``: entries, kernel, initramfs, loaders.

Each file is asked for by its name, as a regular one, and gets a name that was looked at first: whatever else
is on ``boot``, links and odd names of its publisher's, leads nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import is_regular, size_of
from secex_firstboot.basic.process import run
from secex_firstboot.builder import volumes
from secex_firstboot.sdboot import boot_entry

_NAME = re.compile(r"[\w.+~@:=%,-]{1,255}", re.ASCII)
_FILE = re.compile(r"^Inode: \d+ +Type: (\w+) .*? Size: (\d+)$", re.M | re.S)
_NOT_FOUND = "File not found by ext2_lookup"
_CURE = "get the image again, or build it again with another name"


def fetch(image: Path, boot: Path, more: Iterable[str]) -> None:
    """Make the directory ``boot`` with the boot entries, what the one that counts names, and ``more``.

    Raises FirstbootError for what is no sound file system, Refusal for a file that is missing or none.
    """
    boot.mkdir()
    for name in volumes.names(image, f"/{boot_entry.ENTRIES}"):
        if name.endswith(".conf"):
            _get(image, f"{boot_entry.ENTRIES}/{name}", boot)
    for name in (*boot_entry.files(boot), *more):
        inside = name.lstrip("/")
        if not (_get(image, inside, boot) or _get(image, inside.removeprefix("boot/"), boot)):
            raise Refusal("SX-BUILD-45", f"/{inside} is missing on boot", _CURE)


def _get(image: Path, name: str, boot: Path) -> bool:
    """Whether there is such a file."""
    parts = name.split("/")
    if any(part in (".", "..") or not _NAME.fullmatch(part) for part in parts):
        raise Refusal(
            "SX-BUILD-51", f"{name!r} on boot is no name of a file that an image starts with", _CURE
        )
    said = volumes.ask(image, f'stat "/{name}"')
    if _NOT_FOUND in said:
        return False
    found = _FILE.search(said)
    if not found or found[1] != "regular" or int(found[2]) > size_of(image):
        raise Refusal("SX-BUILD-52", f"/{name} on boot is no regular file", _CURE)
    target = boot.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    run(["debugfs", "-R", f'dump "/{name}" ./{target.name}', image.absolute()], directory=target.parent)
    if not is_regular(target) or target.stat().st_size != int(found[2]):
        raise FirstbootError("SX-BUILD-53", f"/{name} on boot cannot be read", _CURE)
    return True
