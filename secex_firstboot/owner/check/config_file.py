"""The config on a workstation: read as a file that may be something else, and looked at."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from secex_firstboot.basic import process
from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition import (
    config,
    go_json,
    kernel_arguments,
    merge,
    openpgp,
    ownership,
    transport,
    validity,
)
from secex_firstboot.ignition.config import Config, FileEntry, Resource
from secex_firstboot.owner.check.look import Look, listed

# Ignition's docs/release-notes.md: its first version with the final specification 3.MINOR.0. Those before,
# any image's Ignition knows: Debian has had none older than 2.14.
_KNOWN_SINCE = {4: "2.15", 5: "2.20", 6: "2.26"}

_BUTANE = "butane"
_VALIDATOR = "ignition-validate"
_TIMEOUT = 60  # seconds, for each of the two
_TIMED_OUT, _NO_SUCH_PROGRAM = 124, 127  # timeout(1)


@dataclass(frozen=True)
class Given:
    """The config of a file, with what it refers to in itself; ``elsewhere``: the other references.

    ``text`` is what Ignition gets; ``unknown`` are the places of what it does not read, such as misspelled
    names.
    """

    text: bytes
    config: Config
    elsewhere: dict[str, Resource]
    unknown: Sequence[str] = ()

    @property
    def is_replaced(self) -> bool:
        """By a config that is elsewhere."""
        return "ignition.config.replace" in self.elsewhere

    def files(self) -> Iterator[tuple[str, FileEntry]]:
        """With their places."""
        for index, entry in enumerate(self.config.storage.files):
            yield f"storage.files[{index}]", entry


def read(path: Path, fetch: merge.Fetch = merge.nothing) -> Given:
    """The Ignition config of a file, or that which butane makes of it.

    Raises Refusal saying what the file is, if it is neither, and what to do instead.
    """
    text = _content(path)
    if foreign := _foreign(text):
        raise Refusal("SX-CHECK-03", f"{path} {foreign[0]}", foreign[1])
    if _is_butane(text):
        text = _translated(path)
    decoder = go_json.Decoder()
    return Given(text, *merge.read(text, decoder, fetch), decoder.unknown)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            text = stream.read(openpgp.CONFIG_LIMIT + 1)
    except OSError as error:
        raise Refusal(
            "SX-CHECK-01",
            f"{path} cannot be read: {error.strerror}",
            "name the Ignition config that is not encrypted yet",
        ) from None
    if len(text) > openpgp.CONFIG_LIMIT:
        raise Refusal(
            "SX-CHECK-02", f"{path} is larger than a config may be", "let Ignition fetch the large files"
        )
    return text


def _foreign(text: bytes) -> tuple[str, str] | None:
    """What it is, if it is one of what people have beside a config, and the cure."""
    begin = text.lstrip()
    if not text.strip(b"\0 \t\r\n"):
        return "is empty", "give the Ignition config"
    # RFC 9580, 4.2: the first bit of a packet is set. In UTF-8 no text of JSON's begins so.
    if begin.startswith(b"-----BEGIN PGP ") or (text[0] & 0x80 and not text.startswith(b"\xef\xbb\xbf")):
        return "is encrypted already", "give the config as it was before gpg encrypted it"
    if text.startswith(b"\xef\xbb\xbf"):
        return "begins with a byte order mark, which Ignition does not take", "save it as UTF-8 without one"
    if _is_butane(text) and not shutil.which(_BUTANE):
        cure = f"install {_BUTANE}, or make the Ignition config of it: butane --strict FILE > config.ign"
        return "is Butane's YAML", cure
    return None


def _is_butane(text: bytes) -> bool:
    return not text.lstrip().startswith(b"{") and bool(
        re.search(rb"^(variant|version):\s", text, re.MULTILINE)
    )


def _translated(path: Path) -> bytes:
    """Butane's internal/main.go: JSON on standard output, and with --strict a warning is an error.

    The files that it includes are those beside it.
    """
    path = path.absolute()
    options = ("--strict", f"--files-dir={path.parent}")
    try:
        return process.run(["timeout", str(_TIMEOUT), _BUTANE, *options, path]).encode()
    except process.ToolError as error:
        raise Refusal(
            "SX-CHECK-29", f"{_BUTANE} refuses {path}: {error.output[:500]}", "correct it"
        ) from None


def look(given: Given, context: Context) -> Look:
    """What first boot looks at before it fetches anything. Raises Refusal in its words."""
    found = given.config
    for place in given.unknown:
        context.warn(f"{place} is no field of a config, and Ignition ignores it: correct the name")
    untold = _specification(found.ignition.version)
    if given.elsewhere:
        untold.append(f"what other configs say: {listed(list(given.elsewhere))}")
    transport.check_references(given.elsewhere)
    if given.is_replaced:
        return Look("a config in whose place first boot takes another", untold)
    validity.check(found)
    ownership.check(found, devices=())
    kernel_arguments.check(found.kernel_arguments)
    transport.check(found, context.warn)
    untold += validate(given.text, context)
    if devices := ownership.places_of_devices(found):
        untold.append(f"which of the guest's disks these are: {listed(devices)}")
    if remote := [place for place, entry in given.files() if not is_proof(entry) and is_remote(entry)]:
        untold.append(f"whether the guest gets these from their servers: {listed(remote)}")
    return Look(f"a config of specification {found.ignition.version}", untold)


def _specification(version: str) -> list[str]:
    """Raises Refusal for one that no Ignition is known to have."""
    _, minor, patch = version.split(".", 2)
    if version.endswith("-experimental"):
        return [f"whether the image's Ignition is of the few versions that know {version}"]
    if patch != "0" or int(minor) > max(_KNOWN_SINCE):
        raise Refusal(
            "SX-CHECK-04",
            f"the Ignition config is of specification {version}; there are 3.0.0 to 3.{max(_KNOWN_SINCE)}.0",
            "write the config for one of these, 3.3.0 for any image",
        )
    since = _KNOWN_SINCE.get(int(minor))
    return [f"whether the image's Ignition is {since} or newer, and so knows {version}"] if since else []


def validate(text: bytes, context: Context) -> list[str]:
    """Ignition's own check of a config, where it is installed; what that refuses is a Refusal.

    Ignition's validate/main.go: ``-`` is standard input. What is no UTF-8 there, Go replaces, too.
    """
    try:
        warnings = process.run(
            ["timeout", str(_TIMEOUT), _VALIDATOR, "-"], stdin=text.decode(errors="replace")
        )
    except process.ToolError as error:
        what = "what Ignition itself looks at"
        if error.code == _NO_SUCH_PROGRAM:
            return [f"{what} (install {_VALIDATOR}, and ask again)"]
        if error.code == _TIMED_OUT:
            return [f"{what} ({_VALIDATOR} took longer than {_TIMEOUT} s)"]
        if "unsupported config version" in error.output:
            return [f"{what} ({_VALIDATOR} here does not know this specification)"]
        raise Refusal(
            "SX-CHECK-05", f"{_VALIDATOR} refuses the Ignition config: {error.output[:500]}", "correct it"
        ) from None
    for line in filter(None, warnings.splitlines()):
        context.warn(f"{_VALIDATOR}: {line}")
    return []


def is_proof(entry: FileEntry) -> bool:
    """Whether first boot itself gets the file: a host-key document, what proves those, or a recovery key."""
    return any(
        is_one(entry) for is_one in (config.is_host_key, config.is_certificate, config.is_recovery_key)
    )


def is_remote(entry: FileEntry) -> bool:
    """Whether any of its content comes from elsewhere."""
    sources = [resource.source or "" for resource in (entry.contents, *entry.append)]
    return any(source and not source.lower().startswith("data:") for source in sources)
