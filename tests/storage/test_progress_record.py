from __future__ import annotations

import hmac
import resource
import signal
from pathlib import Path

import pytest

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.storage import progress_record
from secex_firstboot.storage.progress_record import Progress, ProgressRecord, VolumeProgress

KEY = bytes(range(32))
HALF_WAY = ProgressRecord(
    boot=VolumeProgress(progress=Progress.FINISHED),
    root=VolumeProgress(progress=Progress.PLACED, copied_from=4 << 20),
)


def sealed(body: bytes, key: bytes = KEY) -> bytes:
    return hmac.digest(key, body, "sha256") + body


def test_a_record_is_found_again(tmp_path: Path) -> None:
    progress_record.save(tmp_path, KEY, HALF_WAY)
    assert progress_record.load(tmp_path, KEY) == HALF_WAY


def test_the_newer_record_counts(tmp_path: Path) -> None:
    progress_record.save(tmp_path, KEY, ProgressRecord())
    progress_record.save(tmp_path, KEY, HALF_WAY)
    assert progress_record.load(tmp_path, KEY) == HALF_WAY


def test_without_a_record_nothing_has_happened(tmp_path: Path) -> None:
    fresh = progress_record.load(tmp_path, KEY)
    assert [fresh.of(name).progress for name in ("boot", "root")] == [Progress.UNTOUCHED] * 2
    assert fresh.root.copied_from is None


@pytest.mark.parametrize(
    ("progress", "copied_from", "complete"),
    [
        (Progress.UNTOUCHED, None, False),
        (Progress.SAVED, None, False),
        (Progress.PLACED, 4096, False),
        (Progress.PLACED, 0, True),
        (Progress.COPIED, None, True),
        (Progress.ZEROED, None, True),
        (Progress.FINISHED, None, True),
    ],
)
def test_a_target_with_all_of_the_source_may_be_in_use(
    progress: Progress, copied_from: int | None, complete: bool
) -> None:
    assert VolumeProgress(progress=progress, copied_from=copied_from).is_complete is complete


def test_each_volume_has_its_own_progress() -> None:
    assert HALF_WAY.of("boot").progress is Progress.FINISHED
    assert HALF_WAY.of("root").progress is Progress.PLACED


def test_a_record_with_another_key_is_refused(tmp_path: Path) -> None:
    progress_record.save(tmp_path, bytes(32), HALF_WAY)
    with pytest.raises(FirstbootError, match="not written by this first boot"):
        progress_record.load(tmp_path, KEY)


def test_each_flipped_bit_is_refused(tmp_path: Path) -> None:
    progress_record.save(tmp_path, KEY, HALF_WAY)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(FirstbootError, match="not written by this first boot"):
            progress_record.load(tmp_path, KEY)
    path.write_bytes(content)
    assert progress_record.load(tmp_path, KEY) == HALF_WAY


def test_each_truncated_record_is_refused(tmp_path: Path) -> None:
    progress_record.save(tmp_path, KEY, HALF_WAY)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(FirstbootError):
            progress_record.load(tmp_path, KEY)


def test_a_record_of_more_than_4096_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "firstboot-record"
    body = HALF_WAY.model_dump_json().encode()
    path.write_bytes(sealed(body.ljust(4096 - 32)))
    assert progress_record.load(tmp_path, KEY) == HALF_WAY
    path.write_bytes(sealed(body.ljust(4097 - 32)))
    with pytest.raises(FirstbootError, match="not written by this first boot"):
        progress_record.load(tmp_path, KEY)


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"[]", b'{"root": {"progress": "later"}}', b'{"root": {"copied_from": -1}}']
)
def test_an_authentic_record_that_makes_no_sense_is_refused(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "firstboot-record").write_bytes(sealed(body))
    with pytest.raises(FirstbootError, match="another version"):
        progress_record.load(tmp_path, KEY)


def test_a_failed_write_leaves_the_old_record(tmp_path: Path) -> None:
    progress_record.save(tmp_path, KEY, HALF_WAY)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, most))
    try:
        with pytest.raises(OSError, match="large"):
            progress_record.save(tmp_path, KEY, ProgressRecord())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        signal.signal(signal.SIGXFSZ, handler)
    assert progress_record.load(tmp_path, KEY) == HALF_WAY


def test_removing_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    progress_record.save(tmp_path, KEY, HALF_WAY)
    (tmp_path / "firstboot-record.new").write_bytes(b"left by a crash")
    (tmp_path / "sdboot").write_bytes(b"not a record")
    for _ in range(2):
        progress_record.remove(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["sdboot"]
