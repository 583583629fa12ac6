"""A mount namespace of the program's own: what is mounted in it is so nowhere else, and ends with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def start_again(mark: str, command: Sequence[str], *options: str) -> NoReturn:
    """Become ``command`` in one, by unshare(1) with these ``options``; ``mark`` is in its environment then.

    What is unmounted outside meanwhile is so in it too.
    """
    sys.stdout.flush()
    os.environ[mark] = "1"
    whole = ["unshare", "--mount", "--propagation=slave", *options, "--", *command]
    os.execvp(whole[0], whole)  # noqa: S606
