"""What of a config comes over a transport that nobody protects: whoever runs the host answers what he likes.

A hash in the config protects what comes over http as well as https does, but not from being read.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.paths import SYSTEM_HOST_KEYS
from secex_firstboot.ignition.config import Config, FileEntry, Resource

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
    volume is encrypted; and for a whole config, which can say all of that.
    """
    for found in (*_files(config), *_authorities(config), *_keys(config), *_references(config)):
        _judge(found, warn)


def check_references(references: Mapping[str, Resource]) -> None:
    """Raises Refusal for a config, by its place, that the host can change.

    For those of ``merge.read``: Ignition's merged config does not name each that it was made of.
    """
    for place, resource in references.items():
        if _is_changeable(resource):
            raise Refusal("SX-CONFIG-33", _changeable(place, resource), _CURE)


def _scheme(resource: Resource) -> str:
    return (resource.source or "").partition(":")[0].lower()


def _is_changeable(resource: Resource) -> bool:
    return _scheme(resource) in _UNPROTECTED and not resource.verification.hash


def _changeable(place: str, resource: Resource) -> str:
    return f"{place} comes over {_scheme(resource)} without verification.hash, so the host can change it"


def _judge(found: _Found, warn: Callable[[str], None]) -> None:
    scheme = _scheme(found.resource)
    if found.kind == "secret" and scheme in _UNPROTECTED:
        raise Refusal(
            "SX-CONFIG-34",
            f"{found.place} comes over {scheme}, so the host can read it",
            "use https or a data URL",
        )
    if not _is_changeable(found.resource):
        return
    what = _changeable(found.place, found.resource)
    if found.kind == "no say":
        raise Refusal("SX-CONFIG-35", what, _CURE)
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
    yield _Found("ignition.config.replace", config.ignition.config.replace, "no say")
    for index, resource in enumerate(config.ignition.config.merge):
        yield _Found(f"ignition.config.merge[{index}]", resource, "no say")
