"""Overwriting a part of a device with zeros, down to the disk."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError

_BLOCK = 4096  # bytes; of what O_DIRECT reads and writes
_CHUNK = 1 << 20


def erase(device: Path, offset: int, size: int, progress: Callable[[int, int], None]) -> None:
    """Overwrite ``size`` bytes from byte ``offset``; ``progress`` hears (bytes done, ``size``).

    Of a block that is only partly in the span the rest stays as it is. So this bypasses the page cache, where
    that rest may be an old one: a volume on the same device is written past it, too. What is zero already is
    not written: a thin disk stays thin. Raises OSError, or FirstbootError if the device ends.
    """
    end = offset + size
    descriptor = os.open(device, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        buffer = mmap.mmap(-1, _CHUNK)
        for at in range(offset // _BLOCK * _BLOCK, end, _CHUNK):
            wanted = min(_CHUNK, -(-(end - at) // _BLOCK) * _BLOCK)
            count = os.preadv(descriptor, [memoryview(buffer)[:wanted]], at)
            low, high = max(offset - at, 0), min(end - at, _CHUNK)
            if count < high:
                raise FirstbootError(
                    "SX-DISK-13", f"{device} ends at byte {at + count}", "look at the disk's health"
                )
            zeros = bytes(high - low)
            if buffer[low:high] != zeros:
                buffer[low:high] = zeros
                if os.pwritev(descriptor, [memoryview(buffer)[:count]], at) != count:
                    raise FirstbootError(
                        "SX-DISK-14", f"cannot write byte {at} of {device}", "look at the disk's health"
                    )
            progress(at + high - offset, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
