"""Copy a device backwards into a volume that lies over it, from the last block to the first.

Each block of the volume lies at a higher disk address than the same block of the source, so what a write
destroys has been read before; ``Layout.backward_window`` in ``integrity`` has the proof and its limit.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError

ALIGNMENT = 4096  # of offsets and lengths: O_DIRECT on volumes of either sector size
_READ_AHEAD = 2  # chunks in memory besides the one that is being written


def copy_backwards(
    source: Path,
    target: Path,
    length: int,
    *,
    on_chunk_durable: Callable[[int], None],
    progress: Callable[[int, int], None],
    chunk: int = 4 << 20,
    start_from: int | None = None,
) -> None:
    """Copy bytes [0, ``start_from`` or ``length``) of ``source`` to the same place in ``target``.

    The last chunk comes first. ``on_chunk_durable(offset)`` is called after each chunk, when everything at or
    above ``offset`` is on stable storage, and nothing more is written until it returns: with the position
    recorded there, a copy that is killed and started again ``start_from`` it finds its source intact, if
    ``chunk`` is at most ``Layout.backward_window``. ``progress`` hears (bytes copied, ``length``).

    Reading runs ahead of writing in a thread of its own. That is always safe: it only moves a read to an
    earlier moment, when less of the source is overwritten. Both sides bypass the page cache, so memory is
    three chunks whatever the length. All sizes are multiples of 4096 bytes.

    Raises FirstbootError, with the offset, if either side fails.
    """
    end = length if start_from is None else start_from
    if not 0 <= end <= length or any(value % ALIGNMENT for value in (length, end, chunk)) or chunk <= 0:
        raise ValueError(f"cannot copy {length} bytes from {end} in chunks of {chunk}")
    todo = _descending(end, chunk)
    with (
        _opened(source, os.O_RDONLY) as read_side,
        _opened(target, os.O_WRONLY) as write_side,
        ThreadPoolExecutor(1) as reader,
    ):
        ahead: deque[tuple[int, Future[memoryview]]] = deque()

        def read_next(buffer: mmap.mmap) -> None:
            if (part := next(todo, None)) is not None:
                offset, size = part
                ahead.append((offset, reader.submit(_read, read_side, memoryview(buffer)[:size], offset)))

        buffers = deque(mmap.mmap(-1, chunk) for _ in range(_READ_AHEAD + 1))
        for buffer in buffers:
            read_next(buffer)
        while ahead:
            offset, data = ahead.popleft()
            _write(write_side, data.result(), offset)
            on_chunk_durable(offset)
            progress(length - offset, length)
            buffers.rotate(-1)
            read_next(buffers[-1])


def _descending(end: int, chunk: int) -> Iterator[tuple[int, int]]:
    """The (offset, size) of each chunk below ``end``, the last one first; only that may be a short one."""
    while end > 0:
        offset = (end - 1) // chunk * chunk
        yield offset, end - offset
        end = offset


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    try:
        descriptor = os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        raise FirstbootError("SX-DISK-01", f"cannot open {path} for copying: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(descriptor: int, buffer: memoryview, offset: int) -> memoryview:
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
        except OSError as error:
            raise _failed("read", offset + done, error.strerror) from error
        if not count:
            raise _failed("read", offset + done, "end of the source")
        done += count
    return buffer


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    try:
        while done < len(data):
            done += os.pwritev(descriptor, [data[done:]], offset + done)
        os.fdatasync(descriptor)
    except OSError as error:
        raise _failed("write", offset + done, error.strerror) from error


def _failed(verb: str, offset: int, reason: str | None) -> FirstbootError:
    return FirstbootError(
        "SX-DISK-02", f"cannot {verb} byte {offset} while copying: {reason}", "look at the disk's health"
    )
