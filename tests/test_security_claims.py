"""SECURITY.md names the test of each claim; those tests exist."""

from __future__ import annotations

import re

import pytest
from support import REPOSITORY

CLAIM = re.compile(r"^\| (?P<claim>[^|]+) \| (?P<shown_by>[^|]+) \|$", re.M)
FILE_OR_TEST = re.compile(r"`(?:(?P<file>(?:[\w-]+/)*test_\w+\.py)|(?P<test>test_\w+))`")


def claims() -> list[tuple[str, str]]:
    text = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
    rows = [(row["claim"], row["shown_by"]) for row in CLAIM.finditer(text)]
    return [row for row in rows if row[0] not in ("claim", "---")]


def test_there_are_claims() -> None:
    assert len(claims()) > 40


@pytest.mark.parametrize(("claim", "shown_by"), claims(), ids=lambda text: text[:60])
def test_what_shows_a_claim_exists(claim: str, shown_by: str) -> None:
    """A test stands in one of the files named in front of it, in the same cell."""
    files: list[str] = []
    for found in FILE_OR_TEST.finditer(shown_by):
        if found["file"]:
            path = REPOSITORY / ("" if found["file"].startswith("vm-tests/") else "tests") / found["file"]
            files.append(path.read_text(encoding="utf-8"))
        else:
            assert any(f"def {found['test']}(" in content for content in files), found["test"]
    assert files or "demo" in shown_by.lower(), claim
