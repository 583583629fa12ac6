"""How long the fuzzers run: FUZZ_SECONDS in all, half for each of the two files; a few examples without it.

A failure prints hypothesis' example and the FUZZ_SEED that finds it again.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
SEED = int(os.environ.get("FUZZ_SEED", secrets.randbits(32)))
FILES = 2


def run(
    strategy: st.SearchStrategy[Any], check: Callable[[Any], None], share: float, batch_size: int = 200
) -> None:
    """Give examples to ``check``, for this share of a file's time; it ends with a whole batch of them."""
    examples = settings(
        max_examples=batch_size if SECONDS else 20,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    end = time.monotonic() + SECONDS / FILES * share
    batch = SEED
    while True:
        try:
            seed(batch)(examples(given(strategy)(check)))()
        except BaseException as error:
            error.add_note(f"FUZZ_SEED={batch}")
            raise
        batch += 1
        if time.monotonic() >= end:
            return
