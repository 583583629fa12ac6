"""``--dry-run --config FILE [--disk IMAGE]`` on a workstation: what first boot would say of config and image.

Every check runs that needs neither the guest nor its secrets, with the code that first boot runs, and so its
words. What first boot would look at too, and cannot be looked at here, is named: such a step is neither ready
nor refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.contract.dry_run import Described, Observation, State
from secex_firstboot.owner.check import config_file, hostkeys, image
from secex_firstboot.owner.check.config_file import Given
from secex_firstboot.owner.check.look import Look


@dataclass(frozen=True)
class Preflight:
    """``certificates`` is the directory with the root certificates that the image trusts; None: the one where
    an image has them, if this machine has it, too. ``offline``: nothing is fetched.
    """

    config_file: Path
    image: Path | None
    certificates: Path | None
    verification: Literal["strict", "no"]
    context: Context
    offline: bool = False

    def run(self, steps: Sequence[Described]) -> list[Observation]:
        """What each of the steps of first boot would say, as far as it can be told here."""
        looks: dict[str, Callable[[], Look]] = {}
        try:
            given = config_file.read(self.config_file)
        except FirstbootError as error:
            looks["config"] = partial(_refuse, error)
        else:
            looks["config"] = lambda: config_file.look(given, self.context)
            looks["hostkeys"] = lambda: self._host_keys(given)
        if disk := self.image:
            looks["personalise"] = lambda: image.look(disk)
        return [_observation(step, looks.get(step.name)) for step in steps]

    def _host_keys(self, given: Given) -> Look:
        return hostkeys.look(
            given,
            self.certificates,
            verification=self.verification,
            offline=self.offline,
            context=self.context,
        )


def _observation(step: Described, look: Callable[[], Look] | None) -> Observation:
    if not look:
        return Observation(step, State.WAITING, "can only be told at first boot")
    try:
        seen = look()
    except (FirstbootError, OSError) as error:
        return Observation(step, State.REFUSED, str(error))
    return Observation(step, State.UNKNOWN if seen.untold else State.READY, seen.detail, tuple(seen.untold))


def _refuse(error: FirstbootError) -> Look:
    raise error
