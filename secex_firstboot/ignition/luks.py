"""The config's own LUKS volumes (storage.luks): which of them first boot can keep safe from the host.

Ignition makes them, and leaves the header on a disk of the host's. What first boot does about that is in
``steps.volumes``; it takes volumes that a key file opens, encrypted as cryptsetup does it by default. What
Ignition does with each field: internal/exec/stages/disks/luks.go.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterator, Sequence
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.ignition import inline
from secex_firstboot.ignition.config import Config, Luks, Resource

# As a name of files in /etc/luks, of a mapping, whose UUID has to hold it, and of a unit of systemd.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_NUMBER = re.compile(r"[0-9]{1,10}")
# cryptsetup-luksFormat(8): how hard the key is to guess from the header on the disk, and the size of sectors;
# nothing that changes cipher, volume key or layout. With the values that each takes.
_OPTIONS = {
    "--pbkdf": re.compile(r"pbkdf2|argon2id?"),
    "--pbkdf-memory": _NUMBER,
    "--pbkdf-parallel": _NUMBER,
    "--pbkdf-force-iterations": _NUMBER,
    "--iter-time": _NUMBER,
    "--sector-size": re.compile(r"512|1024|2048|4096"),
}
_READABLE = ("http", "tftp")

_KEY_LIMIT = 8 << 20  # bytes, as cryptsetup --help says of a key file
_MAPPED = ("/dev/mapper/", "/dev/disk/by-id/dm-name-")

_NOT_BY_KEY_FILE = (
    "opens the volume by other means than a key file, with a header that the host can change",
    "remove it: without a keyFile, Ignition makes a key, and keeps it on the encrypted root",
)


def check(config: Config) -> None:
    """Raises Refusal with the place of the first field by which the host could open or weaken a volume."""
    own = {f"{prefix}{luks.name}" for luks in config.storage.luks for prefix in _MAPPED}
    for index, luks in enumerate(config.storage.luks):
        if luks.device in own:
            raise Refusal(
                "SX-CONFIG-07",
                f"the Ignition config's storage.luks[{index}].device is a LUKS volume of the config, which "
                "cannot be opened anew below another",
                "encrypt the device itself once",
            )
        for field, what, cure in _wrong(luks):
            raise Refusal("SX-CONFIG-08", f"the Ignition config's storage.luks[{index}].{field} {what}", cure)


def _wrong(luks: Luks) -> Iterator[tuple[str, str, str]]:
    """(field, what is wrong with it, cure)"""
    if not _NAME.fullmatch(luks.name):
        yield (
            "name",
            "cannot be the name of a file, a mapping and a unit",
            "use letters, digits, and _ - . behind the first, at most 64",
        )
    if luks.clevis.is_present:
        yield "clevis", *_NOT_BY_KEY_FILE
    if luks.cex.enabled:
        yield "cex", *_NOT_BY_KEY_FILE
    source = luks.key_file.source or ""
    scheme = source.partition(":")[0].lower()
    if source and scheme != "https" and not inline.is_inline(luks.key_file):
        yield (
            "keyFile.source",
            "is fetched where the host can read it" if scheme in _READABLE else "is neither data: nor https:",
            "put the key into the config (data:), fetch it from https, or leave keyFile out",
        )
    if _is_empty(luks.key_file):
        yield "keyFile", "is empty, and anybody knows that key", "give a key, or leave keyFile out"
    if (place := _first_other(luks.options)) is not None:
        yield (
            f"options[{place}]",
            "changes how the volume is encrypted, of which first boot keeps a header of its own",
            f"remove it: there may be {', '.join(sorted(_OPTIONS))}",
        )
    elif (place := _first_wrong_value(luks.options)) is not None:
        yield f"options[{place}]", "does not have a value that it takes", "see cryptsetup-luksFormat(8)"
    if luks.open_options:
        yield "openOptions[0]", "is not kept when the volume is opened again", "remove it"


def _first_other(options: Sequence[str]) -> int | None:
    """The place of the first that is none of ours with its value, in the same word or the next."""
    is_value = False
    for place, option in enumerate(options):
        name, equals, _ = option.partition("=")
        if is_value and not option.startswith("-"):
            is_value = False
        elif is_value or name not in _OPTIONS:
            return place
        else:
            is_value = not equals
    return len(options) - 1 if is_value else None


def _first_wrong_value(options: Sequence[str]) -> int | None:
    """The place of the first whose value, in the same word or the next, is none; all of them are ours."""
    for place, option in enumerate(options):
        if option.startswith("-"):
            name, equals, value = option.partition("=")
            if not _OPTIONS[name].fullmatch(value if equals else options[place + 1]):
                return place
    return None


def _is_empty(key_file: Resource) -> bool:
    """ContentErrors are found by ``validity``, which comes first."""
    try:
        return inline.is_inline(key_file) and not inline.content(key_file, _KEY_LIMIT)
    except inline.ContentError:
        return False


def keys(state: Path) -> dict[str, bytearray]:
    """The key of each volume that Ignition has opened, by name, from what it keeps for its files stage.

    Ignition: internal/state/state.go. Raises FirstbootError if that file is not as it was up to 2.26.
    """
    try:
        found = json.loads(state.read_bytes())["luksPersistKeyFiles"] or {}
        return {name: bytearray(_content(url)) for name, url in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise FirstbootError(
            "SX-CONFIG-09",
            f"{state} does not have the keys of the config's volumes",
            "report this version of Ignition",
        ) from None


def _content(url: str) -> bytes:
    start, base64, content = url.partition(";base64,")
    if not start.startswith("data:") or not base64:
        raise ValueError("no data URL")
    return b64decode(content, validate=True)
