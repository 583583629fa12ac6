"""File systems that grow over never-written sectors of real volumes, killed and crashed, in one guest.

inside/grow.py makes the observations; here is what they have to be.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness import debian, inside, sample
from harness.guest import Disk

MIB = 1 << 20
SIZE = 64 * MIB
# --unsupported: smaller than 300 MiB.
MAKE = {
    "xfs4096": ["mkfs.xfs", "-qK", "--unsupported", "-s", "size=4096"],
    "xfs512": ["mkfs.xfs", "-qK", "--unsupported", "-s", "size=512"],
    "ext4-4096": ["mkfs.ext4", "-q", "-b", "4096"],
    "ext4-1024": ["mkfs.ext4", "-q", "-b", "1024"],
}
# The first and the last volume are larger by a few KiB that the file system cannot use.
FULL = {"xfs4096": 128 * MIB, "xfs512": 120 * MIB, "ext4-4096": 140 * MIB, "ext4-1024": 120 * MIB + 1024}
MOST_DIRTY = 16 << 10  # KiB; what is zeroed passes by the page cache

Result = dict[str, Any]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Result:
    work = tmp_path_factory.mktemp("grow")
    kinds = sample.wanted(request, "kind")
    for kind in kinds:
        make_sparse(work / kind, SIZE)
        subprocess.run([*MAKE[kind], work / kind], check=True)
    make_sparse(work / "scratch", 256 * MIB)
    disks = [Disk(work / serial, serial, format="raw") for serial in ("scratch", *kinds)]
    output = debian.REPOSITORY / "build" / "grow"
    output.mkdir(parents=True, exist_ok=True)
    script = debian.REPOSITORY / "vm-tests/inside/grow.py"
    return inside.run(script, disks=disks, log=output / "console.log")


def make_sparse(path: Path, size: int) -> None:
    with path.open("wb") as stream:
        stream.truncate(size)


@pytest.fixture(params=sample.kind("file systems", list(MAKE)))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def seen(result: Result, kind: str) -> Result:
    found = result[kind]
    assert isinstance(found, dict)
    assert found.get("complete"), f"the guest gave up: {found}"
    return found


def test_what_it_grows_over_was_never_written(seen: Result) -> None:
    assert seen["never written"] == [SIZE, "EILSEQ"]


def test_it_was_killed_on_the_way_each_time(seen: Result) -> None:
    assert seen["exits"] == [-9, -9, -9]


def test_killed_or_crashed_it_goes_on_where_it_was(seen: Result, kind: str) -> None:
    sizes = [stage[0] for stage in seen["stages"]]
    assert sizes == sorted(sizes)
    assert SIZE <= sizes[0] < sizes[-1]
    assert all(size < FULL[kind] for size in sizes[:-1])


def test_at_the_end_the_volume_is_used_in_full(seen: Result, kind: str) -> None:
    assert seen["stages"][-1][0] == FULL[kind]
    assert seen["stamp"]


def test_at_every_stage_the_content_is_intact(seen: Result) -> None:
    assert {stage[1] for stage in seen["stages"]} == {seen["digest"]}


def test_at_every_stage_trimming_works_or_is_not_supported(seen: Result) -> None:
    assert {stage[2] for stage in seen["stages"]} <= {None, "ENOTSUP"}


def test_at_every_stage_the_checkers_can_read_it_and_find_it_clean(seen: Result) -> None:
    assert [(stage[3], stage[4]) for stage in seen["stages"]] == [([0, 0], "")] * 4


def test_at_the_end_every_sector_of_the_file_system_can_be_read(seen: Result) -> None:
    assert seen["read error"] is None


def test_zeroing_leaves_the_page_cache_alone(seen: Result) -> None:
    assert seen["dirty"] < MOST_DIRTY
