"""How long a workstation waits for servers: somebody sits in front of it."""

from __future__ import annotations

from secex_firstboot.ignition.config import Config

SECONDS = 30  # for each file


def impatient(found: Config) -> Config:
    """The config with less patience for servers than it may ask for."""
    total = min(found.ignition.timeouts.http_total or SECONDS, SECONDS)
    timeouts = found.ignition.timeouts.model_copy(update={"http_total": total})
    return found.model_copy(update={"ignition": found.ignition.model_copy(update={"timeouts": timeouts})})
