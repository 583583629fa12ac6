"""What a dry run says of each step, in a guest and on a workstation: its table, and its JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    DONE = "done"
    READY = "ready"  # it can be performed now
    WAITING = "waiting"  # an earlier step, or Ignition, comes first
    REFUSED = "refused"
    UNKNOWN = "unknown"  # nothing is refused, but not all that the step looks at could be told


@dataclass(frozen=True)
class Described:
    """A step, as a dry run names it. ``destructive``: nothing brings back what it has overwritten."""

    name: str
    destructive: bool


@dataclass(frozen=True)
class Observation:
    """``detail`` has the reason, if it is refused; ``untold`` the reasons of UNKNOWN."""

    step: Described
    state: State
    detail: str
    untold: tuple[str, ...] = ()


def as_json(phase: str, seen: Iterable[Observation]) -> dict[str, Any]:
    """``phase`` says what the machine was started from."""
    rows = [
        {
            "step": row.step.name,
            "state": row.state,
            "destructive": row.step.destructive,
            "detail": row.detail,
            "untold": list(row.untold),
        }
        for row in seen
    ]
    return {"phase": phase, "steps": rows}
