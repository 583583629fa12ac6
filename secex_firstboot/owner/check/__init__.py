"""``secex check``: what first boot would say of a config and an image, on a workstation.

Every check runs that needs neither the guest nor its secrets, with the code that first boot runs, and so its
words. What first boot would look at too, and cannot be looked at here, is named: such a step is neither ready
nor refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.contract import parameters, paths
from secex_firstboot.contract.dry_run import Described, Observation, State
from secex_firstboot.contract.metadata import Metadata
from secex_firstboot.contract.parameters import HEADROOM, HOSTKEY_VERIFY
from secex_firstboot.ignition import merge
from secex_firstboot.owner.check import config_file, expiry, hostkeys, image
from secex_firstboot.owner.check.config_file import Given
from secex_firstboot.owner.check.expiry import Expiry
from secex_firstboot.owner.check.look import Look
from secex_firstboot.owner.check.references import References


@dataclass(frozen=True)
class Verdict:
    """``given`` is None if the file is no config."""

    steps: list[Observation]
    given: Given | None
    expires: list[Expiry] = field(default_factory=list)

    @property
    def refused(self) -> list[Observation]:
        return [each for each in self.steps if each.state is State.REFUSED]


@dataclass(frozen=True)
class Preflight:
    """``certificates`` is the directory with the root certificates that the image trusts; None: the one where
    an image has them, if this machine has it, too. ``verification`` None: as the image's metadata say.
    ``offline``: nothing is fetched. ``follow``: configs that the config refers to are.
    """

    config_file: Path
    image: Path | None
    metadata: Metadata | None
    certificates: Path | None
    verification: Literal["strict", "no"] | None
    context: Context
    offline: bool = False
    follow: bool = False

    def run(self, steps: Sequence[Described]) -> Verdict:
        """What each of the steps of first boot would say, as far as it can be told here."""
        looks: dict[str, Callable[[], Look]] = {}
        given, kept = None, dict[str, bytes]()
        try:
            given = config_file.read(
                self.config_file, References(self.context).get if self.follow else merge.nothing
            )
        except FirstbootError as error:
            looks["config"] = partial(_refuse, error)
        else:
            looks["config"] = partial(config_file.look, given, self.context)
            looks["hostkeys"] = partial(self._host_keys, given, kept)
        if self.image or self.metadata:
            looks["personalise"] = self._image
        seen = [_observation(step, looks.get(step.name)) for step in steps]
        certificates = self.certificates or paths.CERTIFICATES
        return Verdict(seen, given, expiry.all_of(given.config, kept, certificates) if given else [])

    def _host_keys(self, given: Given, kept: dict[str, bytes]) -> Look:
        return hostkeys.look(
            given,
            self.certificates,
            verification=self._verification,
            offline=self.offline,
            context=self.context,
            kept=kept,
        )

    def _image(self) -> Look:
        return image.look(self.image, self.metadata, parameters.value(self._options, HEADROOM))

    @property
    def _verification(self) -> Literal["strict", "no"]:
        if self.verification:
            return self.verification
        return parameters.value(self._options, HOSTKEY_VERIFY)

    @property
    def _options(self) -> str:
        """The image's kernel arguments, as far as they are known."""
        return self.metadata.boot_entry.options if self.metadata else ""


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
