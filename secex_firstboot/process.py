"""The one way this project starts another program."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

from secex_firstboot.errors import FirstbootError

log = logging.getLogger(__name__)

_LAST_WORDS = 300  # characters of a failed tool's output that go into the error


class ToolError(FirstbootError):
    """A program we called failed; carries its name, exit code and last words."""

    def __init__(self, tool: str, code: int, output: str) -> None:
        self.tool, self.code, self.output = tool, code, output
        words = " ".join(output.split())[-_LAST_WORDS:]
        super().__init__(f"{tool} failed with exit code {code}" + (f" ({words})" if words else ""))


def run(argv: Sequence[str | Path], *, stdin: str | None = None, ok: Sequence[int] = (0,)) -> str:
    """Run a program without a shell and return its standard output.

    ``stdin`` is text for the program's standard input (nothing by default); it is never logged, and
    secrets belong there or in files, never in ``argv``. ``ok`` lists the exit codes that count as success.
    Raises ToolError on any other, FirstbootError if the program is not installed.
    """
    words = [str(word) for word in argv]
    log.debug("run: %s", " ".join(words))
    try:
        done = subprocess.run(words, input=stdin or "", capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise FirstbootError(f"{words[0]} is not installed", "install the package that has it") from None
    if done.returncode not in ok:
        raise ToolError(Path(words[0]).name, done.returncode, done.stderr or done.stdout)
    return done.stdout
