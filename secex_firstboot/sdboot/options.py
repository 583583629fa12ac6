"""The command lines of the boot images: what the image's own must have, and what first boot makes of it."""

from __future__ import annotations

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract import paths
from secex_firstboot.contract.command_line import name, parameters
from secex_firstboot.ignition import kernel_arguments
from secex_firstboot.ignition.config import KernelArguments
from secex_firstboot.ignition.kernel_arguments import Family
from secex_firstboot.sdboot import boot_entry
from secex_firstboot.storage import partition_table

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
# Whoever's config it is, is root in the same memory soon. Source: kernel-parameters.txt in Linux's
# Documentation/admin-guide; systemd-gpt-auto-generator(8).
_NEEDED = {
    "init_on_free=1": "the image's private key would stay in memory that was freed",
    NO_GPT_AUTO: "systemd would use partitions that the host adds",
    NO_FSCK: "a file system check would remove what the host makes unreadable",
}


def check(command_line: str) -> None:
    """Raise Refusal if it lets the host in: that of the image's sdboot, and that of the personalised one."""
    words = command_line.split()
    if any(word.startswith("root=") and word != f"root={ROOT_DEVICE}" for word in words):
        raise Refusal(
            f"root= on the kernel command line is not {ROOT_DEVICE}, and may name a disk of the host's",
            f"build the image with root={ROOT_DEVICE}",
        )
    for word in words:
        if name(word) in ROOT_FROM_NETWORK:
            raise Refusal(
                f"the kernel command line has {name(word)}=, and a root from the network is the host's",
                f"build the image without it, with root={ROOT_DEVICE}",
            )
        if name(word) == name(NETWORK_ALWAYS) and word != NETWORK_ALWAYS:
            raise Refusal(f"{word} is not {NETWORK_ALWAYS}", "build the image with that, or without it")
    for word, danger in _NEEDED.items():
        if word not in words:
            raise Refusal(f"the kernel command line has no {word}, so {danger}", "build the image with it")


def first_boot_command_line(options: str) -> str:
    """For the personalised sdboot: the boot entry's options, and what a first boot needs to go on."""
    return boot_entry.command_line(
        _from_our_volumes(options), add=[paths.CMDLINE_FIRSTBOOT, partition_table.FORCE_GPT]
    )


def system_command_line(
    options: str, arguments: KernelArguments, switches: list[str], masks: list[str]
) -> str:
    """For the final sdboot: the boot entry's options as the config's kernelArguments change them.

    With what keeps logins off its consoles, see ignition.local_login; without a network in its initramfs,
    unless the image asks for it.
    """
    if NETWORK_ALWAYS not in parameters(options):
        kernel_arguments.refuse(arguments, NETWORK)
        options = boot_entry.command_line(options, remove=NETWORK.names)
    line = _from_our_volumes(kernel_arguments.apply(options, arguments))
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
