"""How a provisioned guest stands: hosts, volumes, growth, versions, and what its first boot reported.

It looks, and changes nothing. Each file is read up to a limit, and only if it lies in the root that it is
looked for in. What cannot be told is left out, and said with the reason.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import TypeVar

from secex_firstboot import __version__
from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import exists, size_of
from secex_firstboot.contract import paths
from secex_firstboot.contract.boot_image import Image, Images
from secex_firstboot.contract.key_kind import KeyKind
from secex_firstboot.contract.partitions import VOLUMES
from secex_firstboot.contract.report import Report
from secex_firstboot.contract.settings import Fallback
from secex_firstboot.hostkeys import document
from secex_firstboot.roots import crypttab, growing
from secex_firstboot.roots.kinds import Plain, Root
from secex_firstboot.running import system
from secex_firstboot.storage import cryptsetup, devicemapper
from secex_firstboot.storage.cryptsetup import HEADER_SIZE
from secex_firstboot.storage.mounted import Mounted

T = TypeVar("T")

_TOP = PurePath("/")
_KERNELS = PurePath("/usr/lib/modules")  # a directory each
_DRACUT = PurePath("/usr/lib/dracut/dracut-version.sh")
_DRACUT_VERSION = re.compile(r"^DRACUT_VERSION=[\"']?([\w.+~:-]+)", re.MULTILINE)
# systemd's own library, which its programs load by this name.
_SYSTEMD = ("usr/lib/systemd", "usr/lib64/systemd", "usr/lib/*-linux-gnu*/systemd")
_SYSTEMD_VERSION = re.compile(r"libsystemd-shared-([\w.+~:-]+)\.so")
_HEADER = ".header"  # of the config's own volumes

_SMALL = 64 << 10  # bytes
_HEADER_LIMIT = 16 << 20  # bytes: where data begins with cryptsetup's largest usual header
_REPORT_LIMIT = 1 << 20  # bytes
_NAMES_LIMIT = 4096  # in a directory
_ENTRIES_LIMIT = 256  # hosts, volumes, kernels


@dataclass(frozen=True)
class Host:
    """A host-key document. ``hash`` is that by which the boot image names the host's key; it, ``kind`` and
    ``expires`` (the certificate's last day, ISO 8601) are None if the file is no such document.

    ``this_machine``: whether it is for the one that this runs on; None if the kernel does not tell.
    """

    name: str
    kind: KeyKind | None
    hash: str | None
    expires: str | None
    this_machine: bool | None


@dataclass(frozen=True)
class Header:
    """What a detached LUKS2 header says; ``sector_size`` in bytes."""

    uuid: str
    cipher: str
    integrity: str
    sector_size: int


@dataclass(frozen=True)
class Mapping:
    """Of an open volume; ``size`` in bytes. ``as_recorded``: it is the volume that first boot has made."""

    path: str
    size: int | None
    as_recorded: bool | None


@dataclass(frozen=True)
class Volume:
    """An encrypted volume; ``file`` is where its detached header is. ``mapping``: None if it is not open."""

    name: str
    file: str
    header: Header | None
    mapping: Mapping | None


@dataclass(frozen=True)
class Growth:
    """Of the root file system. ``grown``: it reaches the end of its volume for good; sizes in bytes."""

    setting: str | None
    grown: bool | None
    file_system_size: int | None
    volume_size: int | None


@dataclass(frozen=True)
class BootImages:
    """``running``: the number of the one that this started from; None if that is first boot's, or it is not
    the running system. ``starts``: the number of the one that starts if nobody chooses."""

    running: int | None
    starts: int
    newest: Image
    fallback: Image | None
    setting: Fallback


@dataclass(frozen=True)
class Versions:
    """``secex_firstboot`` is what tells this; ``kernel`` the one that runs, ``kernels`` those installed."""

    secex_firstboot: str
    kernel: str | None
    kernels: tuple[str, ...]
    dracut: str | None
    systemd: str | None


@dataclass(frozen=True)
class Status:
    """``running``: of the running system; else mappings, growth and much else is not told.

    ``sealed``: nothing of first boot is left on the disk. ``this_machine``: the hashes of the keys that this
    machine has; empty if its kernel does not tell. ``untold``: what could not be told, and why.
    """

    root: str
    running: bool
    sealed: bool | None
    this_machine: tuple[str, ...]
    hosts: tuple[Host, ...]
    volumes: tuple[Volume, ...]
    growth: Growth
    boot_images: BootImages | None
    versions: Versions
    first_boot: Report | None
    untold: tuple[str, ...]


def gather(root: Root, context: Context | None) -> Status:
    """``context`` is that of the running system; None: ``root`` is one that is only mounted.

    Raises Refusal if first boot did not set up the system on ``root``.
    """
    system.check_provisioned(root, "it has no status to show")
    look, top = _Look(root), root.place(_TOP)
    if not context:
        look.untold.append(f"mappings, growth: {top} is not the running system")
    keys = document.this_host_key_hashes(root.place(paths.THIS_HOSTS_KEYS))
    return Status(
        root=str(top),
        running=context is not None,
        sealed=look.tell(str(paths.SEALED), lambda: exists(root.state(paths.SEALED))),
        this_machine=tuple(sorted(key.hex() for key in keys)),
        hosts=_hosts(look, keys),
        volumes=(volumes := _volumes(look, live=context is not None)),
        growth=_growth(look, context, volumes[VOLUMES.index("root")].mapping),
        boot_images=look.tell("the boot images", lambda: _boot_images(look, context)),
        versions=_versions(look),
        first_boot=look.tell(f"{paths.SYSTEM_REPORT}", lambda: _report(look)),
        untold=tuple(look.untold),
    )


class _Look:
    """Reads below ``root``, and gathers what cannot be told."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.untold: list[str] = []

    def tell(self, what: str, look: Callable[[], T]) -> T | None:
        """What ``look`` returns; None, and the reason among ``untold``, if it fails."""
        try:
            return look()
        except OSError as error:
            self.untold.append(f"{what}: {error.strerror}")
        except (FirstbootError, ValueError) as error:
            self.untold.append(f"{what}: {error}")
        return None

    def read(self, path: PurePath, limit: int, *, state: bool = False, whole: bool = True) -> bytes | None:
        """A regular file of at most ``limit`` bytes; None if there is none. Raises OSError, ValueError.

        ``state``: of the volume, see Root.state. Not ``whole``: only so much of it, and not a byte more.
        """
        # Whatever it is now, opening it neither waits nor does anything.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            top = Plain(self.root.volume, None) if state else self.root
            descriptor = os.open(_inside(top, path), flags)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb", buffering=0) as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("is no regular file")
            content = stream.read(limit + whole)
        if len(content) > limit:
            raise ValueError(f"is larger than {limit} bytes")
        return content

    def text(self, path: PurePath) -> str | None:
        content = self.read(path, _SMALL)
        return None if content is None else content.decode(errors="replace").strip()

    def names(self, directory: PurePath) -> list[str]:
        """What is in it, sorted; nothing if there is none."""
        try:
            with os.scandir(_inside(self.root, directory)) as entries:
                found = [entry.name for entry in islice(entries, _NAMES_LIMIT + 1)]
        except FileNotFoundError:
            return []
        if len(found) > _NAMES_LIMIT:
            raise ValueError(f"holds more than {_NAMES_LIMIT} names")
        return sorted(found)


def _inside(root: Root, path: PurePath) -> Path:
    """Where it is, at the end of all links: those of a root that is only mounted may lead out of it."""
    found = root.place(path).resolve()
    if not found.is_relative_to(root.place(_TOP).resolve()):
        raise ValueError("leads out of the root")
    return found


def _few(look: _Look, what: PurePath, names: list[str]) -> list[str]:
    if len(names) > _ENTRIES_LIMIT:
        look.untold.append(f"{what}: only {_ENTRIES_LIMIT} of {len(names)} are shown")
    return names[:_ENTRIES_LIMIT]


def _hosts(look: _Look, this_machine: Collection[bytes]) -> tuple[Host, ...]:
    directory = paths.SYSTEM_HOST_KEYS
    names = look.tell(str(directory), lambda: look.names(directory)) or []
    documents = _few(look, directory, [name for name in names if name.startswith(paths.HOST_KEY_PREFIX)])
    return tuple(_host(look, directory / name, this_machine) for name in documents)


def _host(look: _Look, path: Path, this_machine: Collection[bytes]) -> Host:
    content = look.tell(str(path), lambda: look.read(path, _SMALL))
    if content is None:
        return Host(path.name, None, None, None, None)
    found = look.tell(str(path), lambda: document.parse(path.name, content))
    if found is None:
        return Host(path.name, None, None, None, None)
    return Host(
        path.name,
        found.key.kind,
        document.key_hash(found).hex(),
        found.expires.date().isoformat(),
        document.is_of(found, this_machine) if this_machine else None,
    )


def _volumes(look: _Look, *, live: bool) -> tuple[Volume, ...]:
    directory = paths.LUKS_KEYS
    names = look.tell(str(directory), lambda: look.names(directory)) or []
    headers = {name.removesuffix(_HEADER) for name in names if name.endswith(_HEADER)}
    others = _few(look, directory, sorted(headers - set(VOLUMES)))  # the config's own
    return tuple(_volume(look, name, live=live) for name in (*VOLUMES, *others))


def _volume(look: _Look, name: str, *, live: bool) -> Volume:
    file = paths.LUKS_KEYS / (name if name in VOLUMES else f"{name}{_HEADER}")
    return Volume(
        name,
        str(file),
        look.tell(str(file), lambda: _header(look, file, with_key=name in VOLUMES)),
        look.tell(f"the mapping {name}", lambda: _mapping(look, name)) if live else None,
    )


def _header(look: _Look, file: PurePath, *, with_key: bool) -> Header:
    """Of a file that has the key behind it, or of one that it has for itself."""
    content = look.read(file, HEADER_SIZE if with_key else _HEADER_LIMIT, whole=not with_key)
    if content is None:
        raise ValueError("is not there")
    says = cryptsetup.describe(content)
    return Header(says.uuid, says.cipher, says.integrity, says.sector_size)


def _mapping(look: _Look, name: str) -> Mapping | None:
    found = devicemapper.find(name)
    if not found:
        return None
    return Mapping(
        str(devicemapper.MAPPER / name),
        look.tell(f"the size of {name}", lambda: size_of(devicemapper.device(found.number))),
        look.tell(f"the table of {name}", lambda: _is_as_recorded(look, name)),
    )


def _is_as_recorded(look: _Look, name: str) -> bool:
    """As check-volume compares it whenever the volume is opened."""
    return crypttab.mode(name, look.text(paths.CRYPTTAB) or "") == devicemapper.crypt_mode(name)


def _growth(look: _Look, context: Context | None, volume: Mapping | None) -> Growth:
    grown = look.tell(str(paths.GROWN), lambda: exists(look.root.place(paths.GROWN)))
    if not context:
        return Growth(None, grown, None, None)
    return Growth(
        setting=look.tell("when root grows", lambda: growing.setting(context, look.root)),
        grown=grown,
        file_system_size=look.tell(
            "the size of the root file system",
            lambda: Mounted.find(look.root.volume, devicemapper.MAPPER / "root").size(),
        ),
        volume_size=volume.size if volume else None,
    )


def _boot_images(look: _Look, context: Context | None) -> BootImages | None:
    content = look.read(paths.BOOT_IMAGES, _REPORT_LIMIT, state=True)
    if content is None:
        raise ValueError("there is no record of them")
    try:
        images = Images.model_validate_json(content)
    except ValueError:  # whose text quotes it
        raise ValueError("the record of them is none") from None
    starts = images.newest if images.starts_newest or not images.fallback else images.fallback
    running = system.generation(context) if context else 0
    return BootImages(running or None, starts.generation, images.newest, images.fallback, images.setting)


def _versions(look: _Look) -> Versions:
    kernels = look.tell(str(_KERNELS), lambda: look.names(_KERNELS)) or []
    return Versions(
        secex_firstboot=__version__,
        kernel=look.tell(str(paths.KERNEL_RELEASE), lambda: look.text(paths.KERNEL_RELEASE)) or None,
        kernels=tuple(_few(look, _KERNELS, kernels)),
        dracut=look.tell(str(_DRACUT), lambda: _dracut(look)),
        systemd=look.tell("systemd's version", lambda: _systemd(look)),
    )


def _dracut(look: _Look) -> str | None:
    found = _DRACUT_VERSION.search(look.text(_DRACUT) or "")
    return found and found[1]


def _systemd(look: _Look) -> str | None:
    for pattern in _SYSTEMD:
        top = look.root.place(_TOP)
        for directory in sorted(top.glob(pattern)):
            for name in look.names(_TOP / directory.relative_to(top)):
                if found := _SYSTEMD_VERSION.fullmatch(name):
                    return found[1]
    return None


def _report(look: _Look) -> Report | None:
    content = look.read(paths.SYSTEM_REPORT, _REPORT_LIMIT)
    if content is None:
        return None
    try:
        return Report.model_validate_json(content)
    except ValueError:  # whose text quotes it
        raise ValueError("is no report of a first boot") from None
