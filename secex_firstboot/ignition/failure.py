"""Why a stage of Ignition failed, in words that hold no byte of the config.

Ignition's log quotes the config, so nothing of it is ever printed. Its messages are only compared: with the
phrases it is known to use, which tell the kind of failure, and with the names in the merged config, which
tell the entry. What comes out are words of this file, field names of the specification, and numbers.

Ignition 2.14 to 2.26: internal/log for the shape of a message, internal/exec for what is said where,
config/shared/errors/errors.go for what a config is rejected for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import pairwise
from typing import Any

STAGES = ("fetch-offline", "fetch", "kargs", "disks", "mount", "files")

_SYSROOT = "/sysroot"  # what the units call Ignition with
_ALIASES = "/run/ignition/dev_aliases"  # internal/exec/util/device_alias.go
_FETCHED = "fetched referenced config "
_STAGE = "Stage: "
_ENDED = "Ignition failed: "

# internal/log/stdout.go; no line of the config that it prints looks like this, being JSON.
_PRIORITIES = {
    "EMERGENCY": 0,
    "ALERT": 1,
    "CRITICAL": 2,
    "ERROR": 3,
    "WARNING": 4,
    "NOTICE": 5,
    "INFO": 6,
    "DEBUG": 7,
}
_ON_STDOUT = re.compile(rf"({'|'.join(_PRIORITIES)}) *: (.*)", re.DOTALL)


class Blame(Enum):
    """What has to change before another start can end better."""

    CONFIG = auto()
    AROUND = auto()  # network, server, disk, memory
    EITHER = auto()


@dataclass(frozen=True)
class Message:
    """One of Ignition's; ``priority`` is that of syslog(3)."""

    priority: int
    text: str

    @classmethod
    def on_stdout(cls, line: str) -> Message | None:
        """As Ignition prints it with --log-to-stdout, and then nowhere else; None for what else it prints."""
        found = _ON_STDOUT.fullmatch(line)
        return cls(_PRIORITIES[found[1]], found[2]) if found else None


@dataclass(frozen=True)
class Failure:
    """``place`` is the entry's in the config, in the way of storage.files[3]; empty if it cannot be told."""

    stage: str
    place: str
    what: str
    blame: Blame

    def __str__(self) -> str:
        return ": ".join(part for part in (f"Ignition's {self.stage} stage", self.place, self.what) if part)


@dataclass(frozen=True)
class _Kind:
    phrases: tuple[str, ...]
    what: str
    blame: Blame | None = None
    """None: the config's if the content is in the config, otherwise the server's as well."""

    def is_said_in(self, text: str) -> bool:
        return any(phrase in text for phrase in self.phrases)


_HASH = _Kind(("hash verification failed",), "its content does not have the hash that the config gives")
_OF_CONTENT = (
    _HASH,
    _Kind(
        ("gzip: invalid", "flate: corrupt", "unexpected EOF"), "its content is not the gzip that it should be"
    ),
    _Kind(("resource not found",), "the server does not have it", Blame.EITHER),
    _Kind(
        ("unable to fetch resource in time", "failed to fetch resource", "requires networking"),
        "it could not be fetched (check the guest's network and the server)",
        Blame.AROUND,
    ),
    _Kind(
        ("unsupported source scheme",), "its URL has a scheme that Ignition does not support", Blame.CONFIG
    ),
)
# The first whose phrase is there counts.
_KINDS = (
    *_OF_CONTENT,
    _Kind(
        ("unsupported config version", "config format deprecated"),
        "the specification is not one that this Ignition knows",
        Blame.CONFIG,
    ),
    _Kind(
        ("not a config", "config is not valid"),
        "Ignition does not take that (secex check and ignition-validate say more)",
        Blame.CONFIG,
    ),
    _Kind(("no space left on device",), "no space is left on the device", Blame.EITHER),
    _Kind(("input/output error",), "the disk fails, or was changed from outside", Blame.AROUND),
    _Kind(("cannot allocate memory", "signal: killed"), "the guest has too little memory", Blame.AROUND),
    _Kind(("device unit ",), "its device did not appear", Blame.EITHER),
    _Kind(
        ("is not of the correct type", "didn't match: "),
        "something else is on its device, and the config does not say to wipe it",
        Blame.EITHER,
    ),
    _Kind(
        ("overwrite is false",),
        "something else is there, and the config does not say overwrite",
        Blame.CONFIG,
    ),
    _Kind(("also resolves there",), "another entry leads to the same path, through a link", Blame.CONFIG),
    _Kind(("no such user ",), "its user does not exist", Blame.CONFIG),
    _Kind(("no such group ",), "its group does not exist", Blame.CONFIG),
    _Kind(
        ("not a directory", "contains non-directory component"),
        "what it is to lie in is no directory",
        Blame.CONFIG,
    ),
    _Kind(("file name too long",), "its name is too long", Blame.CONFIG),
    _Kind(("invalid cross-device link",), "its target is on another file system", Blame.CONFIG),
    _Kind(("no such file or directory",), "what it names does not exist", Blame.EITHER),
    _Kind(("invalid argument",), "the kernel does not take its name", Blame.CONFIG),
)
_UNKNOWN = "it failed for a reason that cannot be told without quoting the config"

