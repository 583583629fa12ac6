"""What Ignition could not do, or would not take: found in the config, before anything is destroyed.

Its files stage runs when the disk is encrypted already; what fails there fails for good, since the config is
part of the boot image by then. So all that the config itself shows is refused before. On a workstation, where
there may be no ignition-validate, this also finds much of what that would.

From Ignition 2.14: config/v3_4_experimental/types, config/validate, internal/exec/stages; useradd(8) and
systemd.unit(5) for names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition import go_json, inline, writes
from secex_firstboot.ignition.config import (
    Config,
    DirectoryEntry,
    FileEntry,
    Group,
    Node,
    Resource,
    Storage,
    User,
    shape,
)
from secex_firstboot.ignition.writes import Kind, Write

INLINE_LIMIT = 1 << 30  # bytes, unpacked, of all content that stands in a config

_NAME_MAX = 255  # bytes; Linux, limits.h
_PATH_MAX = 4095 - len("/sysroot")
_TARGET_MAX = 4095
_MODE_MAX = 0o7777
_ID_MAX = 2**32 - 2  # the last stands for none
_SCHEMES = frozenset({"http", "https", "tftp", "s3", "arn", "gs", "data"})
_WITH_HEADERS = frozenset({"http", "https"})
_DIRECTORIES = (Kind.DIRECTORY, Kind.MOUNT)
_MADE = (Kind.FILE, Kind.LINK, *_DIRECTORIES)

_UNIT = re.compile(
    r"(?=.{1,255}\Z)[A-Za-z0-9:_.\\-][A-Za-z0-9:_.\\@-]*"
    r"\.(service|socket|device|mount|automount|swap|target|path|timer|slice|scope)"
)
_DROPIN = re.compile(r"[^/\0\n.][^/\0\n]*\.conf")
# Others device-mapper escapes, so that the name in /dev/mapper is another; "#" starts a comment in crypttab.
_LUKS = re.compile(r"(?!control\Z|\.{1,2}\Z|#)[A-Za-z0-9#+\-.:=@_]{1,127}")
# What every useradd refuses, and a slash, which makes a path of it.
_ACCOUNT = re.compile(r"(?!\.{1,2}\Z)[^-+~:,/\s\x00-\x1f\x7f][^:,/\s\x00-\x1f\x7f]{0,255}")
# What libuuid reads, and the words that mkfs takes for it; of VFAT, the number of the volume.
_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_UUID_WORDS = ("", "clear", "random", "time")
_UUID_OF_VFAT = re.compile(r"[0-9A-Fa-f]{4}-?[0-9A-Fa-f]{4}|")
_WITH_UUID = ("ext2", "ext3", "ext4", "xfs", "btrfs", "swap")
_FIELD = re.compile(r"[^:\x00-\x1f\x7f]*")  # of a line of /etc/passwd

Finding = tuple[str, str, str]
"""Place, what is wrong, cure."""


def check(config: Config) -> None:
    """Raises Refusal with the place of the first entry that Ignition could not take, or could not do."""
    for find in (
        _paths,
        _attributes,
        _names,
        _uuids,
        _accounts,
        _groups,
        _given_twice,
        _contents,
        _collisions,
        _homes,
    ):
        for place, what, cure in find(config):
            raise Refusal("SX-CONFIG-36", f"the Ignition config's {place} {what}", cure)


def _paths(config: Config) -> Iterator[Finding]:
    for place, path in _absolute_paths(config):
        if path != "/" and (path[:1] != "/" or {"", ".", ".."} & set(path[1:].split("/"))):
            yield (
                place,
                "is not an absolute path in its simplest form",
                "write it from / on, without . and ..",
            )
        yield from _too_long(place, path)
    for index, user in enumerate(config.passwd.users):
        yield from _too_long(f"passwd.users[{index}].homeDir", user.home_dir or "")
    for index, link in enumerate(config.storage.links):
        if not link.target or "\0" in link.target or len(link.target.encode()) > _TARGET_MAX:
            yield f"storage.links[{index}].target", "is no path", "give the path that the link leads to"


def _too_long(place: str, path: str) -> Iterator[Finding]:
    if "\0" in path or any(len(name.encode()) > _NAME_MAX for name in path.split("/")):
        yield place, f"has a NUL, or a name longer than {_NAME_MAX} bytes", "use another path"
    if len(path.encode()) > _PATH_MAX:
        yield place, f"is longer than {_PATH_MAX} bytes", "use a shorter path"


def _absolute_paths(config: Config) -> Iterator[tuple[str, str]]:
    storage = config.storage
    for place, node in _nodes(storage):
        yield f"{place}.path", node.path
    yield from writes.devices(config)
    for index, filesystem in enumerate(storage.filesystems):
        if filesystem.path:
            yield f"storage.filesystems[{index}].path", filesystem.path


def _nodes(storage: Storage) -> Iterator[tuple[str, Node]]:
    kinds: dict[str, Sequence[Node]] = {
        "directories": storage.directories,
        "files": storage.files,
        "links": storage.links,
    }
    for kind, nodes in kinds.items():
        for index, node in enumerate(nodes):
            yield f"storage.{kind}[{index}]", node


def _attributes(config: Config) -> Iterator[Finding]:
    for place, node in _nodes(config.storage):
        if isinstance(node, DirectoryEntry | FileEntry) and not 0 <= (node.mode or 0) <= _MODE_MAX:
            yield f"{place}.mode", "is no mode", "use 0 to 4095 (octal 07777), in decimal"
        for field, owner in (("user", node.user), ("group", node.group)):
            if owner.id is not None and owner.name:
                yield f"{place}.{field}", "has both id and name", "give one of them"
            if owner.id is not None and not -1 <= owner.id <= _ID_MAX:
                yield f"{place}.{field}.id", "is no number of an account", f"use 0 to {_ID_MAX}"
        if isinstance(node, FileEntry) and node.overwrite and node.contents.source is None:
            yield f"{place}.overwrite", "is true without contents.source", "give the contents"


def _names(config: Config) -> Iterator[Finding]:
    for index, unit in enumerate(config.systemd.units):
        place = f"systemd.units[{index}]"
        if not _UNIT.fullmatch(unit.name):
            yield f"{place}.name", "is no name of a unit", "see systemd.unit(5) for names"
        for number, dropin in enumerate(unit.dropins):
            if not _DROPIN.fullmatch(dropin.name) or len(dropin.name.encode()) > _NAME_MAX:
                yield f"{place}.dropins[{number}].name", "is no name of a drop-in", "write it as NAME.conf"
        if len(unit.name) + len(".d") > _NAME_MAX and unit.dropins:
            yield f"{place}.name", "is too long for drop-ins", "use a shorter name"
    for index, luks in enumerate(config.storage.luks):
        if not _LUKS.fullmatch(luks.name):
            cure = "use letters, digits and #+-.:=@_, at most 127"
            yield f"storage.luks[{index}].name", "is no name of a volume", cure


def _accounts(config: Config) -> Iterator[Finding]:
    for index, user in enumerate(config.passwd.users):
        yield from _account(f"passwd.users[{index}]", user, user.uid, "uid")
        for name in ("gecos", "home_dir", "shell", "password_hash"):
            value = getattr(user, name) or ""
            if not _FIELD.fullmatch(value) or (name in ("home_dir", "shell") and value[:1] not in ("", "/")):
                field = User.model_fields[name].alias
                cure = "see passwd(5): no colon, no line end; a path is absolute"
                yield f"passwd.users[{index}].{field}", "cannot stand in /etc/passwd", cure
        for group in [*user.groups, user.primary_group or "-"]:
            if group != "-" and not _ACCOUNT.fullmatch(group):
                yield f"passwd.users[{index}]", "has a group whose name is none", "see groupadd(8) for names"
    for index, each in enumerate(config.passwd.groups):
        yield from _account(f"passwd.groups[{index}]", each, each.gid, "gid")
        if not _FIELD.fullmatch(each.password_hash or ""):
            yield f"passwd.groups[{index}].passwordHash", "cannot stand in /etc/group", "see gshadow(5)"


def _account(place: str, account: User | Group, number: int | None, field: str) -> Iterator[Finding]:
    if not _ACCOUNT.fullmatch(account.name):
        yield f"{place}.name", "is no name of an account", "see useradd(8) for names"
    if number is not None and not 0 <= number <= _ID_MAX:
        yield f"{place}.{field}", "is no number of an account", f"use 0 to {_ID_MAX}"


def _uuids(config: Config) -> Iterator[Finding]:
    for index, luks in enumerate(config.storage.luks):
        if luks.uuid and not _UUID.fullmatch(luks.uuid):
            yield f"storage.luks[{index}].uuid", "is no UUID", "make one with uuidgen(1)"
    for index, filesystem in enumerate(config.storage.filesystems):
        place, given = f"storage.filesystems[{index}].uuid", filesystem.uuid or ""
        if filesystem.format == "vfat" and not _UUID_OF_VFAT.fullmatch(given):
            yield place, "is no number of a VFAT volume", "use eight hexadecimal digits"
        if filesystem.format in _WITH_UUID and given not in _UUID_WORDS and not _UUID.fullmatch(given):
            yield place, "is no UUID", "make one with uuidgen(1)"


def _groups(config: Config) -> Iterator[Finding]:
    """What useradd(8) and groupadd(8) refuse: a number that is taken, a group that useradd itself makes."""
    users = [each for each in enumerate(config.passwd.users) if each[1].should_exist is not False]
    groups = [each for each in enumerate(config.passwd.groups) if each[1].should_exist is not False]
    yield from _taken((f"passwd.users[{index}].uid", user.uid) for index, user in users)
    yield from _taken((f"passwd.groups[{index}].gid", group.gid) for index, group in groups)
    names = {group.name for _, group in groups}
    for index, user in users:
        if user.name in names and not (user.primary_group or user.no_user_group):
            cure = "set the user's primaryGroup to it, or remove the group: useradd makes one"
            yield f"passwd.users[{index}]", "has the name of a group of the config", cure


def _taken(numbers: Iterable[tuple[str, int | None]]) -> Iterator[Finding]:
    seen: set[int] = set()
    for place, number in numbers:
        if number in seen:
            yield place, "is another's, too", "use another number"
        if number is not None:
            seen.add(number)


def _homes(config: Config) -> Iterator[Finding]:
    """Homes are made by useradd, before files and links, which then find a directory in their place."""
    nodes = [(place, node) for place, node in _nodes(config.storage) if not isinstance(node, DirectoryEntry)]
    taken = {PurePosixPath(node.path): place for place, node in nodes if not node.overwrite}
    links = {PurePosixPath(link.path) for link in config.storage.links}
    for index, user in enumerate(config.passwd.users):
        if user.name == "root" or user.should_exist is False or user.no_create_home:
            continue
        home = PurePosixPath(user.home_dir or f"{writes.HOMES}/{user.name}")
        if home in taken:
            yield f"{taken[home]}.path", "is the home of a user of the config", "use another path"
        if user.home_dir and not links.isdisjoint(home.parents):
            yield f"passwd.users[{index}].homeDir", *_THROUGH_A_LINK


def _given_twice(config: Config) -> Iterator[Finding]:
    fields = config.model_dump(by_alias=True, exclude_defaults=True)
    yield from _twice(fields, shape(Config), "")


def _twice(value: Mapping[str, Any], kind: go_json.Shape, place: str) -> Iterator[Finding]:
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for name, field in kind.fields.items():
        if name not in value:
            continue
        where = f"{place}.{name}".lstrip(".")
        if field.many:
            for index, item in enumerate(value[name]):
                key = field.shape.key(item) if field.shape else str(item)
                keys = seen["shared" if name in kind.shared else name]
                if key in keys and name not in kind.appended:
                    yield f"{where}[{index}]", "is in the config twice", "remove one of the two"
                keys.add(key)
                if field.shape:
                    yield from _twice(item, field.shape, f"{where}[{index}]")
        elif field.shape:
            yield from _twice(value[name], field.shape, where)


def _contents(config: Config) -> Iterator[Finding]:
    left = INLINE_LIMIT
    for place, resource, needed in _resources(config):
        try:
            _check_source(resource, needed)
            if inline.is_inline(resource):
                left -= inline.verify(resource, left)
        except inline.ContentError as error:
            yield place, str(error), "correct it; butane makes sources, hashes and compression from files"


def _check_source(resource: Resource, needed: bool) -> None:
    if not resource.source:
        if needed:
            raise inline.ContentError("has no source")
        if resource.source is None and resource.verification.hash is not None:
            raise inline.ContentError("has a hash and no source")
        if resource.http_headers:
            raise inline.ContentError("has HTTP headers and no source")
    else:
        scheme = _scheme(resource.source)
        if scheme not in _SCHEMES or (scheme == "data" and not inline.is_inline(resource)):
            raise inline.ContentError("has a source that is no URL of a kind that Ignition fetches")
        if resource.http_headers and scheme not in _WITH_HEADERS:
            raise inline.ContentError("has HTTP headers and is not fetched over HTTP")
    if resource.compression not in (None, "", "gzip"):
        raise inline.ContentError("has a compression that is not gzip")
    inline.digest(resource)


def _scheme(source: str) -> str:
    try:
        return urlsplit(source[:_PATH_MAX]).scheme
    except ValueError:
        return ""


def _resources(config: Config) -> Iterator[tuple[str, Resource, bool]]:
    """Place, resource, and whether it must have a source."""
    ignition, storage = config.ignition, config.storage
    for index, resource in enumerate(ignition.config.merge):
        yield f"ignition.config.merge[{index}]", resource, True
    yield "ignition.config.replace", ignition.config.replace, False
    for index, resource in enumerate(ignition.security.tls.certificate_authorities):
        yield f"ignition.security.tls.certificateAuthorities[{index}]", resource, True
    for index, luks in enumerate(storage.luks):
        yield f"storage.luks[{index}].keyFile", luks.key_file, False
    for index, file in enumerate(storage.files):
        yield f"storage.files[{index}].contents", file.contents, False
        for number, resource in enumerate(file.append):
            yield f"storage.files[{index}].append[{number}]", resource, True


_IN_THE_WAY = "cannot be made, since another entry makes something else there", "use another path"
_BELOW_NONE = "lies below what another entry makes, and that is no directory", "use another path"
_THROUGH_A_LINK = "leads through a link", "use the path that it leads to"
_IGNITIONS = "is where Ignition itself writes its report", "use another path"
_NO_HARD_LINK = "is no file on the same file system", "link files to files of one file system"


def _collisions(config: Config) -> Iterator[Finding]:
    """What two entries do to one place, in the order in which Ignition comes to them."""
    resolve = writes.resolver(config)
    made: dict[PurePosixPath, Write] = {}
    found = [(write, resolve(write.path)) for write in writes.of(config) if write.kind in _MADE]
    for write, path in found:
        if path.is_relative_to(writes.RESULT):
            yield write.place, *_IGNITIONS
        if path in made and not _both_can_be(made[path], write):
            yield write.place, *_IN_THE_WAY
        made[path] = write
    for write, path in found:
        if any(made[parent].kind not in _DIRECTORIES for parent in path.parents if parent in made):
            yield write.place, *_BELOW_NONE
    yield from _through_links(config, found)
    yield from _hard_links(config, resolve, made)


def _both_can_be(first: Write, second: Write) -> bool:
    if _is_node(first) and _is_node(second):
        return False
    if second.kind in _DIRECTORIES:
        return first.kind in _DIRECTORIES
    # Units and drop-ins take the place of files and links.
    return first.kind not in _DIRECTORIES or (second.replaces and first.kind is not Kind.MOUNT)


def _is_node(write: Write) -> bool:
    return write.place.startswith(("storage.files[", "storage.directories[", "storage.links["))


def _through_links(config: Config, found: Iterable[tuple[Write, PurePosixPath]]) -> Iterator[Finding]:
    """Ignition makes no file behind a link of the same config, and mounts nothing behind any."""
    links = {PurePosixPath(link.path) for link in config.storage.links}
    for write, path in found:
        if _is_node(write) and not links.isdisjoint(PurePosixPath(write.path).parents):
            yield write.place, *_THROUGH_A_LINK
        if write.kind is Kind.MOUNT and path != PurePosixPath(write.path):
            yield write.place, *_THROUGH_A_LINK


def _hard_links(
    config: Config, resolve: writes.Resolver, made: Mapping[PurePosixPath, Write]
) -> Iterator[Finding]:
    def file_system(path: PurePosixPath) -> list[PurePosixPath]:
        return [parent for parent in path.parents if parent in made and made[parent].kind is Kind.MOUNT][:1]

    for index, link in enumerate(config.storage.links):
        if link.hard:
            path, target = resolve(link.path), resolve(link.target)
            is_directory = target in made and made[target].kind in _DIRECTORIES
            below_a_file = any(
                parent in made and made[parent].kind not in _DIRECTORIES for parent in target.parents
            )
            if is_directory or below_a_file or file_system(path) != file_system(target):
                yield f"storage.links[{index}].target", *_NO_HARD_LINK
