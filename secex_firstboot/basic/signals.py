"""Being told to end, by systemd, a terminal that is gone, or a user."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def unwinding() -> Iterator[None]:
    """For the length of a ``with`` block, the first SIGTERM or SIGHUP raises SystemExit in the main thread:
    what is mounted and attached comes down again. The exit code is as shells have it, 128 + number. What is
    ignored stays so.
    """

    def end(number: int, _: FrameType | None) -> None:
        for each in _ENDING:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    heeded = [each for each in _ENDING if signal.getsignal(each) is not signal.SIG_IGN]  # nohup(1)
    before = {each: signal.signal(each, end) for each in heeded}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
