"""Kernels that packages add and remove: Debian's hooks call this, as Debian writes no boot entries.

Names as linux-image packages and dracut have them on ``/boot``: ``vmlinuz-RELEASE``, ``initrd.img-RELEASE``.
"""

from __future__ import annotations

import re
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import is_regular, sync
from secex_firstboot.roots import system_image
from secex_firstboot.running import system, update
from secex_firstboot.sdboot import boot_entry

_RELEASE = re.compile(r"\w[\w.+~-]{0,99}", re.ASCII)  # part of names of files
_NOTHING = "it has no boot images"


def added(context: Context, root: Path, release: str) -> None:
    """Give it a boot entry, unless it has one, and make the boot image of the newest. Raises Refusal."""
    _check(root, release)
    boot = root / "boot"
    linux, initrd = f"vmlinuz-{release}", f"initrd.img-{release}"
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


def check_may_go(root: Path, release: str) -> None:
    """Raise Refusal if the image to fall back to needs its modules."""
    _check(root, release)
    images = system_image.images(root)
    if images and images.fallback and images.fallback.kernel == release:
        raise Refusal(
            "SX-SYSTEM-04",
            f"kernel {release} is that of the boot image to fall back to",
            "remove it after a newer one has been replaced, or set fallback=off in /etc/secex-firstboot.conf",
        )


def gone(context: Context, root: Path, release: str) -> None:
    """Remove its boot entries, and make the boot image of the newest that is left. Raises Refusal."""
    _check(root, release)
    for entry in boot_entry.naming(root / "boot", f"vmlinuz-{release}"):
        entry.unlink()
        sync(entry.parent)
        context.say(f"the boot entry {entry.name} of kernel {release} is removed")
    update.in_system(context, root)


def _check(root: Path, release: str) -> None:
    system.check_provisioned(root, _NOTHING)
    if not _RELEASE.fullmatch(release):
        raise Refusal("SX-SYSTEM-05", "that is no release of a kernel", "give it as uname -r does")
