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


def kernel_command_line() -> str:
    """What is not ASCII is replaced; contract.command_line refuses that."""
    return Path("/proc/cmdline").read_text(encoding="ascii", errors="replace").strip()
