"""What a verb of ``secex`` is, and how it ends."""

from __future__ import annotations

import argparse
import json
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

from secex_firstboot.basic.errors import FirstbootError, Refusal


class Exit(IntEnum):
    """Exit codes: docs/secex.1. The last one is TEMPFAIL of sysexits.h, which systemd knows, too."""

    DONE = 0
    FAILED = 1
    USAGE = 2  # argparse's
    REFUSED = 3
    AGAIN = 75

    @classmethod
    def of(cls, error: FirstbootError) -> Exit:
        if error.passing:
            return cls.AGAIN
        return cls.REFUSED if isinstance(error, Refusal) else cls.FAILED


class Verb(Protocol):
    """The module of a verb; see ``secex`` beside this for how one is added."""

    EXAMPLES: str

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add its options."""

    def run(self, options: argparse.Namespace) -> Exit:
        """Do it. Raises FirstbootError and OSError."""


def add_files(parser: argparse._ActionsContainer, name: str, what: str, *, required: bool = False) -> None:
    """An option with a file, which may be repeated."""
    parser.add_argument(
        f"--{name}",
        type=Path,
        action="append",
        required=required,
        default=[],
        metavar="FILE",
        help=f"{what}; may be repeated",
    )


def add_json(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))
