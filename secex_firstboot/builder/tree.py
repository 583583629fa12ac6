"""The root file system that an image is made of, as a directory: from another one, a tar, or a disk.

What it is made of stays untouched. Owners other than root need root, or a user namespace: see cli/build.py.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import exists, is_directory, is_regular
from secex_firstboot.basic.process import ToolError
from secex_firstboot.builder.programs import run_counted
from secex_firstboot.builder.volumes import Content, mounted
from secex_firstboot.storage import disk_image, filesystem
from secex_firstboot.storage.disk import Partition

# A running system has something of its own there, and device nodes need more rights than a user has.
_LEFT_OUT = {"dev": 0o755, "proc": 0o555, "run": 0o755, "sys": 0o555, "tmp": 0o1777}
_DIRECTORIES = ("boot", "etc", "usr", "var")
_KEEP = ("--xattrs", "--xattrs-include=*", "--acls", "--selinux", "--numeric-owner", "--same-permissions")
_IS_ROOT, _IS_OSTREE = ("etc", "usr"), ("ostree/repo", "ostree/deploy")
_IS_BOOT = ("loader", "vmlinuz*", "image-*")
_CURE = "give a directory or a tar of a root file system, or a disk image (qcow2 or raw) with one"


def unpack(context: Context, source: Path, tree: Path) -> None:
    """Make the directory ``tree`` of ``source``. Raises Refusal for what is no root file system."""
    tree.mkdir()
    if is_directory(source):
        _copy(context, source, tree)
    elif not is_regular(source):
        raise Refusal("SX-BUILD-11", f"{source} is missing", _CURE)
    elif disk_image.is_disk(source):
        _from_disk(context, source, tree)
    else:
        _from_tar(context, source, tree)
    if not _is_root(tree):
        raise Refusal("SX-BUILD-12", f"{source} has no root file system: no /etc and /usr", _CURE)
    for name, mode in _LEFT_OUT.items():
        make_anew(tree / name)
        (tree / name).chmod(mode)
    for name in _DIRECTORIES:
        if not exists(tree / name, follow_symlinks=False):
            (tree / name).mkdir()
        if not is_directory(tree / name, follow_symlinks=False):
            raise Refusal("SX-BUILD-54", f"/{name} of {source} is no directory of its own", "make it one")


def make_anew(path: Path) -> None:
    """An empty directory in place of whatever is there: a link is not followed."""
    if is_directory(path, follow_symlinks=False):
        shutil.rmtree(path)
    elif exists(path, follow_symlinks=False):
        path.unlink()
    path.mkdir()


def _copy(context: Context, source: Path, target: Path) -> None:
    entries = sorted(each for each in source.iterdir() if each.name not in _LEFT_OUT)
    status = source.stat()
    if status.st_uid != os.geteuid():
        raise Refusal(
            "SX-BUILD-55",
            f"{source} belongs to another user, and so the owners of its files are lost",
            "run it as root, on a tree of root's",
        )
    top = source.resolve()
    mounted_in_it = [
        str(place.relative_to(top))
        for place in filesystem.mount_points_below(top)
        if place.relative_to(top).parts[0] not in _LEFT_OUT
    ]
    if mounted_in_it:
        raise Refusal("SX-BUILD-56", f"something is mounted in {source}: {mounted_in_it[0]}", "unmount it")
    if entries:
        total = Content.of(source).size
        # As --archive, which is silent about what it cannot keep.
        how = ["-dR", "--preserve=mode,ownership,timestamps,links,xattr"]
        command: list[str | Path] = ["cp", *how, f"--target-directory={target}", "--", *entries]
        run_counted(context, "copy the root file system", command, total)
    os.chown(target, status.st_uid, status.st_gid)
    shutil.copystat(source, target)


def _from_tar(context: Context, source: Path, tree: Path) -> None:
    left_out = [f"--exclude={top}{name}/*" for name in _LEFT_OUT for top in ("./", "")]
    command = ["tar", f"--directory={tree}", *_KEEP, "--anchored", *left_out, "--extract", f"--file={source}"]
    try:
        said = run_counted(context, "unpack the root file system", command, source.stat().st_size)
    except ToolError as error:
        raise Refusal("SX-BUILD-13", f"{source} cannot be unpacked: {error.message}", _CURE) from None
    if lost := re.search(r"^.*\bCannot set\b.*$", said, re.M):
        raise Refusal("SX-BUILD-57", f"a file of {source} loses something: {lost[0]}", "run it as root")


def _from_disk(context: Context, source: Path, tree: Path) -> None:
    """The one root of a disk, and its boot partition if it has one."""
    with disk_image.raw(source, whole=True) as raw, ExitStack() as mounts:
        found = [
            mounts.enter_context(_mounted(raw, each, type, tree.with_name(f"partition-{each.number}")))
            for each in disk_image.read(raw, source).all
            if (type := _type(raw, each))
        ]
        roots = [each for each in found if _is_root(each)]
        boots = [
            each for each in found if each not in roots and any(_has(each, (name,)) for name in _IS_BOOT)
        ]
        for what, partitions in (("root file systems", roots), ("boot partitions", boots)):
            if len(partitions) > 1:
                raise Refusal("SX-BUILD-14", f"{source} has {len(partitions)} {what}", _CURE)
        for each in roots:
            _copy(context, each, tree)
        for each in boots:
            make_anew(tree / "boot")
            _copy(context, each, tree / "boot")


def _type(raw: Path, partition: Partition) -> str:
    """ext4, xfs, or nothing."""
    try:
        return filesystem.identify(raw, partition.name, offset=partition.start).type
    except Refusal:
        return ""


def _mounted(raw: Path, partition: Partition, type: str, where: Path) -> AbstractContextManager[Path]:
    """Raises Refusal if its journal has something that the file system has not yet: it would be an older one.

    As for xfs, the kernel refuses it then, on what is read-only.
    """
    if not filesystem.is_clean(raw, type, partition.start):
        raise Refusal(
            "SX-BUILD-63",
            f"the file system of partition {partition.number} was not unmounted",
            "shut its system down in order, or mount it once",
        )
    place = (f"offset={partition.start}", f"sizelimit={partition.size}")
    return mounted(raw, where, type, "ro", *place)


def _is_root(directory: Path) -> bool:
    """Also one made by ostree, with its deployments."""
    return _has(directory, _IS_ROOT) or _has(directory, _IS_OSTREE)


def _has(directory: Path, names: Iterable[str]) -> bool:
    return all(any(directory.glob(name)) for name in names)
