"""What apt may not remove by itself: the kernels of the boot images, which it takes for no longer needed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

from secex_firstboot.basic.files import is_directory, is_regular, write_private
from secex_firstboot.roots.kinds import Root

_CONFIGURATION = PurePath("/etc/apt/apt.conf.d/95secex-firstboot")  # apt.conf(5)


def keep_kernels(root: Root, releases: Iterable[str]) -> None:
    """Let ``apt autoremove`` leave the packages of these kernels; where there is no apt, nothing."""
    path = root.place(_CONFIGURATION)
    if not root.has_packages or not is_directory(path.parent):
        return
    patterns = (each.replace(".", "[.]").replace("+", "[+]") for each in sorted(releases))
    lines = ["// secex-firstboot: the kernels of the boot images.", "APT::NeverAutoRemove {"]
    lines += [f'  "^linux-.*-{each}$";' for each in patterns if '"' not in each]
    content = "".join(f"{line}\n" for line in [*lines, "};"]).encode()
    if not is_regular(path) or path.read_bytes() != content:
        write_private(path, content)
        path.chmod(0o644)
