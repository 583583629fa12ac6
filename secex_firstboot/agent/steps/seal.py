"""seal: the final sdboot, with keys and detached headers, without plan, GPG key or first-boot argument."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from secex_firstboot.agent import boot_image, places, volumes
from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done, ready, waiting
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import write_private
from secex_firstboot.basic.process import ToolError, run
from secex_firstboot.contract import paths
from secex_firstboot.contract.boot_image import Arguments, Images, Origin
from secex_firstboot.contract.partitions import VOLUMES
from secex_firstboot.ignition import config, local_login
from secex_firstboot.roots import crypttab, growing, recovery, remains, system_image
from secex_firstboot.roots.kinds import Root
from secex_firstboot.sdboot import boot_record
from secex_firstboot.storage import devicemapper, disk, encrypted, filesystem
from secex_firstboot.storage.plan import Plan

# Of the running system. Packages enable them, and a preset does in an image that was made without.
_OUR_UNITS = tuple(
    f"secex-firstboot-{name}"
    for name in (
        "grow.service",
        "hosts.timer",
        "image.service",
        "restart.service",
        "tidy.service",
        "update.path",
    )
)
# Opened in the initramfs, and kept open in the system; without a time limit for the disk to appear, as dracut
# has none for the root device; without asking at the host's console for a passphrase.
_OPTIONS = "x-initrd.attach,x-systemd.device-timeout=0,headless=yes"

# Errors only, in English, and no script for init.d, which the initramfs does not have (systemctl(1)).
_SYSTEMCTL = {"LC_ALL": "C", "SYSTEMD_LOG_LEVEL": "err", "SYSTEMCTL_SKIP_SYSV": "1"}
# What systemctl says of units that it has read: that of systemd 252, and in other words that of 257. Source:
# install_changes_dump() in systemd's src/shared/install.c, now install_change_dump_error(). It takes EUCLEAN
# for a bad name, and XFS and ext4 mean a damaged block by it: so the name has to be bad, and no path. In the
# same way EBADMSG has to follow the line that has the bad section header.
_UNIT_NAME = r"[\w:.\\@-]+\.(?:service|socket|device|mount|automount|swap|target|path|timer|slice|scope)"
_UNITS_FAULT = re.compile(
    r"(?:(?:"
    r"(?:.+:\d+: Invalid section header .+\n)+Failed to \w+ unit, file .+: Bad message"
    r"|Failed to \w+ unit, (?:"
    r"file .+ already exists(?: and is a symlink to .+)?\."
    r"|unit .+ (?:is masked|is transient or generated|does not exist)\."
    r"|file .+ is under the systemd unit hierarchy already\."
    r'|(?:invalid specifier|cannot resolve specifiers) in ".+"\.'
    rf'|"(?!/|{_UNIT_NAME}").+" is not a valid unit name\.'
    r"|refusing to operate on linked unit file .+"
    r"|cannot alias .+ as .+\."
    r'|invalid unit reference ".+"\.'
    r")"
    r"|Failed to \w+ .+, destination unit .+ is a non-template unit\."
    r"|(?:.+:\d+: Invalid section header .+\n)+(?:Failed to \w+ unit .+: Bad message\n)*"
    r"Failed to \w+ unit .+: Bad message"
    r"|Failed to \w+ unit: (?:"
    r"File '.+' already exists(?: and is a symlink to .+)?"
    r"|Unit .+ (?:is masked|is transient or generated|is an unresolvable alias|does not exist)"
    r"|File '.+' is under the systemd unit hierarchy already"
    r"|(?:Invalid specifier|Cannot resolve specifiers) in unit .+"
    rf"|Invalid unit name (?!/|{_UNIT_NAME}\n).+"
    r"|Refusing to operate on linked unit file .+"
    r"|Cannot alias .+ as .+"
    r"|Invalid unit reference .+"
    r"|Refusing to operate on template unit .+ when destination unit .+ is a non-template unit"
    r")"
    r")\n)+"
)


class Seal(Step):
    name = "seal"
    summary = "make the final boot image"
    stage = Stage.SEAL
    destructive = True

    def observe(self, context: Context) -> Status:
        if context.phase is Phase.PROVISIONED:
            return done("the system starts from its final sdboot")
        if context.phase is not Phase.COMMITTED:
            return waiting("the commit point comes first")
        if not filesystem.mount_sources(places.SYSROOT / "boot"):
            return waiting("the encrypted volumes are mounted first")
        return ready("write keys and crypttab to the system, build the final sdboot, make it bootable")

    def perform(self, context: Context) -> None:
        _enable_units(context)
        with volumes.root_mounted(context) as root:
            _seal(context, root)
        shutil.rmtree(places.STATE)
        places.IGNITION_USER_CONFIG.unlink(missing_ok=True)


def _seal(context: Context, root: Root) -> None:
    files = key_files()
    _add_to_crypttab(root.place(paths.CRYPTTAB), crypttab_lines())
    _remember(root)
    # Last: check-root, at later boots, knows by them that root has all that was to be written there.
    for path, content in files.items():
        for place in {root.place(path): None, root.state(path): None}:
            write_private(place, content)
    growing.at_first_boot(context, root, devicemapper.MAPPER / "root", places.RUNTIME / "grow.lock")
    system_disk = disk.find_disk()
    image = system_image.find(root, places.SYSROOT / "boot")
    with boot_image.se_mounted(system_disk) as se:
        boot_record.settle(se, system_disk)
        first = image.build(context, se, places.STATE, generation=1)
        system_image.record(root, Images(newest=first))
        recovery.leave(context, se, system_disk, image, first)
        system_image.carry_on(root, places.SYSROOT / "boot", image, first.generation)
        boot_record.install(se, system_disk, places.RUNTIME)
        remains.remove(se, root)


def _remember(root: Root) -> None:
    """Of the config and its proof, what later boot images are made of; logins are off in this boot, too."""
    units = boot_image.login_units()
    switches, masks = local_login.arguments(units)
    of_config = config.parse(places.IGNITION_MERGED_CONFIG.read_bytes()).kernel_arguments
    files = local_login.unit_files(units)
    for name, content in files.items():
        write_private(paths.NO_LOGIN_UNITS / name, content)
    system_image.remember(
        root,
        Arguments(
            should_exist=tuple(of_config.should_exist),
            should_not_exist=tuple(of_config.should_not_exist),
            switches=tuple(switches),
            masks=tuple(masks),
        ),
        files,
        {path.name: path.read_bytes() for path in sorted(places.HOST_KEYS.iterdir())},
        {path.name: path.read_bytes() for path in sorted(paths.CERTIFICATES.glob("*.cr[lt]"))},
        {path.name: path.read_bytes() for path in sorted(places.RECOVERY_KEYS.glob("*"))},
        Origin(root_hashes={each.name: each.root_hash for each in Plan.load(places.PLAN).volumes}),
    )


def key_files() -> dict[Path, bytes]:
    """Detached headers with their keys: the same in the system and in its sdboot."""
    return {paths.LUKS_KEYS / name: volumes.secrets_of(name).in_one() for name in VOLUMES}


def crypttab_lines() -> list[str]:
    partitions, lines = disk.find_disk().partitions, []
    for name in VOLUMES:
        file = paths.LUKS_KEYS / name
        options = f"luks,header={file},{encrypted.KEY_BEHIND_HEADER},{_OPTIONS}"
        lines += [
            crypttab.made(name, devicemapper.crypt_mode(name)),
            f"{name} PARTUUID={partitions[name].uuid} {file} {options}",
        ]
    return lines


def _enable_units(context: Context) -> None:
    """As systemd does at the first start of a system (systemd.preset(5)): Ignition leaves that to it.

    The start that follows is none that is taken for a first. So what a spoiled block leaves out here would
    stay out for good: only what the units themselves are to blame for is a warning. systemctl skips presets
    that it cannot read without a word; our units and the config's are therefore enabled one by one.
    """
    if not _systemctl("--preset-mode=enable-only", "preset-all"):
        context.warn("not all units could be enabled: look at them with systemctl preset-all")
    for name in _OUR_UNITS:
        if not _systemctl("enable", "--", name):
            context.warn(f"{name} could not be enabled: the image has masked it, or does not have it")
    for index, unit in enumerate(config.parse(places.IGNITION_MERGED_CONFIG.read_bytes()).systemd.units):
        if unit.enabled and not unit.mask and not _systemctl("enable", "--", unit.name):
            context.warn(f"systemd.units[{index}] of the config could not be enabled: look at its [Install]")


def _systemctl(*words: str) -> bool:
    """Whether this succeeds; not, if it is the units' fault. Raises FirstbootError if anything else fails."""
    try:
        run(["systemctl", f"--root={places.SYSROOT}", *words], environment=_SYSTEMCTL)
    except ToolError as error:  # its words may name units of the config
        if _UNITS_FAULT.fullmatch(error.output):
            return False
        raise FirstbootError(
            "SX-STEP-13",
            "systemd's unit files cannot be read, or not be enabled",
            "look at the disk's health, and start again: first boot goes on from here",
        ) from None
    return True


def _add_to_crypttab(path: Path, lines: list[str]) -> None:
    """Ignition's files stage has written there what the config says of other volumes."""
    write_private(path, crypttab.merge(crypttab.read(path), lines))
