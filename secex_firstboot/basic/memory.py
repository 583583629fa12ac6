"""Secrets in this process's memory: never on a swap device, and gone from it when they are no longer needed.
And the kernel's random numbers, which new ones are made of.

Python can overwrite what lies in a bytearray; copies that libraries make for themselves it cannot.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import size_of

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # mlockall(2); s390 has the generic values
_RANDOM = Path("/dev/random")  # since Linux 5.6 it waits for the generator to be seeded, and for nothing else
_POOL = Path("/dev/urandom")
_RNDRESEEDCRNG = 0x5207  # include/uapi/linux/random.h: _IO('R', 0x07)


def lock() -> None:
    """Keep every page of this process, also those to come, in RAM. Raises FirstbootError."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
        reason = os.strerror(ctypes.get_errno())
        raise FirstbootError(
            "SX-TOOL-02", f"cannot lock the agent's memory: {reason}", "run secex-firstboot as root"
        )


def stir(*secrets: bytes) -> None:
    """Mix what the host does not know into the kernel's random numbers, before keys are made of them.

    What the machine offers as entropy at its first start may be the host's. The secrets go in as their
    SHA-512 and count for nothing: drivers/char/random.c mixes what is written to the device, credits none,
    and would use it only at its next reseed, up to a minute later; so that is asked for, too.
    """
    with _POOL.open("wb", buffering=0) as pool:
        for secret in secrets:
            pool.write(hashlib.sha512(secret).digest())
        try:
            fcntl.ioctl(pool, _RNDRESEEDCRNG)
        except OSError as error:
            # Not seeded yet: what was mixed in will be part of it. Not permitted: not root, so no first boot.
            if error.errno not in (errno.ENODATA, errno.EPERM):
                raise


@contextmanager
def random_secret(size: int) -> Iterator[bytearray]:
    """``size`` random bytes, overwritten at the end of the ``with`` block."""
    with _filled(_RANDOM, size) as secret:
        yield secret


@contextmanager
def secret_file(path: Path) -> Iterator[bytearray]:
    """The content of a small file, overwritten at the end of the ``with`` block."""
    with _filled(path, size_of(path)) as secret:
        yield secret


@contextmanager
def _filled(path: Path, size: int) -> Iterator[bytearray]:
    secret = bytearray(size)
    try:
        with path.open("rb", buffering=0) as stream:
            if stream.readinto(secret) != size:
                raise FirstbootError("SX-TOOL-03", f"{path} gave less than {size} bytes", "start again")
        yield secret
    finally:
        secret[:] = bytes(size)
