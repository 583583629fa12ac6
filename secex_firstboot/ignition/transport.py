"""What of a config comes over a transport that nobody protects: whoever runs the host answers what he likes.

A hash in the config protects what comes over http as well as https does, but not from being read.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from secex_firstboot.errors import Refusal
from secex_firstboot.ignition.config import Config, FileEntry, Resource
from secex_firstboot.paths import SYSTEM_HOST_KEYS

_UNPROTECTED = ("http", "tftp")  # of the schemes that Ignition knows
_CURE = "give its verification.hash, use https, or put it into the config"


@dataclass(frozen=True)
class _Found:
    """A resource by its place in the config, and whether the host may change it, or even see it."""

    place: str
    resource: Resource
    kind: Literal["content", "no say", "secret"] = "content"


def check(config: Config, warn: Callable[[str], None]) -> None:
    """Warn of each resource that the host can change, by its place in the config and never by its URL.

    Raises Refusal where it would say with that which host keys count, whom https trusts, or with which key a
    volume is encrypted.
    """
    for found in (*_files(config), *_authorities(config), *_keys(config), *_references(config)):
        _judge(found, warn)


def check_replacement(config: Config, warn: Callable[[str], None]) -> None:
    """The same of the config that takes this one's place: Ignition's merged config no longer names it."""
    _judge(_Found("ignition.config.replace", config.ignition.config.replace), warn)


def _judge(found: _Found, warn: Callable[[str], None]) -> None:
    scheme = (found.resource.source or "").partition(":")[0].lower()
    if scheme not in _UNPROTECTED:
        return
    if found.kind == "secret":
        raise Refusal(
            f"{found.place} comes over {scheme}, so the host can read it", "use https or a data URL"
        )
    if found.resource.verification.hash:
        return
    what = f"{found.place} comes over {scheme} without verification.hash, so the host can change it"
    if found.kind == "no say":
        raise Refusal(what, _CURE)
    warn(f"{what}: {_CURE}")


def _files(config: Config) -> Iterator[_Found]:
    for index, entry in enumerate(config.storage.files):
        place, kind = f"storage.files[{index}]", _kind(entry)
        yield _Found(f"{place}.contents", entry.contents, kind)
        for part, resource in enumerate(entry.append):
            yield _Found(f"{place}.append[{part}]", resource, kind)


def _kind(entry: FileEntry) -> Literal["content", "no say"]:
    path = posixpath.normpath(f"/{entry.path.lstrip('/')}")
    return "no say" if f"{path}/".startswith(f"{SYSTEM_HOST_KEYS}/") else "content"


def _authorities(config: Config) -> Iterator[_Found]:
    for index, resource in enumerate(config.ignition.security.tls.certificate_authorities):
        yield _Found(f"ignition.security.tls.certificateAuthorities[{index}]", resource, "no say")


def _keys(config: Config) -> Iterator[_Found]:
    for index, volume in enumerate(config.storage.luks):
        yield _Found(f"storage.luks[{index}].keyFile", volume.key_file, "secret")


def _references(config: Config) -> Iterator[_Found]:
    yield _Found("ignition.config.replace", config.ignition.config.replace)
    for index, resource in enumerate(config.ignition.config.merge):
        yield _Found(f"ignition.config.merge[{index}]", resource)
