"""What holds of all tests here; also that none makes the agent import what is not in the initramfs."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import settings
from support import initramfs

# No example of a property is too slow: how long it takes says more of the machine than of the code.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

# Where mkfs, sfdisk and cryptsetup are; not all distributions have it in the PATH of everybody.
os.environ["PATH"] += ":/usr/sbin:/sbin"

# What a test mounts is seen by what it starts alone: in a copy of all mounts that what another worker's test
# started has, it would stay mounted, its device busy.
_CLONE_NEWNS = 0x20000  # sched.h
if os.geteuid() == 0 and ctypes.CDLL(None).unshare(_CLONE_NEWNS) == 0:
    # Where / is no mount point, in a chroot, it stays as it is.
    subprocess.run(["mount", "--make-rprivate", "/"], stderr=subprocess.DEVNULL)

_WATCH = initramfs.Watch()
_WATCH.install()


@pytest.fixture(autouse=True)
def _initramfs() -> Iterator[None]:
    yield
    assert not _WATCH.strays()