# What Ignition calls (internal/distro/distro.go), and only these.
_TOOL = re.compile(
    r'(?:exit status (?P<status>\d{1,3})|executable file not found in \$PATH): Cmd: "(?:[\w./-]*/)?'
    r"(?P<name>useradd|usermod|userdel|groupadd|groupmod|groupdel|mount|umount|mdadm|sgdisk|cryptsetup|clevis"
    r'|wipefs|udevadm|setfiles|ignition-kargs-helper|mkswap|mkfs\.(?:btrfs|ext4|fat|vfat|xfs))"'
)
_OF_ACCOUNTS = ("user", "group")

# A validator's verdict: vcontext's report.Entry, after "error".
_REJECTED = re.compile(
    r"error at (?:\$(?P<place>(?:\.\w+)+), )?line \d+ col \d+: (?P<reason>.*)"
    r"|error at \$(?P<merged_place>(?:\.\w+)+): (?P<merged_reason>.*)",
    re.DOTALL,
)
_WORDS = """
    append certificateAuthorities cex clevis compression config contents custom device devices directories
    disks dropins enabled filesystems files format gecos gid group groups guid hard hash homeDir http
    httpHeaders httpProxy httpResponseHeaders httpTotal https httpsProxy id ignition kernelArguments keyFile
    label level links luks mask merge mode mountOptions name needsNetwork noCreateHome noLogInit noProxy
    noUserGroup number openOptions options overwrite partitions passwd passwordHash path pin primaryGroup
    proxy raid replace resize security shell shouldExist shouldNotExist sizeMiB source spares
    sshAuthorizedKeys startMiB storage system systemd tang target threshold thumbprint timeouts tls tpm2
    typeGuid uid units url user users uuid value verification version wipeFilesystem wipePartitionEntry
    wipeTable wipeVolume advertisement discard
"""
_FIELDS = frozenset(_WORDS.split())
# config/shared/errors/errors.go, those with no word of the config in them.
_REASONS = frozenset(
    line.strip()
    for line in """
    duplicate entry defined
    invalid compression method
    file path includes link in config
    directory path includes link in config
    link path includes link in config
    link target is required
    hard link target is a directory
    disk device is required
    partition numbers collide
    partitions overlap
    partitions misaligned
    overwrite must be false if source is unspecified
    source must be specified if verification is specified
    invalid filesystem format
    filesystem must specify format if label is specified
    format cannot be empty when path, label, uuid, wipeFilesystem, options, or mountOptions is specified
    filesystem labels cannot be longer than 16 characters when using ext4
    filesystem labels cannot be longer than 256 characters when using btrfs
    filesystem labels cannot be longer than 12 characters when using xfs
    filesystem labels cannot be longer than 15 characters when using swap
    filesystem labels cannot be longer than 11 characters when using vfat
    luks device labels cannot be longer than 47 characters
    device names cannot contain slashes
    invalid key-file source
    missing required custom clevis pin
    unsupported clevis pin
    missing required custom clevis config
    cannot use custom clevis config with tpm2, tang, or threshold
    thumbprint is required
    illegal file mode
    setuid/setgid/sticky bits are not supported in spec versions older than 3.4.0
    cannot set both id and name
    partition labels may not exceed 36 characters
    doesn't match the form "01234567-89AB-CDEF-EDCB-A98765432101"
    path not specified
    path not absolute
    path is not fully simplified
    raid level is required
    spares unsupported for linear and raid0 arrays
    unrecognized raid level
    raid devices required
    shouldExist specified false with other options also specified
    shouldExist is false for a partition and other partition(s) has start or size 0
    a partition number >= 1 or a label must be specified
    cannot use the same partition label twice
    proxies must be http(s)
    invalid systemd unit extension
    invalid systemd drop-in extension
    no systemd unit extension
    invalid systemd instantiated unit
    source is required
    invalid url scheme
    unable to parse url
    unable to parse HTTP header
    HTTP header name can't be empty
    cannot use HTTP headers with this source scheme
    malformed hash specifier
    incorrect size for hash sum
    unrecognized hash function
    invalid S3 ARN format
    invalid S3 object VersionId
    """.splitlines()
    if line.strip()
)


