"""A new boot image, if anything that it is made of has changed: ``secex update``."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.contract import paths
from secex_firstboot.contract.boot_image import Made
from secex_firstboot.roots import system_image
from secex_firstboot.running import system
from secex_firstboot.sdboot import boot_record, contents
from secex_firstboot.storage import disk

_SCRATCH = paths.IMAGE_STATE / "scratch"  # on the encrypted root, as what it gets for a moment is secret
_NEW = "there is no record of the image before it"


def in_system(context: Context, root: Path) -> tuple[str, ...]:
    """What has changed since the newest image was made, and is in it now; nothing, if it is up to date.

    Killed at any moment, it leaves the old image or the new one. Two at once wait for each other. Raises
    Refusal if first boot did not set up the system on ``root``, or what is there makes no boot image.
    """
    system.check_provisioned(root, "it has no boot image to update")
    with _alone(paths.below(root, paths.RUNTIME / "update.lock")):
        image = system_image.find(root, root / "boot")
        made = image.made()
        if not (changed := _changed(system_image.made(root), made)):
            return ()
        context.say(f"changed: {', '.join(changed)}")
        system_disk = disk.find_disk()
        with (
            _scratch(root) as scratch,
            boot_record.mounted(system_disk, paths.below(root, paths.RUNTIME / "se")) as se,
        ):
            boot_record.settle(se, system_disk)
            contents.check_room(se, image.entry)
            image.build(context, se, scratch)
            boot_record.install(se, system_disk, scratch)
        system_image.record(root, made)
    return changed


def _changed(before: Made | None, now: Made) -> tuple[str, ...]:
    """The names of what is new, other, or gone."""
    if before is None:
        return (_NEW,)
    names = sorted(before.inputs.keys() | now.inputs.keys())
    return tuple(name for name in names if before.inputs.get(name) != now.inputs.get(name))


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    where = paths.below(root, _SCRATCH)
    shutil.rmtree(where, ignore_errors=True)  # of one that was killed
    where.mkdir(mode=0o700, parents=True)
    try:
        yield where
    finally:
        shutil.rmtree(where)
