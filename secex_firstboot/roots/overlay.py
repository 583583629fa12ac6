"""Changing a root beside itself: what is written goes to a directory, and is taken over as a whole.

Ignition's files stage cannot run twice on one root: it refuses files that are there and appends once more. So
it writes to an overlayfs over each directory that it writes to, with the upper directory on the root file
system itself. A crash before the stage has ended leaves a root on which it never ran; one after it, what only
has to be merged: one rename decides for all of them.

Kernel: Documentation/filesystems/overlayfs.rst, for what an upper directory holds.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import exists, is_directory, sync
from secex_firstboot.basic.process import run
from secex_firstboot.contract import paths
from secex_firstboot.roots.kinds import Root, Written
from secex_firstboot.storage import filesystem

TOP = ".secex-firstboot"  # on the root file system
_UPPER, _WORK, _FINISHED = "upper", "work", "finished"  # in each the names of what is written
_OPTIONS = (
    "index=off,metacopy=off,redirect_dir=off"  # so that upper directories are what _merge takes them for
)
_OPAQUE = "trusted.overlay.opaque"
_OVERLAYS_OWN = "trusted.overlay."


def mount(root: Root, system: Path) -> None:
    """Let what is written to the system on ``system`` go beside it."""
    top = root.volume / TOP
    for each in root.written:
        upper, work = top / _UPPER / each.name, top / _WORK / each.name
        for directory in (upper, work):
            directory.mkdir(parents=True, exist_ok=True)
        where = f"lowerdir={each.directory},upperdir={upper},workdir={work}"
        run(["mount", "-t", "overlay", "-o", f"{where},{_OPTIONS}", "overlay", _seen(system, each)])


def is_mounted(root: Root, system: Path) -> bool:
    """Whether all that is written to the system on ``system`` goes beside it."""
    return all(filesystem.mount_sources(_seen(system, each))[-1:] == ["overlay"] for each in root.written)


def settle(root: Root) -> bool:
    """After a crash: drop what was written by a stage that did not end, or take over all of one that did.

    Returns whether it had ended. No overlay is mounted.
    """
    if is_directory(root.volume / TOP / _FINISHED):
        _merge(root)
        return True
    remove(root.volume)
    return False


def take_over(root: Root, system: Path, scratch: Path) -> None:
    """Replace the overlays of the system on ``system`` with what lies below them, changed in the same way.

    What is mounted below them stays so; ``scratch`` is a directory for mount points. Raises FirstbootError if
    something lies over an overlay: what Ignition wrote is there, then.
    """
    if not is_mounted(root, system):
        raise FirstbootError(
            "SX-ROOT-11",
            "something is mounted over what Ignition wrote to",
            "build the image without what mounts /etc or /var in the initramfs",
        )
    overlays = [_seen(system, each) for each in root.written]
    below = [point for where in overlays for point in filesystem.mount_points_below(where)]
    aside = [scratch / f"mount-{number}" for number in range(len(below))]
    for point, kept in zip(below, aside, strict=True):
        kept.mkdir()
        run(["mount", "--bind", point, kept])
    for point in [*reversed(below), *overlays]:
        run(["umount", point])
    _finish(root)
    for point, kept in zip(below, aside, strict=True):
        run(["mount", "--bind", kept, point])
        run(["umount", kept])
        kept.rmdir()


def remove(volume: Path) -> None:
    """Remove every trace of an overlay from the file system."""
    if exists(volume / TOP):
        shutil.rmtree(volume / TOP)
        sync(volume)


def _seen(system: Path, each: Written) -> Path:
    return paths.below(system, each.where)


def _finish(root: Root) -> None:
    top = root.volume / TOP
    os.sync()  # what lies in the upper directories, before it counts
    (top / _UPPER).rename(top / _FINISHED)
    sync(top)
    _merge(root)


def _merge(root: Root) -> None:
    """Move what was written to where it belongs; what was moved already is no longer there."""
    for each in root.written:
        _merge_directory(root.volume / TOP / _FINISHED / each.name, each.directory)
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
