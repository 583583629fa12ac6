"""The configs that a config refers to, got on a workstation as Ignition gets them in the guest."""

from __future__ import annotations

from dataclasses import dataclass

from secex_firstboot.basic.context import Context
from secex_firstboot.hostkeys.download import Network, Unreachable
from secex_firstboot.hostkeys.fetch import Fetcher, is_over_http
from secex_firstboot.ignition import merge, transport
from secex_firstboot.ignition.config import Config, Resource
from secex_firstboot.owner.check.patience import impatient


@dataclass(frozen=True)
class References:
    context: Context

    def get(self, config: Config, reference: Resource, place: str) -> bytes | None:
        """As merge.Fetch. None: its server is out of reach, or is none that is known here."""
        transport.check_references({place: reference})
        if not is_over_http(reference):
            return None
        try:
            return Fetcher(impatient(config), Network(), self.context.say).content(
                reference, place, merge.LIMIT
            )
        except Unreachable as error:
            self.context.warn(error.message)
            return None
