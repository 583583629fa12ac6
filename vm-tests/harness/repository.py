"""A repository of Debian packages for a guest: a newer kernel than it has, from the mirror's backports."""

from __future__ import annotations

import hashlib
import lzma
import re

import requests

from harness import debian

_SUITES = {"trixie": "trixie-backports", "forky": "sid"}  # where there is a newer kernel, by debian.SUITE
_META = "linux-image-s390x"
_TIMEOUT = 300.0  # seconds, for a package


def newer_kernel() -> tuple[str, dict[str, bytes]]:
    """Its release, and what a web server has to offer for ``deb [trusted=yes] URL ./``: path -> content."""
    mirror = debian.mirror().rstrip("/")
    index = f"{mirror}/dists/{_SUITES[debian.SUITE]}/main/binary-s390x/Packages.xz"
    stanzas = _stanzas(lzma.decompress(_fetch(index)).decode())
    wanted, todo = {}, [_META]
    while todo:
        name = todo.pop()
        if name in stanzas and name not in wanted:
            wanted[name] = stanzas[name]
            # What is not of the kernel itself the guest has.
            needed = ", ".join(_field(stanzas[name], kind) for kind in ("Pre-Depends", "Depends"))
            todo += re.findall(r"linux-(?:base|binary|image|modules)(?:-[\w.+-]+)?", needed)
    files, lines = {}, []
    for number, stanza in enumerate(wanted.values()):  # apt writes a plus sign in another way
        files[f"/./{number}.deb"] = _package(mirror, stanza)
        lines.append(re.sub(r"(?m)^Filename: .*$", f"Filename: ./{number}.deb", stanza))
    files["/./Packages"] = "\n\n".join([*lines, ""]).encode()
    (release,) = (name.removeprefix("linux-modules-") for name in wanted if name.startswith("linux-modules-"))
    return release, files


def _stanzas(text: str) -> dict[str, str]:
    """By the package's name, the newest version of each: it stands last, or is the only one."""
    return {_field(stanza, "Package"): stanza for stanza in text.split("\n\n") if stanza.strip()}


def _field(stanza: str, name: str) -> str:
    found = re.search(rf"(?m)^{name}: (.*)$", stanza)
    return found[1] if found else ""


def _package(mirror: str, stanza: str) -> bytes:
    """From the cache, if it was fetched before."""
    digest = _field(stanza, "SHA256")
    path = debian.CACHE / f"package-{digest[:16]}.deb"
    if not path.exists():
        content = _fetch(f"{mirror}/{_field(stanza, 'Filename')}")
        if hashlib.sha256(content).hexdigest() != digest:
            raise RuntimeError(f"{_field(stanza, 'Filename')} is not what the mirror's index says")
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_bytes(content)
        unfinished.rename(path)
    return path.read_bytes()


def _fetch(url: str) -> bytes:
    answer = requests.get(url, timeout=_TIMEOUT)
    answer.raise_for_status()
    return answer.content
