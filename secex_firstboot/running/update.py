"""A new boot image, if anything that it is made of has changed: ``secex update``."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.basic import signals
from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import exists, write_private
from secex_firstboot.basic.process import run
from secex_firstboot.contract import paths, settings
from secex_firstboot.contract.boot_image import Image, Images, State
from secex_firstboot.contract.settings import Fallback
from secex_firstboot.roots import recovery, system_image
from secex_firstboot.roots.kinds import Root
from secex_firstboot.roots.system_image import SystemImage
from secex_firstboot.running import apt, hosts, recovery_keys, restart, system
from secex_firstboot.sdboot import boot_record, contents
from secex_firstboot.sdboot.boot_entry import BootEntry
from secex_firstboot.storage import disk
from secex_firstboot.storage.disk import Disk

_SCRATCH = paths.IMAGE_STATE / "scratch"  # on the encrypted root, as what it gets for a moment is secret
_SWITCHED = paths.IMAGE_STATE / "boot-record"
_NEW = "there is no record of the image before it, or it is gone"
_FILES = {boot_record.IMAGE: boot_record.KEPT, boot_record.FALLBACK: boot_record.FALLBACK}  # those of ours


def in_system(
    context: Context, root: Root, *, again: bool = False, moving: bool = False
) -> tuple[tuple[str, ...], Images]:
    """What has changed since the newest image was made, and is in it now (nothing, if it is up to date), and
    the images that there are.

    ``again``: one that is up to date, but did not come up, is tried once more. ``moving``: this machine may
    be none of its hosts. Killed at any moment, it leaves the old images or the new ones. Two at once wait for
    each other. Raises Refusal if first boot did not set up the system on ``root``, or what is there makes no
    boot image.
    """
    system.check_provisioned(root, "it has no boot image to update")
    with alone(root):
        hosts.settle(context, root, moving=moving)
        recovery_keys.settle(context, root)
        image = system_image.find(root, root.place(paths.BOOT))
        setting = settings.value(root.place(paths.SETTINGS), settings.FALLBACK)
        images = system_image.images(root)
        recorded = None
        if images and not was_cut_short(root, images) and not _is_gone(root, images.newest):
            recorded = images.newest.inputs
        changed = _changed(recorded, image.inputs)
        if images and not changed:
            after = set_to(root, images, setting)
            if again and images.newest.state is State.FAILED:
                after = with_newest(after, State.NEW)
            arrange(root, images, after)
            return (), after
        context.say(f"changed: {', '.join(changed)}")
        return changed, _make(context, root, image, images, setting)


def _make(
    context: Context, root: Root, image: SystemImage, images: Images | None, setting: Fallback
) -> Images:
    _check_initramfs(image.entry)
    running, system_disk = system.generation(context), disk.find_disk()
    with _scratch(root) as scratch, se(root, system_disk) as where:
        name, good = _last_good(root, where, images, running)
        try:
            contents.check_room(where, image.entry)
        except Refusal:
            if not name or not good or not boot_record.has_another(where):
                raise
            # The other one goes first; only the last good one starts until the new one is there.
            boot_record.leave(where, system_disk, scratch, name)
            _note_switch(root, system_disk)
            record(root, Images(newest=good, setting=setting))
            name = boot_record.IMAGE
            contents.check_room(where, image.entry)
        if setting is Fallback.OFF:
            name = good = None
        made = image.build(context, where, scratch, system_image.new_number(root, images))
        after = Images(newest=made, fallback=good, setting=setting)
        recovery.leave(context, where, system_disk, image, made)
        system_image.allow_new(root, made.generation)
        system_image.carry_on(root, root.place(paths.BOOT), image, made.generation)
        boot_record.install(where, system_disk, scratch, fallback=name, default=_default(after))
        _note_switch(root, system_disk)
    record(root, after)
    return after


def _check_initramfs(entry: BootEntry) -> None:
    """Without the agent's scripts later starts would not look at volumes, root and the image's number."""
    for path in entry.initrd:
        if run(["lsinitrd", "--file", paths.CHECK_ROOT, path]).startswith("#!"):
            return
    raise Refusal(
        "SX-SYSTEM-12",
        f"the initramfs of boot entry {entry.name} has no secex-firstboot",
        "make it anew with dracut, as its module secex-firstboot is installed here",
    )


def _last_good(root: Root, se: Path, images: Images | None, running: int) -> tuple[str | None, Image | None]:
    """Which file on ``se`` is the image to fall back to; it is known by its content.

    Of those that have come up the one that runs, as whoever started it may have fled from the newest, or else
    the newest. If none has, the one that runs, or else the oldest: it has the kernel of first boot.
    """
    found = [each for each in (images.there if images else []) if root.has(each.deployment)]
    good = [each for each in found if each.state is State.UP] or found[::-1]
    for each in sorted(good, key=lambda each: each.generation != running):
        for name, file in _FILES.items():
            if exists(se / file) and boot_record.identity(se / file) == each.identity:
                return name, each
    return None, None


def _is_gone(root: Root, newest: Image) -> bool:
    """Whether somebody else has made a boot map, and an image over this one."""
    system_disk = disk.find_disk()
    if _is_as_switched(root, system_disk):
        return False
    with se(root, system_disk) as where:
        return boot_record.identity(where / boot_record.KEPT) != newest.identity


def _changed(before: Mapping[str, str] | None, now: Mapping[str, str]) -> tuple[str, ...]:
    """The names of what is new, other, or gone."""
    if before is None:
        return (_NEW,)
    names = sorted(before.keys() | now.keys())
    return tuple(name for name in names if before.get(name) != now.get(name))


# --- also for what tries them ---


def was_cut_short(root: Root, images: Images) -> bool:
    """Whether an update was, so that another image may start than those on record."""
    return system_image.allowed(root) != images.generations


def record(root: Root, images: Images) -> None:
    """Of these, and of no other, are the images that may start; apt leaves their kernels alone."""
    if not images.fallback:
        restart.take_back(root)
    apt.keep_kernels(root, {each.kernel for each in images.there if each.kernel})
    system_image.record(root, images)


def with_newest(images: Images, state: State) -> Images:
    return images.model_copy(update={"newest": images.newest.model_copy(update={"state": state})})


def set_to(root: Root, images: Images, setting: Fallback) -> Images:
    """As the user wants it; but the last that came up stays until the newest has, if it can start at all."""
    unwanted = setting is Fallback.OFF and images.newest.state is State.UP
    drop = unwanted or (images.fallback and not root.has(images.fallback.deployment))
    return images.model_copy(update={"setting": setting} | ({"fallback": None} if drop else {}))


def arrange(root: Root, before: Images, after: Images) -> None:
    """Let the boot map and the record be as ``after`` says, which has the same newest image."""
    system_disk = disk.find_disk()
    ours = _is_as_switched(root, system_disk)
    if before == after and ours and not (after.are_up and exists(root.state(paths.NOT_UP))):
        return
    system_image.mark(root)
    if not ours or (before.starts_newest, before.fallback) != (after.starts_newest, after.fallback):
        with _scratch(root) as scratch, se(root, system_disk) as where:
            if after.fallback:
                boot_record.choose(where, system_disk, scratch, _default(after))
            else:
                boot_record.leave(where, system_disk, scratch, boot_record.IMAGE)
            _note_switch(root, system_disk)
    record(root, after)


def _note_switch(root: Root, system_disk: Disk) -> None:
    write_private(root.state(_SWITCHED), boot_record.current(system_disk))


def _is_as_switched(root: Root, system_disk: Disk) -> bool:
    """Whether the firmware begins with what was written here: libostree, and whoever calls zipl, let it begin
    with one image alone."""
    path = root.state(_SWITCHED)
    return not exists(path) or path.read_bytes() == boot_record.current(system_disk)


def _default(images: Images) -> int:
    return boot_record.IMAGE_ENTRY if images.starts_newest else boot_record.FALLBACK_ENTRY


@contextmanager
def alone(root: Root) -> Iterator[None]:
    """One at a time changes partition se and the record of the images. Told to end, it leaves in order."""
    lock = root.place(paths.RUNTIME / "update.lock")
    lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock.open("w") as stream, signals.unwinding():
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def se(root: Root, found: Disk) -> Iterator[Path]:
    """Partition se of this disk, mounted, with nothing left of a switch that was cut short. Only for who is
    alone."""
    with boot_record.mounted(found, root.place(paths.RUNTIME / "se")) as where:
        boot_record.settle(where, found)
        yield where


@contextmanager
def _scratch(root: Root) -> Iterator[Path]:
    where = root.state(_SCRATCH)
    shutil.rmtree(where, ignore_errors=True)  # of one that was killed
    where.mkdir(mode=0o700, parents=True)
    try:
        yield where
    finally:
        shutil.rmtree(where)
