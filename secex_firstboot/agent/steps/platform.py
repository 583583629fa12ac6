"""platform: a Secure Execution guest, with the one disk of an SE-ready image."""

from __future__ import annotations

from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done
from secex_firstboot.basic.errors import DeviceMissing, Refusal
from secex_firstboot.contract import paths
from secex_firstboot.contract.command_line import name
from secex_firstboot.roots import identity
from secex_firstboot.sdboot.contents import (
    NETWORK_ALWAYS,
    NO_FSCK,
    NO_GPT_AUTO,
    ROOT_DEVICE,
    ROOT_FROM_NETWORK,
)
from secex_firstboot.storage import disk

# Whoever's config it is, is root in the same memory soon. Source: kernel-parameters.txt in Linux's
# Documentation/admin-guide; systemd-gpt-auto-generator(8).
_NEEDED = {
    "init_on_free=1": "the image's private key would stay in memory that was freed",
    NO_GPT_AUTO: "systemd would use partitions that the host adds",
    NO_FSCK: "a file system check would remove what the host makes unreadable",
}


class Platform(Step):
    name = "platform"
    summary = "check that this is a Secure Execution guest and find the disk"
    stage = Stage.CONFIG

    def observe(self, context: Context) -> Status:
        _check_secure_execution()
        if context.phase is not Phase.PROVISIONED:
            _check_no_swap()
        if context.phase is Phase.FIRST:
            check_command_line(context.command_line)
            identity.replace(context)
        found = disk.find_disk()
        if context.phase is Phase.FIRST and not found.has_hash_trees:
            raise DeviceMissing(
                f"{found.device} has no partitions boothash and roothash, so it was provisioned before",
                "start it with its own sdboot, or start again from an unchanged image",
            )
        return done(f"Secure Execution guest, disk {found.device}, {found.size >> 20} MiB")

    def perform(self, context: Context) -> None:
        """Nothing: the ground is right, or it is refused."""


def _check_secure_execution() -> None:
    try:
        secure = paths.SECURE_EXECUTION_GUEST.read_text(encoding="ascii").strip() == "1"
    except OSError:
        secure = False
    if not secure:
        raise Refusal(
            "this machine is not an IBM Secure Execution guest",
            "start the SE-ready image on an IBM z15 or LinuxONE III or newer, as a Secure Execution guest",
        )


def check_command_line(command_line: str) -> None:
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


def _check_no_swap() -> None:
    """Memory that is swapped out, zram's writeback included, lies on the host's disk (proc(5))."""
    if len(paths.SWAPS.read_text(encoding="utf-8").splitlines()) > 1:
        raise Refusal(
            "swap is on in the initramfs, and could take keys to the host's disk",
            "build the image without swap in its initramfs; turn it on in the provisioned system",
        )
