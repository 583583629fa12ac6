"""Changing a file system beside itself: what is written goes to a directory, and is taken over as a whole.

Ignition's files stage cannot run twice on one root: it refuses files that are there and appends once more. So
it writes to an overlayfs, mounted by secex-firstboot-overlay.service, whose upper directory lies on the root
file system itself. A crash before the stage has ended leaves a root on which it never ran; one after it, a
directory that only has to be merged.

Kernel: Documentation/filesystems/overlayfs.rst, for what an upper directory holds.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from secex_firstboot.basic.files import exists, is_directory, sync
from secex_firstboot.basic.process import run
from secex_firstboot.storage import filesystem

TOP = ".secex-firstboot"  # on the root file system; as in the unit
_UPPER, _FINISHED = "upper", "finished"
_OPAQUE = "trusted.overlay.opaque"
_OVERLAYS_OWN = "trusted.overlay."


def settle(root: Path) -> bool:
    """After a crash: drop what was written by a stage that did not end, or take over all of one that did.

    Returns whether it had ended. ``root`` is the file system itself, mounted without the overlay.
    """
    finished = root / TOP / _FINISHED
    if is_directory(finished):
        _merge(finished, root)
        return True
    remove(root)
    return False


def take_over(where: Path, scratch: Path) -> None:
    """Replace the overlay mounted on ``where`` with the file system below it, changed in the same way.

    What is mounted below ``where`` stays so; ``scratch`` is a directory for mount points.
    """
    below = filesystem.mount_points_below(where)
    aside = [scratch / f"mount-{number}" for number in range(len(below))]
    for point, kept in zip(below, aside, strict=True):
        kept.mkdir()
        run(["mount", "--bind", point, kept])
    for point in [*reversed(below), where]:
        run(["umount", point])
    _finish(where)
    for point, kept in zip(below, aside, strict=True):
        run(["mount", "--bind", kept, point])
        run(["umount", kept])
        kept.rmdir()


def remove(root: Path) -> None:
    """Remove every trace of an overlay from the file system."""
    if exists(root / TOP):
        shutil.rmtree(root / TOP)
        sync(root)


def _finish(root: Path) -> None:
    os.sync()  # what lies in the upper directory, before it counts
    (root / TOP / _UPPER).rename(root / TOP / _FINISHED)
    sync(root / TOP)
    _merge(root / TOP / _FINISHED, root)


def _merge(upper: Path, lower: Path) -> None:
    """Move what ``upper`` holds to where it belongs; what was moved already is no longer there."""
    _merge_directory(upper, lower)
    os.sync()


def _merge_directory(upper: Path, lower: Path) -> None:
    for changed in sorted(upper.iterdir()):
        target = lower / changed.name
        status = changed.lstat()
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:  # a whiteout
            _delete(target)
            changed.unlink()
        elif stat.S_ISDIR(status.st_mode) and _is_directory(target) and not _is_opaque(changed):
            _copy_attributes(changed, target)
            _merge_directory(changed, target)
        else:
            if stat.S_ISDIR(status.st_mode) or _is_directory(target):
                _delete(target)
            _strip(changed)
            changed.replace(target)


def _is_directory(path: Path) -> bool:
    return is_directory(path, follow_symlinks=False)


def _is_opaque(directory: Path) -> bool:
    return _OPAQUE in os.listxattr(directory)


def _delete(path: Path) -> None:
    if _is_directory(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _copy_attributes(source: Path, target: Path) -> None:
    status = source.lstat()
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode))
    wanted = {name: os.getxattr(source, name) for name in _attributes(source)}
    for name in _attributes(target):
        if name not in wanted:
            os.removexattr(target, name)
    for name, value in wanted.items():
        os.setxattr(target, name, value)


def _attributes(path: Path) -> list[str]:
    return [name for name in os.listxattr(path) if not name.startswith(_OVERLAYS_OWN)]


def _strip(path: Path) -> None:
    """Remove overlayfs's own attributes from a file, or from all of a directory."""
    below = [Path(folder, name) for folder, *lists in os.walk(path) for names in lists for name in names]
    for each in [path, *below]:
        for name in os.listxattr(each, follow_symlinks=False):
            if name.startswith(_OVERLAYS_OWN):
                os.removexattr(each, name, follow_symlinks=False)
