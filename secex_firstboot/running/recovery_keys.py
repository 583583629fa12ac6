"""The owner's recovery keys in /etc/se-hostkeys/recovery: each counts once it could be encrypted to."""

from __future__ import annotations

import tempfile
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import exists, is_regular
from secex_firstboot.contract import paths
from secex_firstboot.hostkeys import recovery_keys
from secex_firstboot.ignition import recipients
from secex_firstboot.roots import system_image
from secex_firstboot.roots.kinds import Root


def settle(context: Context, root: Root) -> None:
    """Take what is new there, and let what is gone be gone. Raises Refusal for a key that is none to use."""
    kept = system_image.recovery_keys(root)
    given = {each.name: each.armored for each in recovery_keys.of_files(_given(root))}
    if given == kept:
        return
    recovery_keys.usable(given, Path(tempfile.gettempdir()))
    system_image.keep_recovery_keys(root, given)
    context.say(recovery_keys.told(list(given)))


def _given(root: Root) -> dict[str, bytes]:
    directory = root.place(paths.RECOVERY_KEYS)
    if not exists(directory):
        return {}
    found = {}
    for path in sorted(directory.glob("*.asc")):
        if not is_regular(path):
            raise Refusal("SX-RECOVER-06", f"{path} is no regular file", "put the key itself there")
        with path.open("rb") as stream:
            found[path.name] = stream.read(recipients.LIMIT + 1)
    return found
