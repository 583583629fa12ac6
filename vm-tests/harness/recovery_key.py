"""A recovery key of the owner's, and the trusted machine on which it is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harness import site
from harness.firstboot import Owner, Served
from secex_firstboot.builder import config_key

_PLACE = "/etc/se-hostkeys/recovery/owner.asc"


def private(directory: Path) -> Path:
    """Of the site in this directory."""
    return directory / "recovery.asc"


def configure(owner: Owner, served: Served) -> Served:
    """The same config, with a fresh key."""
    key = config_key.key_pair()
    private(owner.directory).write_bytes(key.private)
    file = {"path": _PLACE, "contents": {"source": site.data_url(key.public)}}
    storage = served.config["storage"]
    return replace(served, config=served.config | {"storage": storage | {"files": [*storage["files"], file]}})
