"""What the agent imports, whenever and why ever, is in the initramfs: each unit test is a test of that.

The list is that of dracut/trace-imports.py, made with the interpreter of these tests.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.metadata
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from support import REPOSITORY, needs

TRACER = REPOSITORY / "dracut/trace-imports.py"
# As python3 -I SCRIPT, with the agent of this tree, wherever the interpreter has one installed.
RUN = "import runpy, sys; sys.path[:0] = sys.argv[2:]; {}runpy.run_path(sys.argv[1], run_name='__main__')"
# What no Python code comes of: a library that this machine may not have.
_WITHOUT = "from secex_firstboot.storage import cryptsetup; cryptsetup._library = lambda: None; "
RUN = RUN.format("" if needs.has_libcryptsetup else _WITHOUT)
_GUESTS = {"systemd": ("daemon", "journal")}
"""Packages, and their modules, that every guest has, and a workstation without a compiler does not."""
_AGENT = f"{REPOSITORY / 'secex_firstboot'}/"


@cache
def path() -> list[Path]:
    """Where the agent is, and what this interpreter may not have: empty modules tell as much here."""
    directory = Path(tempfile.mkdtemp(prefix="guest-"))
    for package, modules in _GUESTS.items():
        if not importlib.metadata.packages_distributions().get(package):
            (directory / package).mkdir()
            for name in ("__init__", *modules):
                (directory / package / f"{name}.py").touch()
    return [REPOSITORY, directory]


def trace(path: list[Path], run: str = RUN) -> subprocess.CompletedProcess[str]:
    argv: list[str | Path]
    argv = [sys.executable, "-I", "-c", run, TRACER, *path]
    return subprocess.run(argv, capture_output=True, text=True)


@cache
def listed() -> frozenset[str]:
    done = trace(path())
    assert done.returncode == 0, done.stderr
    return frozenset(done.stdout.splitlines())


@cache
def left_out() -> dict[str, str]:
    """Top-level packages that are not there on purpose, and why."""
    return dict(runpy.run_path(str(TRACER))["LEFT_OUT"])


class Watch:
    """Sees every import that is made on behalf of a module of the agent, also of what is loaded already: what
    loaded it here may never run in a guest.
    """

    def __init__(self) -> None:
        # The file of what was imported; by a module of the agent, and what of a library lies between.
        self._imports: set[tuple[str, tuple[str, ...]]] = set()

    def install(self) -> None:
        builtins.__import__ = self.watched(builtins.__import__)
        importlib.import_module = self.watched(importlib.import_module)

    def strays(self) -> list[str]:
        """Since it was last asked. Where a test lies between, its stand-in for something else is at work."""
        seen, self._imports = self._imports, set()
        return [
            f"{callers[-1].removeprefix(_AGENT)} imports {file}, which is not in the initramfs"
            for file, callers in sorted(seen)
            if file not in listed() and not _is_expected(file, callers) and listed().issuperset(callers)
        ]

    def watched(self, real: Callable[..., ModuleType]) -> Callable[..., ModuleType]:
        """A stand-in for __import__ or importlib.import_module."""

        def watched(name: str, *arguments: Any, **options: Any) -> ModuleType:
            found = real(name, *arguments, **options)
            if callers := _callers(sys._getframe(1)):
                names = options.get("fromlist") or (arguments[2:3] or [()])[0] or ()
                for module in (found, sys.modules.get(name), *(getattr(found, each, None) for each in names)):
                    if isinstance(module, ModuleType) and (file := getattr(module, "__file__", None)):
                        self._imports.add((file, callers))
            return found

        return watched


def _callers(frame: FrameType | None) -> tuple[str, ...]:
    """The files whose code is running, from the innermost to the first of the agent's; none if none is."""
    files = []
    while frame:
        file = frame.f_code.co_filename
        if not file.startswith("<frozen "):
            files.append(file)
        if file.startswith(_AGENT):
            return tuple(files)
        frame = frame.f_back
    return ()


def _is_expected(file: str, callers: tuple[str, ...]) -> bool:
    """What is left out; and what an option of the command line imports of ours that is for other places."""
    if callers[0].startswith(f"{_AGENT}cli/") and file.startswith(_AGENT):
        return True
    return not set(Path(file).parts).isdisjoint(left_out())
