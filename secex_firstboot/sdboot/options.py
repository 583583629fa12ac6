"""The command lines of the boot images: what the image's own must have, and what first boot makes of it."""

from __future__ import annotations

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract import parameters
from secex_firstboot.contract.command_line import join, loosely, name
from secex_firstboot.contract.command_line import parameters as words
from secex_firstboot.ignition import kernel_arguments
from secex_firstboot.ignition.config import KernelArguments
from secex_firstboot.ignition.kernel_arguments import Family
from secex_firstboot.sdboot import boot_entry
from secex_firstboot.storage import partition_table

# What else asks for a check, systemd-fsck@.service(8).
_FSCK = ("fsck.repair", "forcefsck", "fastboot")
# A root beside ours, dracut.cmdline(7).
ROOT_FROM_NETWORK = ("netroot", "nfsroot")
# dracut.cmdline(7), "Network". Not rd.znet and rd.zdev: they make devices, for the running system as well.
NETWORK = Family(
    (
        *("rd.neednet", "rd.net.*", "rd.peerdns", "rd.route", "ip", "nameserver", "bootdev", "BOOTIF"),
        *("ifname", "bond", "bridge", "team", "vlan"),
    ),
    f"a network in the initramfs of later boots, which only an image with {parameters.NETWORK} has",
)


def check(command_line: str) -> None:
    """Raise Refusal if it lets the host in: that of the image's sdboot, and that of the personalised one."""
    parameters.check(command_line, (*parameters.NEEDED, *parameters.OURS, parameters.OSTREE))
    for word in loosely(command_line):
        if name(word) in ROOT_FROM_NETWORK:
            raise Refusal(
                "SX-SDBOOT-29",
                f"the kernel command line has {name(word)}=, and a root from the network is the host's",
                f"build the image without it, with {parameters.ROOT}",
            )


def first_boot_command_line(options: str) -> str:
    """For the personalised sdboot: the boot entry's options, and what a first boot needs to go on."""
    return boot_entry.command_line(
        _from_our_volumes(options), add=[parameters.FIRSTBOOT.name, partition_table.FORCE_GPT]
    )


def system_command_line(
    options: str, arguments: KernelArguments, switches: list[str], masks: list[str]
) -> str:
    """For the final sdboot: the boot entry's options as the config's kernelArguments change them.

    With what keeps logins off its consoles, see ignition.local_login; without a network in its initramfs,
    unless the image asks for it. Made of what it has made before, it is the same.
    """
    if not parameters.value(options, parameters.NETWORK):
        kernel_arguments.refuse(arguments, NETWORK)
        options = boot_entry.command_line(options, remove=NETWORK.names)
    own = join([word for word in words(options) if word not in masks], [])
    line = _from_our_volumes(kernel_arguments.apply(own, arguments))
    line = boot_entry.command_line(line, remove={name(switch) for switch in switches})
    return boot_entry.command_line(line, add=[*switches, *masks])


def numbered(command_line: str, generation: int) -> str:
    """With the number of a boot image, in place of any that it has."""
    number = f"{parameters.GENERATION.name}={generation}"
    return boot_entry.command_line(command_line, add=[number], remove={parameters.GENERATION.name})


def _from_our_volumes(options: str) -> str:
    """With the encrypted volume as root, whatever label or UUID they name.

    And with nothing that the host adds, nor anything removed that it makes unreadable.
    """
    needed = (parameters.ROOT, parameters.NO_GPT_AUTO, parameters.NO_FSCK)
    return boot_entry.command_line(
        options,
        add=[str(row) for row in needed],
        remove={
            *(each for row in needed for each in row.names),
            *ROOT_FROM_NETWORK,
            *_FSCK,
            parameters.FIRSTBOOT.name,
            parameters.GENERATION.name,
        },
    )
