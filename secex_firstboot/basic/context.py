"""Where the program was started, and where it tells a person how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Context:
    """``command_line`` is the kernel's.

    ``say`` takes one line, ``warn`` one that also goes into a report; ``progress`` is called with (label,
    bytes done, bytes in all).
    """

    command_line: str
    say: Callable[[str], None] = field(default=lambda line: None)
    warn: Callable[[str], None] = field(default=lambda line: None)
    progress: Callable[[str, int, int], None] = field(default=lambda label, done, total: None)

    def argument(self, name: str) -> str | None:
        """The value of ``name=value`` on the kernel command line, or None."""
        for word in self.command_line.split():
            key, equals, value = word.partition("=")
            if key == name and equals:
                return value
        return None


def kernel_command_line() -> str:
    return Path("/proc/cmdline").read_text(encoding="utf-8").strip()
