"""What the two steps that build an sdboot share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.agent.step import Context
from secex_firstboot.contract import paths
from secex_firstboot.contract.command_line import name, parameters
from secex_firstboot.hostkeys import document
from secex_firstboot.ignition import config, kernel_arguments, local_login
from secex_firstboot.ignition.kernel_arguments import Family
from secex_firstboot.sdboot import boot_entry, boot_record, create
from secex_firstboot.sdboot.initramfs import Entry, write_archive
from secex_firstboot.storage import filesystem, loop, partition_table
from secex_firstboot.storage.disk import Disk

ROOT_DEVICE = "/dev/mapper/root"
# systemd-gpt-auto-generator(8) would swap to, and mount, partitions that the host adds to root's disk.
NO_GPT_AUTO = "systemd.gpt_auto=0"
# systemd-fsck@.service(8): a check that repairs removes what hangs on a block that the host made unreadable.
NO_FSCK = "fsck.mode=skip"
FSCK = ("fsck.mode", "fsck.repair", "forcefsck", "fastboot")
# A root beside ours, dracut.cmdline(7).
ROOT_FROM_NETWORK = ("netroot", "nfsroot")
NETWORK_ALWAYS = "secex.network=always"
# dracut.cmdline(7), "Network". Not rd.znet and rd.zdev: they make devices, for the running system as well.
NETWORK = Family(
    (
        *("rd.neednet", "rd.net.*", "rd.peerdns", "rd.route", "ip", "nameserver", "bootdev", "BOOTIF"),
        *("ifname", "bond", "bridge", "team", "vlan"),
    ),
    f"a network in the initramfs of later boots, which only an image with {NETWORK_ALWAYS} has",
)


def first_boot_command_line(options: str) -> str:
    """For the personalised sdboot: the boot entry's options, and what a first boot needs to go on."""
    return boot_entry.command_line(
        _from_our_volumes(options), add=[paths.CMDLINE_FIRSTBOOT, partition_table.FORCE_GPT]
    )


def system_command_line(options: str) -> str:
    """For the final sdboot: the boot entry's options as the config's kernelArguments change them.

    With what keeps logins off its consoles; without a network in its initramfs, unless the image asks for it.
    """
    arguments = config.parse(paths.IGNITION_MERGED_CONFIG.read_bytes()).kernel_arguments
    if NETWORK_ALWAYS not in parameters(options):
        kernel_arguments.refuse(arguments, NETWORK)
        options = boot_entry.command_line(options, remove=NETWORK.names)
    line = _from_our_volumes(kernel_arguments.apply(options, arguments))
    switches, masks = local_login.arguments()
    line = boot_entry.command_line(line, add=switches, remove={name(switch) for switch in switches})
    return boot_entry.command_line(line, add=[mask for mask in masks if mask not in parameters(line)])


def _from_our_volumes(options: str) -> str:
    """With the encrypted volume as root, whatever label or UUID they name.

    And with nothing that the host adds, nor anything removed that it makes unreadable.
    """
    return boot_entry.command_line(
        options,
        add=[f"root={ROOT_DEVICE}", NO_GPT_AUTO, NO_FSCK],
        remove={"root", *ROOT_FROM_NETWORK, "systemd.gpt_auto", *FSCK, paths.CMDLINE_FIRSTBOOT},
    )


@contextmanager
def se_mounted(found: Disk) -> Iterator[Path]:
    """Partition ``se``, mounted from a loop device over it.

    zipl takes another device than the disk for its boot record, see sdboot.boot_record, only if it cannot
    tell which disk a file is on (zipl/src/bootmap.c, "File is not on target device").
    """
    partition = found.partitions["se"].device
    with (
        loop.attached(partition, block_size=found.block_size) as device,
        filesystem.mounted(device, paths.SE_MOUNT, type="ext4") as se,
    ):
        yield se


def build_sdboot(
    context: Context,
    entry: boot_entry.BootEntry,
    se: Path,
    *,
    command_line: str,
    overlay: Mapping[str, Entry],
) -> None:
    """Write ``sdboot.new`` on ``se``: kernel and initramfs of ``entry``, and ``overlay`` appended."""
    documents = [document.parse(path.name, path.read_bytes()) for path in sorted(paths.HOST_KEYS.iterdir())]
    archive = paths.STATE.with_name("secex-firstboot-overlay.cpio")
    try:
        write_archive(archive, overlay)
        builder = create.create(
            se / boot_record.NEW_IMAGE,
            kernel=entry.linux,
            ramdisk=[*entry.initrd, archive],
            command_line=command_line,
            host_keys={paths.HOST_KEYS / each.name: each.public_key for each in document.distinct(documents)},
            progress=lambda done, total: context.progress("build sdboot", done, total),
            scratch=paths.RUNTIME,
        )
    finally:
        archive.unlink(missing_ok=True)
    context.say(f"sdboot built with {builder}")
