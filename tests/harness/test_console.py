"""The words that tests in guests wait for are said: found out here, in seconds, and not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import console
from support import REPOSITORY


def source(*patterns: str) -> str:
    """Of what prints, with strings that go over several lines put together."""
    files: list[Path] = [path for pattern in patterns for path in sorted(REPOSITORY.glob(pattern))]
    assert files
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in files))


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (console.COMPLETE, "secex_firstboot/agent/*.py"),
        ("peak memory", "secex_firstboot/contract/report.py"),
        (": done in ", "secex_firstboot/agent/*.py"),
        (console.CANNOT_START, "dracut/emergency.sh"),
        ("what failed:", "dracut/emergency.sh"),
        ("why:", "dracut/emergency.sh"),
        ("what to do:", "dracut/emergency.sh"),
        (console.CLEAN, "dracut/emergency.sh"),
        (console.UNCHANGED, "dracut/emergency.sh"),
        (console.POWERING_OFF, "dracut/emergency.sh"),
        (console.NO_SHELL, "dracut/*.ign"),
        (console.TESTS, "vm-tests/dracut/leftovers.py"),
        ("MANIFEST BEGIN", "vm-tests/dracut/manifest.py"),
        ("MANIFEST END", "vm-tests/dracut/manifest.py"),
    ],
)
def test_what_is_waited_for_is_said(words: str, where: str) -> None:
    assert words in source(where)
