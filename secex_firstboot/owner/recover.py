"""A guest's disk on another machine: what was left for recovery keys, and what it opens.

The host has had the disk, and the public key: what is there may be of its making, and then opens its volumes,
not the owner's. Only evidence that the guest once gave tells these apart, see ``prove``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import exists, is_regular, sync, write_private
from secex_firstboot.contract import paths
from secex_firstboot.contract.boot_image import Image, Images
from secex_firstboot.contract.evidence import Evidence
from secex_firstboot.contract.partitions import VOLUMES, luks_label
from secex_firstboot.contract.recovery import LIMIT, MESSAGE, Recovery
from secex_firstboot.hostkeys.document import Document
from secex_firstboot.ignition import openpgp
from secex_firstboot.roots import kinds, recovery, system_image
from secex_firstboot.roots.kinds import Root
from secex_firstboot.sdboot import boot_entry, boot_record, contents
from secex_firstboot.storage import cryptsetup, devicemapper, encrypted, filesystem
from secex_firstboot.storage.disk import Disk
from secex_firstboot.storage.encrypted import KEY_SIZE, Secrets

_MAPPING = "recover-"  # before the volume's name: this machine may have its own of that
_NO_LINKS = "nosymfollow"  # mount(8): none of the disk's leads to what is this machine's
_COPY = "look for a copy of the disk, or of its partition se"


def find(disk: Disk, work: Path) -> Recovery:
    """What was left on the ``disk``, opened by the user's own gpg. Raises Refusal.

    ``work``, here and below, is a directory in memory for this alone.
    """
    with boot_record.mounted(disk, work / "se", _NO_LINKS) as se:
        path = se / MESSAGE
        if not is_regular(path, follow_symlinks=False):
            raise Refusal(
                "SX-RECOVER-09",
                f"partition se has no {MESSAGE}",
                "without recovery keys in its config nothing is left: only its hosts open this disk",
            )
        try:
            message = openpgp.read_message(path, LIMIT)
        except Refusal:  # which speaks of a config
            raise Refusal("SX-RECOVER-10", f"{MESSAGE} on partition se is damaged", _COPY) from None
    found = Recovery.parse(openpgp.decrypt_as_user(message))
    for name, volume in found.volumes.items():
        if disk.partitions[name].uuid != volume.partition:
            raise Refusal(
                "SX-RECOVER-12", f"{MESSAGE} is of another disk: partition {name} has another UUID", _COPY
            )
    return found


def prove(found: Recovery, evidence: Evidence) -> None:
    """Raise Refusal unless what opens the volumes is what the guest had that gave this evidence.

    The keys of its volumes never change, so that any will do, however old.
    """
    for name, volume in found.volumes.items():
        known = {each.inputs.get(f"file {paths.LUKS_KEYS / name}") for each in evidence.images}
        if hashlib.sha256(volume.opens).hexdigest() not in known:
            raise Refusal(
                "SX-RECOVER-13",
                f"{MESSAGE} opens another volume {name} than the guest's that gave the evidence",
                "it is another guest's disk, or the host has put its own there: trust nothing on it",
            )


def open_volumes(disk: Disk, found: Recovery, work: Path) -> dict[str, Path]:
    """Open them with their headers in the message, which nothing has read before; the devices by the volumes'
    names. One may stay open if it fails: see close_volumes.
    """
    if not exists(devicemapper.MAPPER / "control"):
        raise Refusal(
            "SX-RECOVER-14",
            "this machine has no device-mapper, which opens the volumes",
            "modprobe dm_mod, or attach the disk to a virtual machine that has it",
        )
    devices = {}
    for name, volume in found.volumes.items():
        _check_header(name, volume.opens[:-KEY_SIZE])
        files = Secrets.below(work / name)
        try:
            write_private(files.header, volume.opens[:-KEY_SIZE])
            write_private(files.key, volume.opens[-KEY_SIZE:])
            device = disk.partitions[name].device
            devices[name] = encrypted.open_volume(files, device, f"{_MAPPING}{name}", private=True)
        finally:
            for path in (files.header, files.key):
                path.unlink(missing_ok=True)
    return devices


def _check_header(name: str, header: bytes) -> None:
    """That first boot makes such a one."""
    says = cryptsetup.describe(header)
    made = ("-".join(cryptsetup.CIPHER), cryptsetup.INTEGRITY, luks_label(name), cryptsetup.DATA_OFFSET)
    if (says.cipher, says.integrity, says.label, says.data_offset) != made:
        raise Refusal(
            "SX-RECOVER-11", f"{MESSAGE} is for another kind of volume {name} than first boot makes", _COPY
        )


def close_volumes() -> None:
    for name in VOLUMES:
        cryptsetup.close(f"{_MAPPING}{name}")


def start_on(
    context: Context,
    disk: Disk,
    found: Recovery,
    documents: Sequence[Document],
    certificates: Mapping[str, bytes],
    work: Path,
) -> Image:
    """Make the disk start on the hosts of these ``documents``, which are proven, and on no others.

    ``certificates``, and CRLs, that prove them are kept beside them in the guest. Killed at any moment, it
    leaves the old boot image or the new one, and can be done again.
    """
    with _mounted(disk, found, work) as (root, boot):
        _check_whole(root, found)
        before = system_image.images(root)
        _replace_hosts(root, documents, certificates)
        image = system_image.find(root, boot)
        with boot_record.mounted(disk, work / "se", _NO_LINKS) as se:
            boot_record.settle(se, disk)
            try:
                contents.check_room(se, image.entry)
            except Refusal:
                boot_record.leave(se, disk, work, boot_record.IMAGE)
                contents.check_room(se, image.entry)
            made = image.build(context, se, work, system_image.new_number(root, before))
            recovery.leave(context, se, disk, image, made)
            system_image.allow_new(root, made.generation)
            system_image.carry_on(root, boot, image, made.generation)
            boot_record.install(se, disk, work)
        system_image.record(root, Images(newest=made))
    return made


@contextmanager
def _mounted(disk: Disk, found: Recovery, work: Path) -> Iterator[tuple[Root, Path]]:
    """Root and boot, for the length of a ``with`` block."""
    with ExitStack() as stack:
        stack.callback(close_volumes)
        devices = open_volumes(disk, found, work)
        where = {
            name: stack.enter_context(
                filesystem.mounted(
                    device,
                    work / f"{name}-mounted",
                    type=filesystem.identify(device, name).type,
                    options=_NO_LINKS,
                )
            )
            for name, device in devices.items()
        }
        yield kinds.on(where["root"], boot_entry.find(where["boot"]).options), where["boot"]


def _check_whole(root: Root, found: Recovery) -> None:
    """That first boot has ended there, and left what opens these volumes."""
    for name, volume in found.volumes.items():
        path = root.state(paths.LUKS_KEYS / name)
        if not is_regular(path) or path.read_bytes() != volume.opens:
            raise FirstbootError(
                "SX-RECOVER-15",
                f"the root file system has not what opens its volume {name}",
                "secex recover --open, and copy what is wanted from it",
            )


def _replace_hosts(root: Root, documents: Sequence[Document], certificates: Mapping[str, bytes]) -> None:
    given = {each.name: each.pem for each in documents}
    directory = root.place(paths.SYSTEM_HOST_KEYS)
    for path, content in (
        *((directory / name, content) for name, content in given.items()),
        *((root.place(paths.SYSTEM_CERTIFICATES) / name, content) for name, content in certificates.items()),
    ):
        write_private(path, content)
        path.chmod(0o644)
    system_image.keep_hosts(root, given)
    for path in directory.iterdir():
        if path.name.startswith(paths.HOST_KEY_PREFIX) and path.name not in given:
            path.unlink()
    sync(directory)
