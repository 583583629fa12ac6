"""Programs that take long: how far one is, by what it has read or written."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.process import ToolError, log, not_installed

_LOOK = 0.5  # seconds between two looks


class Counter(StrEnum):
    """proc_pid_io(5)."""

    READ = "rchar"
    WRITTEN = "wchar"


def run_counted(
    context: Context,
    label: str,
    argv: Sequence[str | Path],
    total: int,
    *,
    counter: Counter = Counter.WRITTEN,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Like process.run, for a program that reads or writes about ``total`` bytes; what it says, on whatever
    stream."""
    words = [str(word) for word in argv]
    log.debug("run: %s", " ".join(words))
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "LC_ALL": "C", **(environment or {})},
                close_fds=False,  # the lock of outputs.working, the only one that is inheritable
            )
        except FileNotFoundError:
            raise not_installed(words[0]) from None
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK)
                if process.returncode is None:
                    context.progress(label, min(_count(process.pid, counter), total), total)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise ToolError(Path(words[0]).name, process.returncode, said)
    return said


def _count(pid: int, counter: Counter) -> int:
    """Bytes so far."""
    try:
        fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[counter])
