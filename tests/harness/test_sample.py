"""Which of the tests in guests run in `make check`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import sample
from support import REPOSITORY


@pytest.mark.parametrize("number", [1, 2, 4, 6, 7, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 17, 37])
def test_every_case_comes_round(size: int, number: int) -> None:
    items = list(range(size))
    for first in (0, 5, 2**32 - 1):
        turns = [sample.in_turn(items, number, first + run) for run in range(-(-size // number))]
        assert {item for turn in turns for item in turn} == set(items)
        assert {len(turn) for turn in turns} == {min(size, number)}


def test_the_sample_keeps_the_order() -> None:
    assert sample.in_turn("abcdef", 3, 5) == ["b", "d", "f"]


def collected(directory: Path, seed: int, *options: str) -> list[str]:
    """What pytest would run of vm-tests/."""
    output = pytest_in(directory, seed, "--collect-only", *options)
    return [line.split("::")[1] for line in output.splitlines() if "::" in line]


def pytest_in(directory: Path, seed: int, *options: str, began: float = time.time()) -> str:
    added = {"CHECK_SEED": str(seed), "CHECK_BEGAN": str(began), "CHECK_MINUTES": "40"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"--rootdir={directory}", *options, directory],
        env=os.environ | added | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'vm-tests'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


MARKED = """\
import pytest
from harness import sample

@pytest.mark.long
def test_long(): pass

@pytest.mark.sampled("whole", 2)
@pytest.mark.parametrize("case", range(6))
def test_whole(case): pass

@pytest.mark.parametrize("case", [*sample.kind("a", "abc"), *sample.kind("d", "de", 2), "always"])
def test_kinds(case): pass
"""


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """Tests with the markers, under the rules of those in guests."""
    (tmp_path / "conftest.py").symlink_to(REPOSITORY / "vm-tests/conftest.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n early\n long\n sampled\n")
    (tmp_path / "test_marked.py").write_text(MARKED)
    return tmp_path


def test_check_runs_of_each_kind_as_many_as_the_marker_says(marked: Path) -> None:
    assert collected(marked, 1) == [
        *("test_whole[1]", "test_whole[4]"),
        *("test_kinds[b]", "test_kinds[d]", "test_kinds[e]", "test_kinds[always]"),
    ]


def test_check_long_runs_everything(marked: Path) -> None:
    whole = [f"test_whole[{case}]" for case in range(6)]
    kinds = [f"test_kinds[{case}]" for case in (*"abcde", "always")]
    assert collected(marked, 1, "--long") == ["test_long", *whole, *kinds]


def test_another_seed_is_another_sample_and_the_same_is_the_same(marked: Path) -> None:
    assert collected(marked, 1) == collected(marked, 1) != collected(marked, 2)


def test_when_time_is_up_no_case_of_a_sample_begins_and_every_other_test_runs(marked: Path) -> None:
    said = pytest_in(marked, 1, "-rs", began=time.time() - 41 * 60)
    assert re.search(r"SKIPPED \[5\] .*CHECK_MINUTES=40 are over, this case is left to make check-long", said)
    assert "1 passed, 5 skipped" in said
    assert "1 passed" not in pytest_in(marked, 1, "-rs", "--long", began=time.time() - 41 * 60)


def test_long_after_that_no_test_begins(marked: Path) -> None:
    said = pytest_in(marked, 1, "-rs", began=time.time() - 61 * 60)
    assert re.search(r"SKIPPED \[1\] .*CHECK_MINUTES=40 are over by 20, this test is left to", said)
    assert "6 skipped" in said and "passed" not in said
    assert "skipped" not in pytest_in(marked, 1, "-rs", "--long", began=time.time() - 61 * 60)


def test_at_the_end_it_says_what_each_file_cost(marked: Path) -> None:
    for name, seconds in (("cheap", "10.0"), ("dear", "40.0, 30.0")):
        (marked / f"test_{name}.py").write_text(
            f"from harness.guest import Guest\ndef test_it():\n    Guest.ran += [{seconds}]\n"
        )
    said = pytest_in(marked, 1, "-n", "2")
    assert re.search(r" 70 of +2 guests  test_dear.py\n", said)
    assert re.search(r" 10 of +1 guests  test_cheap.py\n", said)
    assert re.search(r" 80 of +3 guests  in all\n", said)
