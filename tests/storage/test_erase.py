"""Overwriting a part of a device, here a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.storage.erase import erase

MIB = 1 << 20
SIZE = 3 * MIB + 512


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, SIZE),
        (MIB, MIB),
        (MIB + 32, 4000),
        (4096 * 7 - 1, 2),
        (MIB - 1, 2 * MIB),
        (SIZE - 700, 700),
        (5000, 0),
    ],
)
def test_the_span_is_zero_and_every_byte_around_it_as_it_was(tmp_path: Path, offset: int, size: int) -> None:
    device, before = tmp_path / "device", os.urandom(SIZE)
    device.write_bytes(before)
    heard: list[tuple[int, int]] = []
    erase(device, offset, size, lambda *figures: heard.append(figures))
    assert device.read_bytes() == before[:offset] + bytes(size) + before[offset + size :]
    assert heard[-1] == (size, size)


def test_what_is_zero_already_is_not_written(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.touch()
    os.truncate(device, 8 * MIB)
    erase(device, 100, 8 * MIB - 100, lambda *_: None)
    assert device.stat().st_blocks == 0


def test_a_device_that_ends_before_is_no_success(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.write_bytes(os.urandom(MIB))
    with pytest.raises(FirstbootError, match=r"ends at byte 1048576"):
        erase(device, 0, MIB + 1, lambda *_: None)
