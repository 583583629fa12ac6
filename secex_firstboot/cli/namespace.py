"""A mount namespace of one's own, and for who is not root a user namespace: there files may have any owner.

What is mounted in it, and the loop devices behind, end with the process, however that ends. What is unmounted
outside meanwhile is so in it too: it keeps nobody's device busy.
"""

from __future__ import annotations

import os
import shutil
import sys

from secex_firstboot.basic import mount_namespace
from secex_firstboot.basic.errors import Refusal

_INSIDE = "SECEX_NAMESPACE"  # in the environment


def enter() -> None:
    """Go on inside: the program starts again, by unshare(1). Raises Refusal where that cannot be."""
    if os.environ.get(_INSIDE):
        return
    user = ["--user", "--map-root-user", "--map-auto"] if os.geteuid() else []
    for program, package in (
        ("unshare", "util-linux"),
        *([("newuidmap", "uidmap (shadow-utils)")] if user else []),
    ):
        if not shutil.which(program):
            raise Refusal(
                "SX-BUILD-43", f"{program} is not installed", f"install {package}, or run it as root"
            )
    command = [sys.executable, "-P", "-m", "secex_firstboot.cli.secex", *sys.argv[1:]]
    mount_namespace.start_again(_INSIDE, command, *user)