def explain(log: Sequence[Message], merged: Any, user: Any = None) -> Failure | None:
    """What the last run of Ignition in ``log`` failed of; None if it did not fail, or does not say of what.

    ``merged`` is the config as Ignition's fetch stage left it, ``user`` the one before; {} if there is none.
    """
    stage, run = _last_run(log)
    if not any(message.text.startswith(_ENDED) for message in run):
        return None
    if stage.startswith("fetch"):
        return _fetching(stage, run, user)
    # Latest first: the end of all, then what was wrong around it, from the outside to the inside.
    trouble = [message.text for message in reversed(run) if message.priority <= 3]
    section, entries = _section(stage, trouble[0], merged)
    place, entry = _find(entries, trouble)
    what, blame = _kind("\n".join(trouble), inline=_is_inline(entry))
    return Failure(stage, place or section, what, blame)


def _last_run(log: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """The last stage and what it said; unmounting what the mount stage has mounted is none."""
    starts = [at for at, message in enumerate(log) if message.text.startswith(_STAGE)]
    for start, end in reversed([*pairwise([*starts, len(log)])]):
        if (stage := log[start].text.removeprefix(_STAGE)) in STAGES:
            return stage, log[start:end]
    return "", ()


def _fetching(stage: str, run: Sequence[Message], user: Any) -> Failure:
    texts = [message.text for message in run]
    fetched = sum(text.startswith(_FETCHED) for text in texts)
    ended = next(text for text in reversed(texts) if text.startswith(_ENDED))
    if "merging configs resulted in an invalid config" in texts:
        fetched = 0  # what is wrong is the whole
    rejected = next(filter(None, map(_REJECTED.fullmatch, texts)), None)
    if rejected:
        where = _reference(fetched, user)
        place = _place(rejected["place"] or rejected["merged_place"] or "")
        reason = rejected["reason"] or rejected["merged_reason"] or ""
        what, _ = _kind(ended)
        if not place:
            what = "it is no JSON, or not of the specification's types"
        elif reason in _REASONS:
            what = reason
        return Failure(stage, ": ".join(filter(None, (where, place))), what, Blame.CONFIG)
    if any("handling CAs" in text or "CA (" in text or "invalid CA" in text for text in texts):
        what = "a certificate authority cannot be fetched, or is none"
        return Failure(stage, "ignition.security.tls.certificateAuthorities", what, Blame.EITHER)
    what, blame = _kind(ended)
    if any(kind.is_said_in(ended) for kind in _OF_CONTENT) and not _HASH.is_said_in(ended):
        fetched += 1  # the one that it says nothing of
    return Failure(stage, _reference(fetched, user), what, blame)


def _reference(number: int, user: Any) -> str:
    """The config that is fetched as the ``number``-th; nothing for 0, which is the user's own."""
    if number < 2:
        replaces = isinstance(user, dict) and "replace" in _get(_get(user, "ignition"), "config")
        return f"ignition.config.{'replace' if replaces else 'merge[0]'}" if number else ""
    return f"reference {number} of ignition.config, in the order they are fetched"


def _place(path: str) -> str:
    """``.storage.files.0.path`` in the way that people write it; nothing if a word is not a field's."""
    words = path.split(".")[1:]
    if not all(word in _FIELDS or word.isdecimal() for word in words):
        return ""
    return "".join(f"[{word}]" if word.isdecimal() else f".{word}" for word in words).lstrip(".")


@dataclass(frozen=True)
class _Entry:
    """``names``: how Ignition's messages may call it."""

    place: str
    names: tuple[str, ...]
    content: Any


def _section(stage: str, ended: str, merged: Any) -> tuple[str, list[_Entry]]:
    """The part of the config that Ignition was busy with, and its entries."""
    if stage == "kargs":
        return "kernelArguments", []
    storage, passwd = _get(merged, "storage"), _get(merged, "passwd")
    if stage == "mount":
        return "storage.filesystems", list(_entries("storage.filesystems", storage, _mount_point))
    sections = {
        "create partitions failed": [("storage.disks", storage, _device)],
        "failed to create raids": [("storage.raid", storage, _raid)],
        "failed to create luks": [("storage.luks", storage, _device)],
        "creating crypttab entries": [("storage.luks", storage, _device)],
        "failed to create filesystems": [("storage.filesystems", storage, _device)],
        "failed to create users/groups: failed to configure groups": [("passwd.groups", passwd, _named)],
        "failed to create users/groups": [("passwd.users", passwd, _named)],
        "failed to create files": [
            (f"storage.{kind}", storage, _node) for kind in ("files", "directories", "links")
        ],
        "failed to create units": [("systemd.units", _get(merged, "systemd"), _named)],
    }
    for phrase, parts in sections.items():
        if ended.startswith(_ENDED + phrase):
            entries = [entry for part in parts for entry in _entries(*part)]
            return parts[0][0] if len(parts) == 1 else "storage", entries
    return "", []


def _get(value: Any, name: str) -> dict[str, Any]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _entries(place: str, parent: dict[str, Any], names: Any) -> Iterator[_Entry]:
    for index, entry in enumerate(parent.get(place.rpartition(".")[2]) or []):
        yield _Entry(f"{place}[{index}]", tuple(filter(None, names(entry))), entry)


def _named(entry: Any) -> Sequence[str]:
    return (_quoted(entry["name"]),)


def _node(entry: Any) -> Sequence[str]:
    path = entry["path"]
    return _SYSROOT + path, path, _quoted(_SYSROOT + path)[1:-1]


def _mount_point(entry: Any) -> Sequence[str]:
    path = entry.get("path") or ""
    return path and (_SYSROOT + path, _quoted(_SYSROOT + path)[1:-1])


def _raid(entry: Any) -> Sequence[str]:
    return (_quoted(entry["name"]), *(name for device in entry["devices"] for name in _device_names(device)))


def _device(entry: Any) -> Sequence[str]:
    return _device_names(entry["device"])


def _device_names(device: str) -> Sequence[str]:
    """As it is, as Ignition's link to it, and as systemd's unit (systemd.unit(5), string escaping)."""
    escaped = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in ":_.") else f"\\x{ord(letter):02x}"
        for letter in device.strip("/").replace("/", "\0")
    ).replace("\\x00", "-")
    return device, _ALIASES + device, f"{escaped}.device"


