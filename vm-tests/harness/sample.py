"""Which tests of a kind that is too many for each run have their turn in this one.

``make check-long`` runs all of them. ``make check`` runs of each kind as many as its marker says, which ones
the seed says: the same for the same seed, and numbers in a row bring every one round.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

Item = TypeVar("Item")


def seed() -> int:
    """CHECK_SEED; drawn by whoever asks first, and then the same for all processes of the run."""
    return int(os.environ.setdefault("CHECK_SEED", str(secrets.randbits(32))))


GRACE = 20  # minutes in which the tests that are no cases still have their turn


def too_late(*, is_case: bool) -> str:
    """Why a test has no turn, or empty: a slow machine looks at fewer, first at fewer of a sample's cases."""
    minutes = float(os.environ.get("CHECK_MINUTES", "inf"))
    until = minutes if is_case else minutes + GRACE
    if time.time() < float(os.environ.get("CHECK_BEGAN", "inf")) + 60 * until:
        return ""
    over = f"CHECK_MINUTES={minutes:.0f} are over" + ("" if is_case else f" by {GRACE}")
    return f"{over}, this {'case' if is_case else 'test'} is left to make check-long"


def kind(name: str, cases: Sequence[Any], number: int = 1) -> list[Any]:
    """The cases of one kind, for pytest.mark.parametrize."""
    return [pytest.param(case, id=str(case), marks=pytest.mark.sampled(name, number)) for case in cases]


def wanted(request: pytest.FixtureRequest, name: str) -> list[Any]:
    """The values of the parameter ``name`` with which tests of the asking one's file run, each once."""
    items = [item for item in request.session.items if item.path == request.path]
    parameters = [
        item.callspec.params
        for item in items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
    ]
    return list(dict.fromkeys(each[name] for each in parameters if name in each))


def in_turn(items: Sequence[Item], number: int, seed: int) -> list[Item]:
    """``number`` of the items, in their order; all have had their turn after len/number seeds in a row."""
    wanted = {(seed + at * len(items) // number) % len(items) for at in range(number)}
    return [item for at, item in enumerate(items) if at in wanted]


def split(items: Sequence[pytest.Item], seed: int) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Those whose turn it is, or that always run, and the others, each in their order."""
    kinds: dict[tuple[Path, str, str, int], list[pytest.Item]] = {}
    turn = set()
    for item in items:
        if item.get_closest_marker("long"):
            continue
        if marker := item.get_closest_marker("sampled"):
            kind, number, *_ = *marker.args, 1
            kinds.setdefault((item.path, getattr(item, "originalname", ""), kind, number), []).append(item)
        else:
            turn.add(item)
    for (*_, number), members in kinds.items():
        turn |= set(in_turn(members, number, seed))
    return [item for item in items if item in turn], [item for item in items if item not in turn]
