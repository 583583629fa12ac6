"""What keeps logins off the provisioned system's consoles, and sockets that only the host reaches.

One list for all of it: ``no-local-login.ign``, a base config of Ignition, which makes masks and drop-ins of
it below /etc. There, on the root file system, the host can spoil a block, and systemd goes on without a file
that it cannot read. So the boot image says the same once more. The masks are on its command line, for
systemd-debug-generator(8). That lies on root as well, and does nothing for drop-ins: so all are files of the
initramfs, which before the system starts copies them to /run/systemd/system.control. Units there win over
those of every other directory but /etc/systemd/system.control (systemd.unit(5)).
"""

from __future__ import annotations

from collections.abc import Sequence

from secex_firstboot.ignition import config
from secex_firstboot.ignition.config import Unit

# What a spoiled /etc/machine-id would bring back: presets, and units for a first boot (systemd(1),
# systemd.unit(5), ConditionFirstBoot=); the first-boot wizard; sockets of systemd-ssh-generator(8).
_SWITCHES = ("systemd.condition_first_boot=no", "systemd.firstboot=no", "systemd.ssh_auto=no")


def forbidden(base: bytes, merged: bytes) -> list[Unit]:
    """Masks and drop-ins of the ``base`` config, but for what the user's, ``merged``, takes back by name."""
    theirs = {unit.name: unit for unit in config.parse(merged).systemd.units}
    units = []
    for unit in config.parse(base).systemd.units:
        user = theirs.get(unit.name, Unit(name=unit.name))
        replaced = {dropin.name for dropin in user.dropins}
        kept = {
            "mask": unit.mask and user.mask is not False,
            "dropins": [dropin for dropin in unit.dropins if dropin.name not in replaced],
        }
        units.append(unit.model_copy(update=kept))
    return units


def arguments(units: Sequence[Unit]) -> tuple[list[str], list[str]]:
    """For the provisioned system's command line: switches, and masks; none if its image allows logins."""
    return list(_SWITCHES if units else ()), [f"systemd.mask={unit.name}" for unit in units if unit.mask]


def unit_files(units: Sequence[Unit]) -> dict[str, bytes]:
    """Masks, which are empty, and drop-ins: their names below a directory of units, and what they hold."""
    files = {}
    for unit in units:
        if unit.mask:
            files[unit.name] = b""
        for dropin in unit.dropins:
            files[f"{unit.name}.d/{dropin.name}"] = (dropin.contents or "").encode()
    return files
