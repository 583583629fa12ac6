"""volumes: the config's own LUKS volumes (storage.luks) are opened with headers that the host cannot change.

Ignition's disks stage has made and opened them, with a header on the host's disk. Before anything is written
to them they are opened anew, with a header made here. After the files stage has written their keys to root,
the headers are put beside them, and what each volume is compared with whenever it is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done, ready, waiting
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import exists, write_private
from secex_firstboot.contract import paths
from secex_firstboot.ignition import config, luks, ownership
from secex_firstboot.ignition.config import Luks
from secex_firstboot.roots.crypttab import merge_crypttab
from secex_firstboot.storage import cryptsetup, devicemapper, disk, reopen

# In the provisioned system: with another volume than the one made here, the unit fails that has opened it.
_CHECK = """\
# Made at first boot: the volume is the one that first boot has opened.
[Service]
ExecStartPost=/usr/lib/secex-firstboot/check-volume {name} {keys}/{name}.mode
"""


class Volumes(Step):
    name = "volumes"
    summary = "open the config's own LUKS volumes with headers that the host cannot change"
    stage = Stage.MOUNT

    def observe(self, context: Context) -> Status:
        if context.phase is Phase.PROVISIONED or exists(paths.FILES_FINISHED):
            return done("the system has the headers of the config's LUKS volumes")
        if context.phase is not Phase.COMMITTED:
            return waiting("the commit point comes first")
        if not exists(paths.IGNITION_MERGED_CONFIG):
            return waiting("Ignition merges the config first")
        names = [each.name for each in _volumes()]
        if not names:
            return done("the config has no LUKS volumes")
        if all(exists(_header(name)) and reopen.is_open(_header(name), name) for name in names):
            return done(f"{len(names)} LUKS volumes are open with headers made here")
        return ready(f"open {len(names)} LUKS volumes with headers made here")

    def perform(self, context: Context) -> None:
        keys = luks.keys(paths.IGNITION_STATE)
        system_disk = ownership.device_numbers(disk.find_disk().device)
        try:
            for index, each in enumerate(_volumes()):
                try:
                    _reopen(each.name, keys.get(each.name), system_disk)
                except FirstbootError as error:
                    raise FirstbootError(f"storage.luks[{index}]: {error.message}", error.cure) from error
        finally:
            for key in keys.values():
                key[:] = bytes(len(key))
        # Before Ignition adds lines to it, with what it then reads from the disks.
        write_private(_own_crypttab(), _content(paths.SYSROOT / paths.CRYPTTAB.relative_to("/")))


def _reopen(name: str, key: bytearray | None, system_disk: frozenset[int]) -> None:
    if key is None:
        raise FirstbootError("Ignition has no key of it", "look at ignition-disks.service")
    device = reopen.device_below(name)
    if device.stat().st_rdev in system_disk:
        raise FirstbootError("it lies on the system disk", "use another disk")
    reopen.reopen(name, device, key, _header(name), paths.RUNTIME)


def add_to_system(root: Path) -> None:
    """Write headers, crypttab, and what the volumes are compared with, to ``root``."""
    names = [each.name for each in _volumes()]
    if not names:
        return
    keys = root / paths.LUKS_KEYS.relative_to("/")
    for name in names:
        write_private(keys / f"{name}.header", _header(name).read_bytes())
        write_private(keys / f"{name}.mode", devicemapper.crypt_mode(name).encode() + b"\n")
        drop_in = root / f"etc/systemd/system/{_unit(name)}.d/50-secex-firstboot.conf"
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        drop_in.write_text(_CHECK.format(name=name, keys=paths.LUKS_KEYS), encoding="ascii")
    crypttab = merge_crypttab(_own_crypttab().read_bytes(), _crypttab_lines(_volumes()))
    write_private(root / paths.CRYPTTAB.relative_to("/"), crypttab)


def _crypttab_lines(volumes: Sequence[Luks]) -> list[str]:
    """crypttab(5). The UUID is in Ignition's header on the disk; whatever has it is read with this key."""
    return [
        f"{each.name} UUID={cryptsetup.luks2_uuid(_header(each.name))} {paths.LUKS_KEYS / each.name} "
        f"luks,header={paths.LUKS_KEYS / each.name}.header,headless=yes" + ",discard" * bool(each.discard)
        for each in volumes
    ]


def _unit(name: str) -> str:
    """systemd-cryptsetup-generator(8); of what ``luks.check`` allows in a name, only the dash is escaped."""
    return f"systemd-cryptsetup@{name.replace('-', chr(92) + 'x2d')}.service"


def _volumes() -> list[Luks]:
    return config.parse(paths.IGNITION_MERGED_CONFIG.read_bytes()).storage.luks


def _header(name: str) -> Path:
    return paths.STATE / "luks" / f"{name}.header"


def _own_crypttab() -> Path:
    """The image's, as it was."""
    return paths.STATE / "luks" / "crypttab"


def _content(path: Path) -> bytes:
    return path.read_bytes() if exists(path) else b""
