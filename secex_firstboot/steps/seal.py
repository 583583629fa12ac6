"""seal: the final sdboot, with keys and detached headers, without plan, GPG key or first-boot argument."""

from __future__ import annotations

import shutil
from pathlib import Path

from secex_firstboot import grow, paths, record
from secex_firstboot.errors import FirstbootError, Refusal
from secex_firstboot.files import exists, sync, write_private
from secex_firstboot.ignition import local_login
from secex_firstboot.ignition.crypttab import merge_crypttab
from secex_firstboot.process import run
from secex_firstboot.sdboot import boot_entry, boot_record
from secex_firstboot.sdboot.initramfs import Directory, Entry, File
from secex_firstboot.step import Context, Phase, Stage, Status, Step, done, ready, waiting
from secex_firstboot.steps.personalise import volume_secrets
from secex_firstboot.steps.sdboot import build_sdboot, se_mounted, system_command_line
from secex_firstboot.steps.volumes import CRYPTTAB
from secex_firstboot.storage import devicemapper, disk, filesystem, overlay

_VOLUMES = ("boot", "root")
# Opened in the initramfs, and kept open in the system; without a time limit for the disk to appear, as dracut
# has none for the root device; without asking at the host's console for a passphrase.
_OPTIONS = "x-initrd.attach,x-systemd.device-timeout=0,headless=yes"


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
        if not filesystem.mount_sources(paths.SYSROOT / "boot"):
            return waiting("the encrypted volumes are mounted first")
        return ready("write keys and crypttab to the system, build the final sdboot, make it bootable")

    def perform(self, context: Context) -> None:
        files, crypttab = key_files(), crypttab_lines()
        _add_to_crypttab(paths.SYSROOT / CRYPTTAB.relative_to("/"), crypttab)
        _enable_units(context)
        # Last: check-root, at later boots, knows by them that root has all that was to be written there.
        for path, content in files.items():
            write_private(paths.SYSROOT / path.relative_to("/"), content)
        grow.at_first_boot(context, paths.SYSROOT, devicemapper.MAPPER / "root")
        found = disk.find_disk()
        entry = boot_entry.find(paths.SYSROOT / "boot")
        added: dict[str, Entry] = {str(paths.LUKS_KEYS): Directory(0o700)}
        added |= {str(path): File(content) for path, content in files.items()}
        added[str(CRYPTTAB)] = File(merge_crypttab(b"", crypttab))
        for name, content in local_login.unit_files().items():
            path = paths.NO_LOGIN_UNITS / name
            write_private(path, content)
            added[str(path)] = File(content)
        with se_mounted(found) as se:
            boot_record.settle(se, found)
            build_sdboot(context, entry, se, command_line=system_command_line(entry.options), overlay=added)
            boot_record.install(se, found, paths.RUNTIME)
            tidy(se, paths.SYSROOT)
        shutil.rmtree(paths.STATE)
        paths.IGNITION_USER_CONFIG.unlink(missing_ok=True)


def tidy_in_system(context: Context) -> None:
    """In the running system, after a power cut behind the last switch: secex-firstboot-tidy.service."""
    if context.phase is not Phase.PROVISIONED:
        raise Refusal("this system was not set up by secex-firstboot", "there is nothing to tidy here")
    with se_mounted(disk.find_disk()) as se:
        tidy(se, Path("/"))
    context.say("nothing of first boot is left on the disk")


def tidy(se: Path, root: Path) -> None:
    """Remove what only first boot needed; as long as some of it is there, the system does this again.

    The mark that stops an earlier boot image that is put back comes before the overlay's directory goes:
    without that, nothing shows that Ignition has run.
    """
    boot_record.tidy(se)
    record.remove(se)
    sync(se)
    write_private(root / paths.SEALED.relative_to("/"), b"")
    overlay.remove(root)


def key_files() -> dict[Path, bytes]:
    """Keys, detached headers, and what check-volume compares: the same in the system and in its sdboot."""
    files = {}
    for name in _VOLUMES:
        secrets = volume_secrets(name)
        files[paths.LUKS_KEYS / name] = secrets.key.read_bytes()
        files[paths.LUKS_KEYS / f"{name}.header"] = secrets.header.read_bytes()
        files[paths.LUKS_KEYS / f"{name}.mode"] = devicemapper.crypt_mode(name).encode() + b"\n"
    return files


def crypttab_lines() -> list[str]:
    partitions, keys = disk.find_disk().partitions, paths.LUKS_KEYS
    return [
        f"{name} PARTUUID={partitions[name].uuid} {keys / name} luks,header={keys / name}.header,{_OPTIONS}"
        for name in _VOLUMES
    ]


def _enable_units(context: Context) -> None:
    """As systemd does at the first start of a system (systemd.preset(5)): Ignition leaves that to it.

    The start that follows is the only one that is taken for a first, and the power may fail in it.
    """
    try:
        run(["systemctl", f"--root={paths.SYSROOT}", "--preset-mode=enable-only", "preset-all"])
    except FirstbootError:  # its words may name units of the config
        context.warn("not all units could be enabled: look at them with systemctl preset-all")


def _add_to_crypttab(path: Path, lines: list[str]) -> None:
    """Ignition's files stage has written there what the config says of other volumes."""
    existing = path.read_bytes() if exists(path) else b""
    write_private(path, merge_crypttab(existing, lines))
