"""All that is asked of a merged config before anything uses it."""

from __future__ import annotations

from collections.abc import Callable, Collection

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition import config, kernel_arguments, ownership, transport, validity
from secex_firstboot.ignition.config import Config


def merged(text: bytes, devices: Collection[int], warn: Callable[[str], None]) -> Config:
    """What Ignition has merged. ``devices`` are the numbers of the system disk's. Raises Refusal."""
    found = config.parse_merged(text)
    validity.check(found)
    ownership.check(found, devices)
    kernel_arguments.check(found.kernel_arguments)
    transport.check(found, warn)
    return found


def stored(text: bytes, devices: Collection[int]) -> Config:
    """The one that the boot image brought back after a crash: it was merged, so nothing is fetched again."""
    found = merged(text, devices, warn=lambda line: None)  # they were said at the first start
    references = found.ignition.config
    if references.merge or references.replace.source is not None:
        raise Refusal(
            "SX-CONFIG-01",
            "the Ignition config in the boot image refers to others",
            "start again from an unchanged image",
        )
    return found
