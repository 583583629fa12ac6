"""What a person sees on the console: lines that say what happens, and progress with a rate and an end."""

from __future__ import annotations

import time

from secex_firstboot.basic import journal

_INTERVAL = 2.0  # seconds between two progress lines; a console keeps every line


class Console:
    """Prints to standard output, one line a call; ``progress`` leaves out what comes too soon.

    ``interval`` is the seconds from one line of progress to the next.
    """

    def __init__(self, interval: float = _INTERVAL) -> None:
        self._interval = interval
        self._label = ""
        self._started = self._last = 0.0
        self._first = 0

    def say(self, line: str) -> None:
        print(line, flush=True)
        journal.status(line)

    def progress(self, label: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes; the rate counts from the first call with this label."""
        now = time.monotonic()
        if label != self._label:
            self._label, self._started, self._last, self._first = label, now, now, done
        elif now - self._last >= self._interval or done >= total > 0:
            self._last = now
            rate = (done - self._first) / max(now - self._started, 0.001)
            left = (total - done) / rate if rate else 0
            self.say(
                f"{label}: {done >> 20} of {total >> 20} MiB, {100 * done // total} %,"
                f" {rate / (1 << 20):.1f} MiB/s, {left:.0f} s left"
            )
