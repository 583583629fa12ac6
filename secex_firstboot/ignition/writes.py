"""Every path that Ignition writes, makes or removes for a config, computed here and nowhere else.

From Ignition 2.14: internal/exec/stages/{files,mount}, internal/exec/util/{unit,passwd,file}.go. It follows
links in all but the last element of a path, under the new root.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import PurePosixPath

from secex_firstboot.ignition.config import Config, Storage, Unit, User

UNITS = "/etc/systemd/system"
PRESETS = "/etc/systemd/system-preset/20-ignition.preset"
RESULT = "/etc/.ignition-result.json"
LUKS_KEYS = "/etc/luks"
HOMES = "/home"  # useradd(8); an image's /etc/default/useradd may say otherwise
_SECURE_KEYS = "/etc/zkey/repository"

# Of a system with a merged /usr (systemd.io/THE_CASE_FOR_THE_USR_MERGE), as systemd 255 and later want it.
MERGED_USR = {
    PurePosixPath(f"/{name}"): f"usr/{name}" for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
}
_ROOT = PurePosixPath("/")
_LINKS_FOLLOWED = 40  # as many as Linux follows in one path, path_resolution(7)


class Kind(Enum):
    FILE = auto()
    DIRECTORY = auto()
    LINK = auto()
    MOUNT = auto()
    TARGET = auto()  # of a hard link: it must be there, and gets another name
    KEY = auto()  # of a LUKS volume, beside first boot's own
    NAME = auto()  # nothing is written there, but what is said counts for what is


@dataclass(frozen=True)
class Write:
    """``place`` is the entry of the config it comes from; ``replaces``: whatever is there is deleted."""

    place: str
    path: str
    kind: Kind
    replaces: bool = False


def of(config: Config) -> Iterator[Write]:
    """In the order in which Ignition comes to them: mounts, users, files, units, LUKS keys."""
    storage = config.storage
    for index, filesystem in enumerate(storage.filesystems):
        if filesystem.path:
            yield Write(f"storage.filesystems[{index}].path", filesystem.path, Kind.MOUNT)
    for index, user in enumerate(config.passwd.users):
        yield from _of_user(f"passwd.users[{index}]", user)
    yield from _of_nodes(storage)
    for index, unit in enumerate(config.systemd.units):
        yield from _of_unit(f"systemd.units[{index}]", unit)
    for index, luks in enumerate(storage.luks):
        place = f"storage.luks[{index}].name"
        yield Write(place, f"{LUKS_KEYS}/{luks.name}", Kind.KEY)
        if luks.cex.enabled:
            yield from (
                Write(place, f"{_SECURE_KEYS}/{luks.name}.{kind}", Kind.FILE) for kind in ("skey", "info")
            )


def resolver(config: Config) -> Resolver:
    links = dict(MERGED_USR)
    for link in config.storage.links:
        if not link.hard:
            links[Resolver(links)(link.path)] = link.target
    return Resolver(links)


@dataclass(frozen=True)
class Resolver:
    """``links`` are those known: of the config, and of every system."""

    links: Mapping[PurePosixPath, str]

    def __call__(self, path: str) -> PurePosixPath:
        """Where Ignition writes ``path``: links, in all but the last element, are followed."""
        here, ahead, followed = _ROOT, _elements(path)[::-1], 0
        while ahead:
            element = ahead.pop()
            here = here.parent if element == ".." else here / element
            if ahead and here in self.links and followed < _LINKS_FOLLOWED:
                target = self.links[here]
                ahead += _elements(target)[::-1]
                here, followed = _ROOT if target.startswith("/") else here.parent, followed + 1
        return here


def _elements(path: str) -> list[str]:
    return [element for element in path.split("/") if element not in ("", ".")]


def _of_nodes(storage: Storage) -> Iterator[Write]:
    for index, directory in enumerate(storage.directories):
        place = f"storage.directories[{index}].path"
        yield Write(place, directory.path, Kind.DIRECTORY, bool(directory.overwrite))
    for index, file in enumerate(storage.files):
        yield Write(f"storage.files[{index}].path", file.path, Kind.FILE, bool(file.overwrite))
    for index, link in enumerate(storage.links):
        yield Write(f"storage.links[{index}].path", link.path, Kind.LINK, bool(link.overwrite))
        if link.hard:
            yield Write(f"storage.links[{index}].target", link.target, Kind.TARGET)


def _of_user(place: str, user: User) -> Iterator[Write]:
    """Of a user that has no home here, or is not made here, the image says where it is."""
    if user.should_exist is False:
        return
    home = user.home_dir or f"{HOMES}/{user.name}"
    if user.home_dir:
        yield Write(f"{place}.homeDir", home, Kind.NAME if user.no_create_home else Kind.DIRECTORY)
    yield Write(f"{place}.name", home, Kind.NAME)
    if user.ssh_authorized_keys:
        # Ignition's builder chooses which of the two.
        for name in (".ssh/authorized_keys.d/ignition", ".ssh/authorized_keys"):
            yield Write(f"{place}.sshAuthorizedKeys", f"{home}/{name}", Kind.NAME)


def _of_unit(place: str, unit: Unit) -> Iterator[Write]:
    path = f"{UNITS}/{unit.name}"
    for index, dropin in enumerate(unit.dropins):
        kind = Kind.NAME if dropin.contents is None else Kind.FILE
        yield Write(f"{place}.dropins[{index}].name", f"{path}.d/{dropin.name}", kind)
    if unit.contents:
        yield Write(f"{place}.name", path, Kind.FILE)
    if unit.mask:
        yield Write(f"{place}.name", path, Kind.LINK, replaces=True)
    if unit.enabled is not None:
        yield Write(f"{place}.enabled", PRESETS, Kind.FILE)
    # Enabled, disabled or unmasked: then it is the name that counts.
    yield Write(f"{place}.name", path, Kind.NAME)


def devices(config: Config) -> Iterator[tuple[str, str]]:
    """The place and path of every device that the config names; an empty path where it leaves one out."""
    storage = config.storage
    for index, disk in enumerate(storage.disks):
        yield f"storage.disks[{index}].device", disk.device
    for index, raid in enumerate(storage.raid):
        for member, device in enumerate(raid.devices):
            yield f"storage.raid[{index}].devices[{member}]", device
    for index, luks in enumerate(storage.luks):
        yield f"storage.luks[{index}].device", luks.device or ""
    for index, filesystem in enumerate(storage.filesystems):
        yield f"storage.filesystems[{index}].device", filesystem.device
