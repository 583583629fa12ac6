"""What first boot owns, and a config must leave alone: names, paths, units of systemd.

Data, and how to tell a name. Where a config's entries end up: ``ignition.writes``; what is refused and in
which words: ``ignition.ownership``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from secex_firstboot.contract.partitions import MAPPINGS, VOLUMES
from secex_firstboot.contract.paths import CRYPTTAB

# Below these, nothing from a config: the agent writes there, or builds the boot image from it.
TREES = (
    PurePosixPath("/etc/luks"),
    CRYPTTAB,
    CRYPTTAB.with_name(f"{CRYPTTAB.name}.new"),  # see files.write_private
    PurePosixPath("/etc/secex-firstboot"),
    PurePosixPath("/usr/lib/secex-firstboot"),
    PurePosixPath("/var/lib/secex-firstboot"),
    PurePosixPath("/boot"),  # a volume of its own, on which a files stage that was cut short cannot be undone
    PurePosixPath("/sysroot"),  # the volume and its deployments, where libostree has made the system
    PurePosixPath("/ostree"),
    PurePosixPath("/.secex-firstboot"),  # where what Ignition writes waits until it is complete
)
# /var may be a volume of its own: what is in it of ours is no more than notes.
NOT_TO_BE_MOUNTED_OVER = tuple(tree for tree in TREES if tree.parts[1] != "var")

# The user's, but nothing other than regular files.
SETTINGS = (PurePosixPath("/etc/secex-firstboot.conf"),)

# In /etc/luks, where Ignition puts the keys of the config's volumes under their names, beside ours.
_MARKS = frozenset({"sealed", "generations", "boot-image"})
_BESIDE_A_KEY = (".header", ".new")  # of each volume; files.write_private's new content

UNIT_DIRECTORIES = tuple(
    PurePosixPath(path)
    for path in (
        "/etc/systemd/system",
        "/etc/systemd/system.control",
        "/etc/systemd/system.attached",
        "/usr/lib/systemd/system",
        "/usr/local/lib/systemd/system",
    )
)
_OUR_UNITS = re.compile(r"secex-firstboot([-@].*)?\.[a-z]+", re.DOTALL)
# systemd's, without which a volume is not opened and mounted as it should: systemd-cryptsetup-generator(8).
_OPENED_BY = "systemd-cryptsetup@{}.service"
_APPEARS_AS = "dev-mapper-{}.device"
_MOUNT_UNIT = re.compile(r"(.*)\.(?:auto)?mount", re.DOTALL)
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_OF_A_UNIT = re.compile(r"(.*)\.(?:d|wants|requires|upholds)", re.DOTALL)

# The UUIDs that libcryptsetup gives: its type, the volume's UUID for some types, the mapping's name.
_CRYPT_UUID = re.compile(
    r"dm-uuid-CRYPT-(?:(?:LUKS[12]|VERITY|SUBDEV)-[0-9a-f]+|[A-Z]+)-(?P<name>.*)", re.DOTALL
)
_MAPPING = "dm-name-"


def is_mapping(name: str) -> bool:
    """boot, boot_dif, boot_verity… and so for root."""
    return name in MAPPINGS


def is_link_to_mapping(name: str) -> bool:
    """Of a link in /dev/disk/by-id (systemd: rules.d/60-persistent-storage-dm.rules)."""
    if name.startswith(_MAPPING):
        return is_mapping(name.removeprefix(_MAPPING))
    found = _CRYPT_UUID.fullmatch(name)
    return found is not None and is_mapping(found["name"])


def is_luks_name(name: str) -> bool:
    """Whether first boot needs the name of a LUKS volume, or the file /etc/luks/NAME, itself."""
    first = name.partition(".")[0]
    return is_mapping(first) or first in _MARKS or name.endswith(_BESIDE_A_KEY)


def is_unit(name: str, volumes: Iterable[str] = ()) -> bool:
    """Whether the unit is first boot's, or what is said of it holds for one that first boot needs.

    ``volumes`` are the names of the config's own, which first boot opens with headers of its own.
    """
    escaped = [volume.replace("-", r"\x2d") for volume in (*VOLUMES, *volumes)]
    needed = (form.format(volume) for volume in escaped for form in (_OPENED_BY, _APPEARS_AS))
    if _OUR_UNITS.fullmatch(name) or any(_is_about(name, unit) for unit in needed):
        return True
    mount = _MOUNT_UNIT.fullmatch(name)
    return mount is not None and is_mount_point(_mount_point(mount[1]))


def is_mount_point(path: PurePosixPath) -> bool:
    """Whether something mounted there lies in what first boot owns, or hides it."""
    return is_below(path, TREES) or is_around(path, NOT_TO_BE_MOUNTED_OVER) or is_below(path, SETTINGS)


def units_in(path: PurePosixPath) -> list[str]:
    """The units that a path is about: itself, or whose drop-ins or dependencies lie there."""
    for directory in UNIT_DIRECTORIES:
        if path.is_relative_to(directory):
            elements = path.relative_to(directory).parts
            return [found[1] if (found := _OF_A_UNIT.fullmatch(each)) else each for each in elements]
    return []


def is_below(path: PurePosixPath, trees: Iterable[PurePosixPath]) -> bool:
    """Whether the path is one of these, or lies in it."""
    return any(path.is_relative_to(tree) for tree in trees)


def is_around(path: PurePosixPath, trees: Iterable[PurePosixPath]) -> bool:
    """Whether the path is one of these, or one of them lies in it."""
    return any(tree.is_relative_to(path) for tree in trees)


def _is_about(name: str, unit: str) -> bool:
    """The same unit, its template, or names that begin like it, as drop-ins have them (systemd.unit(5))."""
    stem, _, kind = unit.rpartition(".")
    prefix = stem.partition("@")[0]
    if name in (unit, f"{prefix}@.{kind}"):
        return True
    beginning = name.removesuffix(f".{kind}")
    return name.endswith(f"-.{kind}") and prefix.startswith(beginning)


def _mount_point(escaped: str) -> PurePosixPath:
    """systemd-escape --unescape --path."""
    if escaped == "-":
        return PurePosixPath("/")
    path = escaped.replace("-", "/")
    return PurePosixPath("/" + _ESCAPED.sub(lambda found: chr(int(found[1], 16)), path))
