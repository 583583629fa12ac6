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
    """What ``make`` returned for a new directory of this name; it can be pickled. If that failed, it is not
    tried again: it is costly."""
    base = factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    result, failed = directory / "made", directory / "failed"
    with debian.locked(f"once-{name}"):  # what it is made of may have the name, too
        if failed.exists():
            raise RuntimeError(f"{name} could not be made: {failed.read_text()}")
        if not result.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            try:
                result.write_bytes(pickle.dumps(make(directory)))
            except Exception as error:
                failed.write_text(str(error))
                raise
    return pickle.loads(result.read_bytes())  # type: ignore[no-any-return]  # noqa: S301 - our own
