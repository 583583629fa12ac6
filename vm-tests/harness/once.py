"""What is costly to make is made once for a test run, whichever of its processes asks first."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from harness import debian

Made = TypeVar("Made")


def made(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """What ``make`` returned for a new directory of this name; it can be pickled."""
    base = factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    result = directory / "made"
    with debian.locked(name):
        if not result.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            result.write_bytes(pickle.dumps(make(directory)))
    return pickle.loads(result.read_bytes())  # type: ignore[no-any-return]  # noqa: S301 - our own
