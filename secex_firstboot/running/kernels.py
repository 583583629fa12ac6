"""Kernels that packages add and remove: Debian's hooks call this, as Debian writes no boot entries.

Names as linux-image packages and dracut have them on ``/boot``: ``vmlinuz-RELEASE``, ``initrd.img-RELEASE``.
"""

from __future__ import annotations

import re
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import is_regular, sync
from secex_firstboot.contract import paths
from secex_firstboot.roots import system_image
from secex_firstboot.roots.kinds import Root
from secex_firstboot.running import system, update
from secex_firstboot.sdboot import boot_entry

_RELEASE = re.compile(r"\w[\w.+~-]{0,99}", re.ASCII)  # part of names of files
_LINUX = "vmlinuz-{}"
_NOTHING = "it has no boot images"


def added(context: Context, root: Root, release: str) -> None:
    """Give it a boot entry, unless it has one, and make the boot image of the newest. Raises Refusal."""
    _check(root, release)
    boot = root.place(paths.BOOT)
    linux, initrd = _LINUX.format(release), f"initrd.img-{release}"
    for name in (linux, initrd):
        if not is_regular(boot / name):
            raise Refusal(
                "SX-SYSTEM-03",
                f"{boot / name} is not there",
                f"make it, for instance with dpkg-reconfigure linux-image-{release}",
            )
    if not boot_entry.naming(boot, linux):
        entry = boot_entry.add(boot, boot_entry.find(boot), release, linux, initrd)
        context.say(f"kernel {release} has the boot entry {entry.name}")
    update.in_system(context, root)


def check_may_go(context: Context, root: Root, release: str) -> None:
    """Raise Refusal if the image that runs, or the one to fall back to, needs its modules, or no boot entry
    has another kernel."""
    _check(root, release)
    images = system_image.images(root)
    running = system.generation(context)
    needed = {each.kernel for each in images.needed(running)} if images else set()
    if release in needed | {_running(root)}:
        raise Refusal(
            "SX-SYSTEM-04",
            f"kernel {release} is that of the boot image that runs, or to fall back to",
            "remove it once another one has come up, and been replaced",
        )
    if _is_the_only(root.place(paths.BOOT), release):
        raise Refusal(
            "SX-SYSTEM-16", f"no boot entry has another kernel than {release}", "install another one first"
        )


def gone(context: Context, root: Root, release: str) -> None:
    """Remove its boot entries, and make the boot image of the newest that is left; the last ones stay, as the
    options for the next kernel stand there. Raises Refusal."""
    _check(root, release)
    boot = root.place(paths.BOOT)
    if not _is_the_only(boot, release):
        for entry in boot_entry.naming(boot, _LINUX.format(release)):
            entry.unlink()
            sync(entry.parent)
            context.say(f"the boot entry {entry.name} of kernel {release} is removed")
    update.in_system(context, root)


def _running(root: Root) -> str:
    path = root.place(paths.KERNEL_RELEASE)
    return path.read_text().strip() if is_regular(path) else ""


def _is_the_only(boot: Path, release: str) -> bool:
    return len(boot_entry.naming(boot, _LINUX.format(release))) == boot_entry.number(boot)


def _check(root: Root, release: str) -> None:
    system.check_provisioned(root, _NOTHING)
    if not _RELEASE.fullmatch(release):
        raise Refusal("SX-SYSTEM-05", "that is no release of a kernel", "give it as uname -r does")
