"""No example of a property is too slow: how long it takes says more of the machine than of the code.

And no test makes the agent import what is not in the initramfs.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from support import initramfs

settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

_WATCH = initramfs.Watch()
_WATCH.install()


@pytest.fixture(autouse=True)
def _initramfs() -> Iterator[None]:
    yield
    assert not _WATCH.strays()
