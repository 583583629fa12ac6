"""What is wrong, or could be better, with something that is looked at as a whole: all of it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secex_firstboot.basic.errors import FirstbootError


@dataclass(frozen=True)
class Finding:
    """``line``: of the file that was looked at, or None. ``advice``: it works as it is, too."""

    error: FirstbootError
    line: int | None = None
    advice: bool = False

    @property
    def as_json(self) -> dict[str, Any]:
        return {
            "level": "advice" if self.advice else "wrong",
            "id": self.error.id,
            "message": self.error.message,
            "cure": self.error.cure,
        }
