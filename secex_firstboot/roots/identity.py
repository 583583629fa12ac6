"""What identifies one machine, and has no place in a public image: all its guests would be that machine.

Whoever has the image has its private keys, too. Sources: sshd(8), machine-id(5),
systemd-random-seed.service(8), systemd-creds(1), NetworkManager(8).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import sync
from secex_firstboot.contract.parameters import IDENTITY, value
from secex_firstboot.roots.kinds import Root

# A system that does not find these makes them. (Directory, names in it.)
_MADE_ANEW = (
    (PurePosixPath("/etc/ssh"), "ssh_host_*"),
    (PurePosixPath("/var/lib/systemd"), "random-seed"),
    (PurePosixPath("/var/lib/systemd"), "credential.secret"),
    (PurePosixPath("/var/lib/NetworkManager"), "secret_key"),
)
_MACHINE_IDS = (PurePosixPath("/etc/machine-id"), PurePosixPath("/var/lib/dbus/machine-id"))
_UNINITIALIZED = b"uninitialized"
_FOR_ALL_TO_READ = 0o444  # machine-id(5)

# RFC 7468, and what OpenSSH and OpenPGP make of it.
_PRIVATE_KEY = re.compile(rb"^-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----", re.MULTILINE)
_PRIVATE_KEY_FILES = "*/etc/ssl/private/*.key"  # also if it is DER
_ETC, _USR_ETC = PurePosixPath("/etc"), PurePosixPath("/usr/etc")  # there libostree has what /etc is made of
_FILES_LIMIT = 100_000  # below each
_SIZE_LIMIT = 1 << 20  # bytes; no file with a key is larger

_SHOWN = 3


def check(context: Context, root: Root) -> None:
    """Raise Refusal if the image with this root file system is like one machine."""
    check_private_keys(root)
    found = names(root)
    if found and not value(context.command_line, IDENTITY):
        raise Refusal(
            "SX-ROOT-04",
            f"the image holds what identifies one machine: {found}",
            f"build it without, or with {IDENTITY}",
        )
    if found:
        context.say(f"{IDENTITY}: the image's own are removed: {found}")


def check_private_keys(root: Root) -> None:
    """Raise Refusal for those that no system makes anew."""
    found = list(_made_anew(root))
    keys = [path for path in _private_keys(root) if path not in found]
    if keys:
        raise Refusal(
            "SX-ROOT-03",
            f"the image holds private keys that all its guests would share: {_listed(keys)}",
            "build it without, and give each guest its own in its Ignition config",
        )


def names(root: Root) -> str:
    """Of what the system makes anew, for a message; empty if nothing is there."""
    return _listed(list(_made_anew(root)))


def remove(root: Root) -> None:
    """Remove what the system makes anew. What ``check`` refuses anyway stays."""
    machine_id = _MACHINE_IDS[0]
    found = list(_made_anew(root))
    if machine_id in found or _is_absent(root.place(machine_id)):
        _write_uninitialized(root.place(machine_id))  # so that systemd takes the first start for what it is
    for path in found:
        if path != machine_id:
            root.place(path).unlink()


def _write_uninitialized(path: Path) -> None:
    """At any moment there is the old one or the new one, whole, with the old one's mode."""
    mode = _FOR_ALL_TO_READ if _is_absent(path) else stat.S_IMODE(path.lstat().st_mode)
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    new.write_bytes(_UNINITIALIZED + b"\n")
    new.chmod(mode)
    sync(new)
    new.replace(path)
    sync(path.parent)


def _made_anew(root: Root) -> Iterator[PurePosixPath]:
    """As the system has them."""
    for directory, pattern in _MADE_ANEW:
        entries = sorted(path.name for path in _entries(root.place(directory)))
        yield from (directory / name for name in entries if fnmatch(name, pattern))
    for path in _MACHINE_IDS:
        place = root.place(path)
        if _is_file(place) and place.read_bytes().strip() not in (b"", _UNINITIALIZED):
            yield path


def _private_keys(root: Root) -> Iterator[PurePosixPath]:
    """As the system has them."""
    more = [] if _is_absent(root.place(_USR_ETC)) else [_USR_ETC]
    for top in (_ETC, *more):
        for number, file in enumerate(_files(root.place(top))):
            if number == _FILES_LIMIT:
                raise Refusal(
                    "SX-ROOT-05",
                    f"the image has more than {_FILES_LIMIT} files below {top}",
                    "build it with fewer",
                )
            path = top / file.relative_to(root.place(top))
            named = fnmatch(f"/{path}", _PRIVATE_KEY_FILES)
            if named or (file.lstat().st_size <= _SIZE_LIMIT and _PRIVATE_KEY.search(file.read_bytes())):
                yield path


def _entries(directory: Path) -> list[Path]:
    """None if there is no such directory; any other error is no answer."""
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _files(top: Path) -> Iterator[Path]:
    """The regular files below ``top``; no link is followed."""

    def fail(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(top, onerror=fail):
        folders.sort()
        yield from (path for name in sorted(names) if _is_file(path := Path(folder, name)))


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_absent(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    return False


def _listed(paths: list[PurePosixPath]) -> str:
    shown = [ascii(str(path))[1:-1] for path in paths[:_SHOWN]]
    more = len(paths) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
