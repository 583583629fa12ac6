"""What is left for recovery keys: always as long, and read as a grammar."""

from __future__ import annotations

import json
from typing import Any

import pytest

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.recovery import SIZE, Recovery, Volume

VOLUME = Volume(partition="0e4a2f11-6a0c-4a6e-9d1b-2b6f3a1d90d1", opens=b"\xff header and key")
FOUND = Recovery(
    generation=7, kernel="6.12", command_line="quiet", hosts=("0f" * 32,), boot=VOLUME, root=VOLUME
)


def test_it_is_read_as_it_was_written_and_always_as_long() -> None:
    more = FOUND.model_copy(update={"command_line": "quiet " * 100})
    hybrid = FOUND.model_copy(update={"hosts": ("0f" * 64,)})
    for each in (FOUND, more, hybrid):
        assert len(each.padded()) == SIZE
        assert Recovery.parse(each.padded()) == each


def test_what_opens_the_volumes_is_not_printed() -> None:
    assert "header and key" not in repr(FOUND)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"more": 1},
        {"generation": -1},
        {"hosts": ["0f"]},
        {"hosts": ["0f" * 48]},
        {"boot": {"partition": "../../etc", "opens": ""}},
        {"boot": {"partition": VOLUME.partition, "opens": "no base64!"}},
        {"boot": {"partition": VOLUME.partition, "opens": 1}},
        {"root": None},
    ],
    ids=str,
)
def test_anything_else_is_refused_without_a_word_of_it(change: dict[str, Any]) -> None:
    text = json.dumps(json.loads(FOUND.padded()) | change).encode()
    with pytest.raises(Refusal, match="is not what secex-firstboot leaves for recovery keys") as caught:
        Recovery.parse(text.ljust(SIZE))
    assert "0e4a" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", FOUND.padded()[:-1], FOUND.padded() + b" ", bytes(SIZE)])
def test_another_length_is_refused(content: bytes) -> None:
    with pytest.raises(Refusal):
        Recovery.parse(content)
