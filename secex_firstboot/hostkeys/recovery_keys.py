"""The owner's recovery keys, as a config names them: what a disk is left for when all its hosts are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from secex_firstboot.hostkeys.download import Network
from secex_firstboot.hostkeys.fetch import Fetcher
from secex_firstboot.ignition import config, openpgp, recipients
from secex_firstboot.ignition.config import Config
from secex_firstboot.ignition.recipients import Recipient


def of_config(merged: Config, say: Callable[[str], None], work: Path) -> list[Recipient]:
    """Fetched, and found to be keys that can be encrypted to. Raises Refusal.

    ``work``: see openpgp.encrypt.
    """
    entries = config.recovery_keys(merged)
    fetcher = Fetcher(merged, Network(), say)
    return usable({each.name: fetcher.file(each, "recovery key", recipients.LIMIT) for each in entries}, work)


def usable(files: Mapping[str, bytes], work: Path) -> list[Recipient]:
    """The keys in these files. Raises Refusal for one that nothing can be encrypted to, now."""
    found = of_files(files)
    for each in found:
        openpgp.encrypt(b"", [each], work)
    return found


def of_files(files: Mapping[str, bytes]) -> list[Recipient]:
    """As ``usable``, but whether one has expired, or was revoked, is not looked at."""
    found = [recipients.parse(name, content) for name, content in files.items()]
    recipients.check(found)
    return found


def told(keys: Sequence[str]) -> str:
    """What a dry run says of them."""
    if not keys:
        return "no recovery keys: nothing is left that opens the disk on another host"
    return f"recovery keys: {', '.join(keys)}"