def _quoted(name: str) -> str:
    """As Go's %q writes what is printable."""
    return json.dumps(name, ensure_ascii=False)


def _find(entries: Sequence[_Entry], trouble: Sequence[str]) -> tuple[str, Any]:
    """The entry that is named first, by its longest name, in the first message that names one."""
    for text in trouble:
        found = [
            (at, -len(name), entry)
            for entry in entries
            for name in entry.names
            if (at := _position(text, name)) is not None
        ]
        if found:
            entry = min(found, key=lambda each: each[:2])[2]
            return entry.place, entry.content
    return _find_behind_a_link(entries, trouble)


def _find_behind_a_link(entries: Sequence[_Entry], trouble: Sequence[str]) -> tuple[str, Any]:
    """Ignition names a path as it is once links are followed, which keeps its last element."""
    for text in trouble:
        if resolved := re.search(re.escape(_SYSROOT) + r"/[^\s:\"]*", text):
            last = resolved[0].rpartition("/")[2]
            found = [each for each in entries if str(_path(each.content)).rpartition("/")[2] == last and last]
            if len(found) == 1:
                return found[0].place, found[0].content
    return "", None


def _path(content: Any) -> str:
    return content.get("path") or "" if isinstance(content, dict) else ""


def _position(text: str, name: str) -> int | None:
    """Where ``name`` stands by itself, not as a part of another path."""
    at = text.find(name)
    while at >= 0:
        around = text[at - 1 : at] + text[at + len(name) : at + len(name) + 1]
        if not any(letter.isalnum() or letter in "/_-.@\\" for letter in around):
            return at
        at = text.find(name, at + 1)
    return None


def _kind(text: str, *, inline: bool = False) -> tuple[str, Blame]:
    for kind in _KINDS:
        if kind.is_said_in(text):
            return kind.what, kind.blame or (Blame.CONFIG if inline else Blame.EITHER)
    if tool := _TOOL.search(text):
        if not tool["status"]:
            return f"the image has no {tool['name']}", Blame.EITHER
        blame = Blame.CONFIG if tool["name"].startswith(_OF_ACCOUNTS) else Blame.EITHER
        return f"{tool['name']} refuses it (exit status {int(tool['status'])})", blame
    return _UNKNOWN, Blame.EITHER


def _is_inline(entry: Any) -> bool:
    """Whether all content that it names is in the config itself."""
    if isinstance(entry, dict):
        source = entry.get("source")
        return (not isinstance(source, str) or source[:5].lower() == "data:") and all(
            map(_is_inline, entry.values())
        )
    return all(map(_is_inline, entry)) if isinstance(entry, list) else True
