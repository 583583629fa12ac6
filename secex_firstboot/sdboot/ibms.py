"""IBM's programs that make boot images, where they are installed: ours stand before them in PATH."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from secex_firstboot.contract import paths


def find(name: str) -> Path | None:
    """The first of this name in PATH that is not ours."""
    candidates = (shutil.which(name, path=directory) for directory in os.get_exec_path())
    return next((Path(each) for each in candidates if each and not _is_ours(Path(each))), None)


def _is_ours(program: Path) -> bool:
    return program.resolve().parent == paths.INSTEAD_OF_IBMS
