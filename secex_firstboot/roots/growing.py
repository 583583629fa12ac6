"""Growing the root file system over the part of its volume that first boot never wrote.

Reading a sector of a dm-integrity volume that was never written is an I/O error, so a file system may only
grow into what was zeroed through the volume before. Step by step: zero what lies behind the end of the file
system, down to the disk; then move the end there. No file says how far this has come: the end itself does, as
the kernel has it. So this can be killed at any moment; the next run zeroes at most one step a second time.

What must never happen is a zero below the end. The end is asked for before every MiB that is written, and
whoever else moved it stops this; a lock keeps a second one of these out.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import size_of, sync, write_private
from secex_firstboot.contract import parameters, paths, settings
from secex_firstboot.contract.parameters import GROW, Grow
from secex_firstboot.roots.kinds import Root
from secex_firstboot.storage import encrypted
from secex_firstboot.storage.mounted import Mounted

_STEP = 1 << 30  # zeroed again at most, after a crash; and a TiB is a thousand times growing
_DONE = b"The root file system reaches the end of its volume; there is nothing left to grow.\n"


def setting(context: Context, root: Root) -> Grow:
    """What the command line says, or else /etc/secex-firstboot.conf. Raises Refusal."""
    if parameters.is_there(context.command_line, GROW):
        return parameters.value(context.command_line, GROW)
    return settings.value(root.place(paths.SETTINGS), settings.GROW)


def at_first_boot(context: Context, root: Root, device: Path, lock: Path) -> None:
    """In the initramfs, once Ignition has written its files: grow now, if the user wants it now.

    A settings file that makes no sense cannot be corrected before the system has started; refusing here
    would keep it from starting for ever. The service refuses it later.
    """
    try:
        chosen = setting(context, root)
    except Refusal as refusal:
        context.say(f"root does not grow now: {refusal}")
        return
    if chosen is Grow.FIRSTBOOT:
        grow_all(context, root, device, lock)


def grow_all(context: Context, root: Root, device: Path, lock: Path, *, step: int = _STEP) -> None:
    """Grow the file system to the end of ``device``, and note in the system that this is done.

    ``lock`` is a file, the same for all who grow it; ``step`` is bytes, a multiple of the file system's
    blocks. Raises FirstbootError if anything stops it.
    """
    with _locked(lock):
        mounted = Mounted.find(root.volume, device)
        limit = size_of(device) // mounted.block_size * mounted.block_size
        context.say(f"growing {mounted.where} from {mounted.size() >> 20} to {limit >> 20} MiB")
        while (end := mounted.size()) < limit:
            target = min(end + step, limit)
            _zero(context, mounted, end, target, limit)
            mounted.grow(target)
            if mounted.size() <= end:
                if target < limit:
                    raise FirstbootError(
                        "SX-DISK-21", f"{mounted.where} did not grow", "look at the kernel's messages"
                    )
                break  # the rest is smaller than what the file system can use
        context.say(f"{mounted.where} has {mounted.size() >> 20} MiB, all that it can use of {device}")
    os.sync()  # ext4 may still have the last step in memory; /var can be another file system
    write_private(root.place(paths.GROWN), _DONE)


def _zero(context: Context, mounted: Mounted, end: int, target: int, limit: int) -> None:
    """Write zeros from the file system's ``end`` up to ``target``, down to the disk, past the page cache."""

    def still_the_end(zeroed: int, _: int) -> None:  # asked after each MiB, and so before the next
        if mounted.size() != end:
            raise FirstbootError(
                "SX-DISK-22",
                f"something else has changed the size of {mounted.where}",
                "start secex-firstboot-grow.service again when that has ended",
            )
        context.progress(f"grow {mounted.where}", end + zeroed, limit)

    still_the_end(0, 0)
    encrypted.write_zeros(mounted.device, end, target - end, still_the_end)
    sync(mounted.device)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FirstbootError(
                "SX-DISK-23", "another process is growing the root file system", "let it finish"
            ) from None
        yield
