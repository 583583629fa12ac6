from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.storage.backward_copy import copy_backwards
from secex_firstboot.storage.integrity import Layout

PAGE = 4096


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, bytes]:
    content = os.urandom(10 * PAGE)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    target.write_bytes(bytes(len(content)))
    return source, target, content


def copy(source: Path, target: Path, length: int, **options: object) -> list[int]:
    durable: list[int] = []
    arguments = {
        "chunk": 4 * PAGE,
        "on_chunk_durable": durable.append,
        "progress": lambda *_: None,
    } | options
    copy_backwards(source, target, length, **arguments)  # type: ignore[arg-type]
    return durable


def test_everything_is_copied_from_the_last_chunk_to_the_first(files: tuple[Path, Path, bytes]) -> None:
    source, target, content = files
    assert copy(source, target, len(content)) == [8 * PAGE, 4 * PAGE, 0]
    assert target.read_bytes() == content


def test_a_copy_goes_on_where_it_was(files: tuple[Path, Path, bytes]) -> None:
    source, target, content = files
    assert copy(source, target, len(content), start_from=4 * PAGE) == [0]
    assert target.read_bytes() == content[: 4 * PAGE] + bytes(6 * PAGE)


def test_a_finished_copy_writes_nothing(files: tuple[Path, Path, bytes]) -> None:
    source, target, content = files
    assert copy(source, target, len(content), start_from=0) == []
    assert not any(target.read_bytes())


def test_durable_means_readable_from_there_and_nothing_below_is_written_yet(
    files: tuple[Path, Path, bytes],
) -> None:
    source, target, content = files

    def look(offset: int) -> None:
        assert target.read_bytes() == bytes(offset) + content[offset:]

    copy(source, target, len(content), on_chunk_durable=look)


def test_progress_counts_up_to_the_length(files: tuple[Path, Path, bytes]) -> None:
    source, target, content = files
    seen: list[tuple[int, int]] = []
    copy(source, target, len(content), start_from=8 * PAGE, progress=lambda *done: seen.append(done))
    assert seen == [(6 * PAGE, 10 * PAGE), (10 * PAGE, 10 * PAGE)]


def test_a_source_that_ends_early_is_an_error_with_the_offset(files: tuple[Path, Path, bytes]) -> None:
    source, target, content = files
    os.truncate(source, 9 * PAGE)
    with pytest.raises(FirstbootError, match=f"read byte {9 * PAGE}"):
        copy(source, target, len(content))


def test_a_target_that_fails_is_an_error_with_the_offset(files: tuple[Path, Path, bytes]) -> None:
    source, target, content = files
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9 * PAGE, limits[1]))
    try:
        with pytest.raises(FirstbootError, match=f"write byte {9 * PAGE} .*File too large"):
            copy(source, target, len(content))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert threading.active_count() == 1


def test_a_missing_device_is_an_error_with_its_name(files: tuple[Path, Path, bytes]) -> None:
    source, target, content = files
    with pytest.raises(FirstbootError, match="no-such-device"):
        copy(source, target.with_name("no-such-device"), len(content))


@pytest.mark.parametrize("where", ["on_chunk_durable", "progress"])
def test_an_error_in_a_callback_ends_the_copy_and_its_thread(
    files: tuple[Path, Path, bytes], where: str
) -> None:
    source, target, content = files

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(source, target, len(content), **{where: stop})
    assert target.read_bytes() == bytes(8 * PAGE) + content[8 * PAGE :]
    assert threading.active_count() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 10 * PAGE + 512},
        {"start_from": 512},
        {"chunk": 1000},
        {"chunk": 0},
        {"start_from": 11 * PAGE},
    ],
)
def test_sizes_that_do_not_fit_the_device_are_refused(
    files: tuple[Path, Path, bytes], wrong: dict[str, int]
) -> None:
    source, target, content = files
    with pytest.raises(ValueError):
        copy(source, target, **({"length": len(content)} | wrong))
    assert not any(target.read_bytes())


def copied_in_place(layout: Layout, blocks: int, chunk: int, crash_after: int) -> tuple[list[int], list[int]]:
    """Copy backwards on a model of the disk, one cell a page; killed after ``crash_after`` chunks unrecorded.

    The cells the formatting overwrites count as saved elsewhere. Returns the volume and what it should be.
    """
    content = list(range(1, blocks + 1))
    disk = dict(enumerate(content))
    saved = {cell: disk[cell] for cell in range(min(layout.areas_start // PAGE, blocks))}
    volume: dict[int, int] = {}

    def run(start: int, chunks: int) -> int:
        while start > 0 and chunks:
            first = max(start - chunk, 0)
            data = [saved.get(cell, disk[cell]) for cell in range(first, start)]
            for cell, value in zip(range(first, start), data, strict=True):
                volume[cell] = value
                for address in touched(layout, cell * PAGE):
                    disk[address // PAGE] = -1
            start, chunks = first, chunks - 1
        return start

    recorded = run(blocks, crash_after)
    run(recorded, 1)  # written, then killed before it is recorded
    run(recorded, blocks)
    return [volume[cell] for cell in range(blocks)], content


def touched(layout: Layout, offset: int) -> list[int]:
    tags = range(layout.tags_address(offset), layout.tags_address(offset) + layout.tag_run, PAGE)
    return [layout.data_address(offset), *tags]


small = st.builds(
    Layout,
    sector_size=st.sampled_from([512, 4096]),
    journal_sections=st.just(1),
    data_offset=st.integers(0, 24).map(lambda pages: pages * PAGE),
    interleave=st.sampled_from([4 * PAGE, 16 * PAGE]),
)


@settings(max_examples=60)
@given(small, st.integers(1, 200), st.integers(0, 50), st.data())
def test_within_the_window_a_kill_at_the_worst_moment_loses_nothing(
    layout: Layout, blocks: int, crash_after: int, data: st.DataObject
) -> None:
    window = layout.backward_window // PAGE
    if window < 1:
        return
    volume, content = copied_in_place(layout, blocks, data.draw(st.integers(1, window)), crash_after)
    assert volume == content


def test_beyond_the_window_a_kill_loses_data() -> None:
    layout = Layout(4096, 1, 4 * PAGE, interleave=4 * PAGE)
    assert copied_in_place(layout, 200, layout.backward_window // PAGE, 3)[0] == list(range(1, 201))
    volume, content = copied_in_place(layout, 200, 100, 0)
    assert volume != content


def test_no_room_before_the_areas_loses_data_even_without_a_kill() -> None:
    layout = Layout(4096, 1, 0, interleave=256 * PAGE)
    assert layout.backward_window < 0
    volume, content = copied_in_place(layout, 200, 1, 0)
    assert volume != content
