"""No example of a property is too slow: how long it takes says more of the machine than of the code."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")
