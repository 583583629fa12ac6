"""The one way this project starts another program."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from secex_firstboot.basic.errors import FirstbootError

log = logging.getLogger(__name__)

_LAST_WORDS = 300  # characters of a failed tool's output that go into the error


class ToolError(FirstbootError):
    """A program we called failed; carries its name, exit code and last words."""

    def __init__(self, tool: str, code: int, output: str) -> None:
        self.tool, self.code, self.output = tool, code, output
        words = " ".join(output.split())[-_LAST_WORDS:]
        super().__init__(
            "SX-TOOL-04", f"{tool} failed with exit code {code}" + (f" ({words})" if words else "")
        )


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str | None = None,
    ok: Sequence[int] = (0,),
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> str:
    """Run a program without a shell and return its standard output.

    ``stdin`` is text for the program's standard input (nothing by default); it is never logged, and
    secrets belong there or in files, never in ``argv``. ``ok`` lists the exit codes that count as success.
    ``environment`` is added to ours; ``directory`` is where it runs.
    Raises ToolError on any other, FirstbootError if the program is not installed.
    """
    words = [str(word) for word in argv]
    log.debug("run: %s", " ".join(words))
    try:
        done = subprocess.run(
            words,
            input=stdin or "",
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **(environment or {})},
            cwd=directory,
        )
    except FileNotFoundError:
        raise not_installed(words[0]) from None
    if done.returncode not in ok:
        raise ToolError(Path(words[0]).name, done.returncode, done.stderr or done.stdout)
    return done.stdout


def run_bounded(argv: Sequence[str | Path], most: int) -> str:
    """Like ``run``, for a program that reads what somebody else has made, and may say without end: it is
    ended when it has said ``most`` bytes. Raises ToolError then, too.
    """
    words = [str(word) for word in argv]
    log.debug("run: %s", " ".join(words))
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except FileNotFoundError:
        raise not_installed(words[0]) from None
    with process:
        said = process.stdout.read(most + 1) if process.stdout else b""
        if len(said) > most:
            process.kill()
    text = said.decode(errors="replace")
    if process.returncode:
        raise ToolError(Path(words[0]).name, process.returncode, text)
    return text


def run_on_files(
    argv: Sequence[str | Path],
    *,
    stdin: BinaryIO,
    stdout: BinaryIO,
    inherited: Sequence[int] = (),
    environment: Mapping[str, str],
) -> int:
    """Run a program without a shell, from the start of one open file into another; its exit code.

    For what is large or no text. The files are used by their descriptors; ``inherited`` are further ones that
    the program gets. Its standard error is dropped. Raises FirstbootError if the program is not installed.
    """
    words = [str(word) for word in argv]
    log.debug("run: %s", " ".join(words))
    stdin.seek(0)
    try:
        return subprocess.run(
            words,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            pass_fds=inherited,
            env=environment,
        ).returncode
    except FileNotFoundError:
        raise not_installed(words[0]) from None


def not_installed(program: str) -> FirstbootError:
    return FirstbootError("SX-TOOL-05", f"{program} is not installed", "install the package that has it")
