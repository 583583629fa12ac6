"""A running system, not made by first boot, becomes a Secure Execution guest: ``secex enable``.

Nothing of it is encrypted but the boot image, which so far holds no secret.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import is_regular
from secex_firstboot.contract import paths
from secex_firstboot.contract.command_line import name, parameters
from secex_firstboot.hostkeys.proof import tell_kind
from secex_firstboot.roots.kinds import Root
from secex_firstboot.running import hosts, system, update
from secex_firstboot.sdboot import boot_entry, boot_record, contents
from secex_firstboot.sdboot.boot_entry import BootEntry
from secex_firstboot.storage import disk

UNPROTECTED = (
    "/ and /boot are not encrypted: whoever owns the host reads and changes them. What this protects is the"
    " memory of the guest, and the boot image: kernel, initramfs and command line."
)


@dataclass(frozen=True)
class Enabled:
    """``disk`` is the one whose boot record was written."""

    disk: Path
    entry: BootEntry


def make(context: Context, root: Root, partition: Path | None) -> Enabled:
    """Make a boot image of the boot entry that counts, or else of the kernel that runs, on the partition
    named ``se`` or the given one, for the hosts of /etc/se-hostkeys; and make it what the firmware starts.

    Raises Refusal for documents that cannot be proven, and without a partition, a kernel or an initramfs;
    nothing is written then.
    """
    if system.is_provisioned(root):
        raise Refusal("SX-SYSTEM-13", "this system was set up by secex-firstboot", "secex update is for it")
    entry = _boot_entry(context, root)
    found = hosts.given(root)
    if not found:
        raise Refusal(
            "SX-SYSTEM-14",
            f"there is no host-key document in {paths.SYSTEM_HOST_KEYS}",
            f"put those of the guest's machines there, as {paths.HOST_KEY_PREFIX}NAME",
        )
    tell_kind(found, context)
    hosts.check_this_machine(root, found)
    hosts.proof(context, root, root.place(paths.CERTIFICATES)).verify(found)
    where = disk.find_partition("se", partition)
    with (
        update.alone(root),
        tempfile.TemporaryDirectory(dir=root.place(paths.RUNTIME)) as private,  # mode 0700
        update.se(root, where) as se,
    ):
        scratch = Path(private)
        contents.check_room(se, entry)
        with contents.documents_in(scratch, {each.name: each.pem for each in found}) as documents:
            contents.build_sdboot(
                context,
                entry,
                se,
                command_line=entry.options,
                overlay={},
                documents=documents,
                archive=scratch / "overlay.cpio",
                scratch=scratch,
            )
        boot_record.install(se, where, scratch)
    return Enabled(where.device, entry)


def _boot_entry(context: Context, root: Root) -> BootEntry:
    boot = root.place(paths.BOOT)
    if any((boot / "loader/entries").glob("*.conf")):
        return boot_entry.find(boot)
    release = root.place(paths.KERNEL_RELEASE).read_text().strip()
    kernel, initramfs = (
        next((path for form in forms if is_regular(path := boot / form.format(release))), None)
        for forms in (boot_entry.KERNELS, boot_entry.INITRAMFS)
    )
    if not kernel or not initramfs:
        raise Refusal(
            "SX-SYSTEM-15",
            f"kernel and initramfs of {release} are not in {boot}, and no boot entry names others",
            f"write a boot entry, {boot}/loader/entries/NAME.conf",
        )
    words = [word for word in parameters(context.command_line) if name(word) != "BOOT_IMAGE"]
    return BootEntry("", release, kernel, (initramfs,), " ".join(words))
