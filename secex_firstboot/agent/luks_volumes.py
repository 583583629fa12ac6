"""The config's own LUKS volumes (storage.luks): what two steps know of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secex_firstboot.agent import places
from secex_firstboot.basic.files import write_private
from secex_firstboot.contract import paths
from secex_firstboot.ignition import config
from secex_firstboot.ignition.config import Luks
from secex_firstboot.roots import crypttab
from secex_firstboot.storage import cryptsetup, devicemapper

# In the provisioned system: with another volume than the one made here, the unit fails that has opened it.
_CHECK = """\
# Made at first boot: the volume is the one that first boot has opened.
[Service]
ExecStartPost=/usr/lib/secex-firstboot/check-volume {name}
"""


def add_to_system(root: Path) -> None:
    """Write headers, and crypttab with what the volumes are compared with, to ``root``."""
    names = [each.name for each in named()]
    if not names:
        return
    keys = paths.below(root, paths.LUKS_KEYS)
    for name in names:
        write_private(keys / f"{name}.header", header(name).read_bytes())
        drop_in = root / f"etc/systemd/system/{_unit(name)}.d/50-secex-firstboot.conf"
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        drop_in.write_text(_CHECK.format(name=name), encoding="ascii")
    lines = crypttab.merge(own_crypttab().read_bytes(), _crypttab_lines(named()))
    write_private(paths.below(root, paths.CRYPTTAB), lines)


def _crypttab_lines(volumes: Sequence[Luks]) -> list[str]:
    """crypttab(5). The UUID is in Ignition's header on the disk; whatever has it is read with this key."""
    lines = []
    for each in volumes:
        file = paths.LUKS_KEYS / each.name
        options = f"luks,header={file}.header,headless=yes" + ",discard" * bool(each.discard)
        lines += [
            crypttab.made(each.name, devicemapper.crypt_mode(each.name)),
            f"{each.name} UUID={cryptsetup.luks2_uuid(header(each.name))} {file} {options}",
        ]
    return lines


def _unit(name: str) -> str:
    """systemd-cryptsetup-generator(8); of what ``luks.check`` allows in a name, only the dash is escaped."""
    return f"systemd-cryptsetup@{name.replace('-', chr(92) + 'x2d')}.service"


def named() -> list[Luks]:
    return config.parse(places.IGNITION_MERGED_CONFIG.read_bytes()).storage.luks


def header(name: str) -> Path:
    return places.STATE / "luks" / f"{name}.header"


def own_crypttab() -> Path:
    """The image's, as it was."""
    return places.STATE / "luks" / "crypttab"
