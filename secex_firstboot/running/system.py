"""The running system: whether first boot made it, and which of its boot images it has started from."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from secex_firstboot.basic import mount_namespace
from secex_firstboot.basic.context import Context, kernel_command_line
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import exists
from secex_firstboot.basic.process import run
from secex_firstboot.contract import parameters, paths
from secex_firstboot.roots import kinds
from secex_firstboot.roots.kinds import Root

_INSIDE = "SECEX_WRITABLE"  # in the environment


def root() -> Root:
    """Of the system that runs. Raises FirstbootError if its kernel command line makes no sense."""
    return kinds.of(Path("/"), kernel_command_line())


def writable_root() -> Root:
    """The same, for who changes what is on its volume.

    In a system made by ostree that may be mounted read-only (ostree-prepare-root(1), sysroot.readonly): then
    the program starts again in a mount namespace of its own, as ostree(1) does, where it is not. So this
    comes before all that takes long to load.
    """
    found = root()
    if found.volume == found.system or not os.statvfs(found.volume).f_flag & os.ST_RDONLY:
        return found
    if os.environ.get(_INSIDE):
        run(["mount", "-o", "remount,bind,rw", found.volume])
        return found
    mount_namespace.start_again(_INSIDE, sys.orig_argv)


def is_provisioned(root: Root) -> bool:
    """Whether first boot set up the system on ``root``."""
    return exists(root.state(paths.LUKS_KEYS / "root"))


def check_provisioned(root: Root, nothing: str) -> None:
    """Raise Refusal if first boot did not set up the system on ``root``; ``nothing`` says what follows."""
    if not is_provisioned(root):
        raise Refusal("SX-SYSTEM-01", "this system was not set up by secex-firstboot", nothing)


def generation(context: Context) -> int:
    """The number of the boot image that runs; 0 in first boot's own session. Raises Refusal."""
    return parameters.value(context.command_line, parameters.GENERATION)
