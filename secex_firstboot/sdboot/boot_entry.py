"""The boot entry of an image: Boot Loader Specification type 1, ``loader/entries/*.conf`` on ``boot``.

https://uapi-group.org/specifications/specs/boot_loader_specification/

Of several entries, the one zipl would boot by default counts: the highest by the version order of the
file names (zipl/src/scan.c, bls_sort). The fields ``sort-key`` and ``version`` play no part there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import is_regular, write_private
from secex_firstboot.contract.command_line import join, matches, name, parameters

# As distributions call them on /boot, with the kernel's release.
KERNELS = ("vmlinuz-{}", "image-{}")
INITRAMFS = ("initrd.img-{}", "initramfs-{}.img", "initrd-{}")

ENTRIES = "loader/entries"
_ENTRY_LIMIT = 64 << 10  # bytes of one entry
_ENTRIES_LIMIT = 256
_CURE = "build the image again with a bootable kernel"


@dataclass(frozen=True)
class BootEntry:
    """``name`` is that of its file, without ``.conf``."""

    title: str
    version: str
    linux: Path
    initrd: tuple[Path, ...]
    options: str
    name: str = ""

    @property
    def release(self) -> str:
        """Of its kernel, as the name of the file has it, vmlinuz-RELEASE, or else the entry. libostree's have
        a number for a version."""
        return self.linux.name.partition("-")[2] or self.version


def find(boot: Path) -> BootEntry:
    """The boot entry of the boot partition mounted on ``boot``. Raises Refusal if there is none to use."""
    name = f"{ENTRIES}/{_names(boot)[-1]}"
    fields = _fields(name, _read(boot, name))
    kernels = fields.get("linux", [])
    if len(kernels) != 1:
        raise Refusal(
            "SX-SDBOOT-03", f"the boot entry {name} names {len(kernels)} kernels instead of one", _CURE
        )
    return BootEntry(
        title=" ".join(fields.get("title", [])),
        version=" ".join(fields.get("version", [])),
        linux=resolve(boot, kernels[0]),
        initrd=tuple(resolve(boot, path) for path in fields.get("initrd", [])),
        options=" ".join(fields.get("options", [])),
        name=Path(name).stem,
    )


def files(boot: Path) -> list[str]:
    """What the boot entry that counts names, whether it is there or not: its kernel, and its initramfs."""
    name = f"{ENTRIES}/{_names(boot)[-1]}"
    fields = _fields(name, _read(boot, name))
    return [*fields.get("linux", []), *fields.get("initrd", [])]


def number(boot: Path) -> int:
    """How many boot entries there are; Refusal without any."""
    return len(_names(boot))


def naming(boot: Path, file: str) -> list[Path]:
    """The boot entries whose kernel is ``file`` of the boot partition, whether it is still there or not."""
    found = []
    for entry in (f"{ENTRIES}/{each}" for each in _names(boot)):
        kernels = _fields(entry, _read(boot, entry)).get("linux", [])
        if any(kernel.lstrip("/").removeprefix("boot/") == file for kernel in kernels):
            found.append(boot / entry)
    return found


def add(boot: Path, like: BootEntry, version: str, linux: str, initrd: str) -> Path:
    """Write one for another kernel, with title and options as they are; returns it, safe on disk.

    It sorts behind the others if its ``version`` is the newest. The files are those of the boot partition.
    """
    stem = like.name.removesuffix(f"-{like.version}") if like.version else like.name
    lines = [f"title {like.title}", f"version {version}", f"linux /{linux}", f"initrd /{initrd}"]
    path = boot / ENTRIES / f"{stem}-{version}.conf"
    write_private(path, "".join(f"{line}\n" for line in [*lines, f"options {like.options}"]).encode())
    return path


def options(boot: Path) -> dict[str, str]:
    """Those of each boot entry, by its name."""
    entries = {Path(each).stem: _fields(each, _read(boot, f"{ENTRIES}/{each}")) for each in _names(boot)}
    return {name: " ".join(fields.get("options", [])) for name, fields in entries.items()}


def set_options(boot: Path, entry: str, options: str) -> None:
    """Write them into the file of the entry of this name, in place of its own; the rest stays."""
    name = f"{ENTRIES}/{entry}.conf"
    lines = [
        line for line in _read(boot, name).splitlines() if line.strip().split(maxsplit=1)[:1] != ["options"]
    ]
    write_private(boot / name, "".join(f"{line}\n" for line in [*lines, f"options {options}"]).encode())


def command_line(options: str, *, add: Sequence[str] = (), remove: Collection[str] = ()) -> str:
    """``options`` without the parameters named in ``remove`` and with those of ``add`` at the end.

    ``*`` at the end of a name in ``remove`` stands for any rest of it. Raises Refusal for an open quote.
    """
    kept = [parameter for parameter in parameters(options) if not matches(name(parameter), remove)]
    return join(kept, [parameter for addition in add for parameter in parameters(addition)])


def _names(boot: Path) -> list[str]:
    """The files of the entries, the one that counts last. Raises Refusal if there is none."""
    entries = sorted((boot / ENTRIES).glob("*.conf"), key=lambda path: _version_key(path.stem))
    if not entries:
        raise Refusal("SX-SDBOOT-01", f"the boot partition has no boot entry in {ENTRIES}", _CURE)
    if len(entries) > _ENTRIES_LIMIT:
        raise Refusal(
            "SX-SDBOOT-02", f"the boot partition has more than {_ENTRIES_LIMIT} boot entries", _CURE
        )
    return [path.name for path in entries]


def _version_key(name: str) -> list[str | int]:
    """Sorts as strverscmp does, runs of digits by their value (but leading zeros carry no meaning here)."""
    return [int(part) if part.isascii() and part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def _fields(name: str, text: str) -> dict[str, list[str]]:
    """The values of each field, in order: ``initrd`` and ``options`` may stand more than once."""
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.strip().replace("\t", " ").partition(" ")
        if key and not key.startswith("#"):
            fields.setdefault(key, []).append(value.strip())
    return fields


def _read(boot: Path, name: str) -> str:
    with resolve(boot, name).open("rb") as file:
        content = file.read(_ENTRY_LIMIT + 1)
    if len(content) > _ENTRY_LIMIT:
        raise Refusal("SX-SDBOOT-04", f"the boot entry {name} is larger than {_ENTRY_LIMIT} bytes", _CURE)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise Refusal("SX-SDBOOT-05", f"the boot entry {name} is not UTF-8 text", _CURE) from None


def resolve(boot: Path, name: str) -> Path:
    """The regular file ``name`` of the boot partition; some distributions write it as /boot/…"""
    inside = name.lstrip("/")
    for relative in (inside, inside.removeprefix("boot/")):
        try:
            path = (boot / relative).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # missing, a loop of links, a NUL
            continue
        if not path.is_relative_to(boot.resolve()):
            raise Refusal(
                "SX-SDBOOT-06", f"the boot entry's file {name!r} is outside the boot partition", _CURE
            )
        if is_regular(path):
            return path
    raise Refusal("SX-SDBOOT-07", f"the boot entry's file {name!r} is missing on the boot partition", _CURE)
