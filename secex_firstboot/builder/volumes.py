"""File systems of an image, made of a directory, and their hash trees: the same input makes the same bytes.

Everything is a plain file, so that neither root nor a device is needed; but for xfs, whose mkfs takes no
directory before xfsprogs 6.17: that one is mounted, by root.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import is_directory, open_private, size_of
from secex_firstboot.basic.process import ToolError, run, run_bounded
from secex_firstboot.builder.programs import Counter, run_counted
from secex_firstboot.storage import verity_superblock
from secex_firstboot.storage.verity_superblock import BLOCK_SIZE, Superblock

BLOCK = 4096  # bytes
# Linux: fs/ext4/ext4.h, struct ext4_dir_entry_2, with its padding; xattr.h, struct ext4_xattr_entry, and what
# an inode of 256 bytes has room for.
_DIRECTORY_ENTRY, _ATTRIBUTE, _ATTRIBUTES_IN_AN_INODE = 12, 20, 80
_ROOT_INODE, _FIRST_INODE = 2, 11
# A row of debugfs(8), dump_extents: level, entry, logical and physical blocks, first and last; length, flags.
_EXTENT = re.compile(
    r"^ *\d+/ *\d+ +\d+/ *\d+ +(?P<logical>\d+) - +\d+ +(?P<first>\d+) - +(?P<last>\d+) +\d+", re.M
)
_ENTRY = re.compile(r"^/\d+/\d+/\d+/\d+/([^/\n]+)/\d*/$", re.M)  # of debugfs(8), ls -p: a name
_SAID_LIMIT = 1 << 20  # bytes; of a file in many pieces each is said
_NOT_PROVEN = (1, 2)  # veritysetup(8), RETURN CODES: wrong parameters, no permission


@dataclass(frozen=True)
class Same:
    """What makes a build the same again: a time, and whatever would be drawn at random.

    ``epoch``: seconds since 1970, that of SOURCE_DATE_EPOCH
    (https://reproducible-builds.org/specs/source-date-epoch/) or of the build.
    """

    epoch: int
    fixed: bool

    @classmethod
    def of(cls, environment: dict[str, str], now: float) -> Same:
        given = environment.get("SOURCE_DATE_EPOCH", "")
        if not given:
            return cls(int(now), fixed=False)
        if not given.isascii() or not given.isdigit() or len(given) > 10:
            raise Refusal(
                "SX-BUILD-07", "SOURCE_DATE_EPOCH is no number of seconds", "unset it, or correct it"
            )
        return cls(int(given), fixed=True)

    def uuid(self, what: str) -> str:
        """Random, or always the same for this time."""
        if not self.fixed:
            return str(uuid.uuid4())
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"secex-firstboot {what} {self.epoch}"))

    def salt(self, what: str) -> str:
        """32 bytes, in hexadecimal digits."""
        return hashlib.sha256(self.uuid(f"salt of {what}").encode()).hexdigest()

    @property
    def environment(self) -> dict[str, str]:
        """For e2fsprogs, which before 1.47.1 has a name of its own for it, and for xfsprogs."""
        time = str(self.epoch)
        return {"SOURCE_DATE_EPOCH": time, "E2FSPROGS_FAKE_TIME": time, "DETERMINISTIC_SEED": "1"}


def settle_times(tree: Path, same: Same) -> None:
    """What was changed later than at that time, was changed then."""
    limit = same.epoch * 10**9
    for folder, folders, names in os.walk(tree):
        for name in (".", *folders, *names):
            path = Path(folder, name)
            if path.lstat().st_mtime_ns > limit:
                os.utime(path, ns=(limit, limit), follow_symlinks=False)


@dataclass(frozen=True)
class Content:
    """Of a directory: the bytes that it takes in a file system with blocks of 4096 bytes, and how many
    ``files`` there are.
    """

    size: int
    files: int

    @classmethod
    def of(cls, tree: Path) -> Self:
        size = number = 0
        seen = set()
        for folder, folders, names in os.walk(tree):
            links = [name for name in folders if not is_directory(Path(folder, name), follow_symlinks=False)]
            for name in (".", *links, *names):
                path = Path(folder, name)
                status = path.lstat()
                if name != "." and status.st_nlink > 1:
                    if (status.st_dev, status.st_ino) in seen:
                        continue
                    seen.add((status.st_dev, status.st_ino))
                if name == ".":  # its size here says nothing
                    bytes_ = sum(_DIRECTORY_ENTRY + len(os.fsencode(each)) for each in (*folders, *names))
                else:
                    sparse = stat.S_ISREG(status.st_mode) and status.st_blocks * 512 < status.st_size
                    bytes_ = _data_size(path) if sparse else status.st_size
                blocks = -(-bytes_ // BLOCK) + (_size_of_attributes(path) > _ATTRIBUTES_IN_AN_INODE)
                size += blocks * BLOCK
                number += 1
        return cls(size, number)


def _data_size(path: Path) -> int:
    """Bytes of a file without its holes: lseek(2)."""
    size = at = 0
    with path.open("rb", buffering=0) as stream:
        while True:
            try:
                at = os.lseek(stream.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole is left
                return size
            end = os.lseek(stream.fileno(), at, os.SEEK_HOLE)
            size, at = size + end - at, end


def _size_of_attributes(path: Path) -> int:
    names = os.listxattr(path, follow_symlinks=False)
    return sum(_ATTRIBUTE + len(name) + len(os.getxattr(path, name, follow_symlinks=False)) for name in names)


def file_system_size(type: str, content: Content, free: int) -> int:
    """Bytes of a file system with this content, and about so many ``free`` bytes."""
    log, least = 64 << 20, 300 << 20
    if type != "xfs":
        log, least = min(64 << 20, max(4 << 20, content.size // 32)), 16 << 20
    return max(least, int((content.size + content.files * 512) * 1.03) + log + free)


def make_ext4(
    context: Context,
    image: Path,
    tree: Path,
    content: Content,
    *,
    label: str,
    size: int,
    same: Same,
    block_size: int = BLOCK,
) -> None:
    """Write the directory ``tree`` as an ext4 file system of ``size`` bytes into the file ``image``."""
    with open_private(image) as stream:
        stream.truncate(size)
    blocks = size // block_size
    inodes = max(blocks * block_size >> 14, content.files * 5 // 4 + 1024)
    options = (
        f"hash_seed={same.uuid(f'hash seed of {label}')},lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    )
    run_counted(
        context,
        f"make the file system of {label}",
        [
            *("mkfs.ext4", "-q", "-F", "-b", str(block_size), "-L", label, "-N", str(inodes)),
            *("-U", same.uuid(f"file system {label}"), "-E", options, "-d", tree, image, str(blocks)),
        ],
        content.size,
        environment=same.environment,
    )
    _set_times(image, same)


def _set_times(image: Path, same: Same) -> None:
    """mke2fs takes times of access and change from the directory, where they are those of the build."""
    counts: dict[str, str] = dict(
        re.findall(r"^(Inode count|Free inodes):\s+(\d+)$", run(["dumpe2fs", "-h", image]), re.M)
    )
    used = int(counts["Inode count"]) - int(counts["Free inodes"])
    inodes = [_ROOT_INODE, *range(_FIRST_INODE, used + 1)]
    commands = (f"sif <{inode}> {time} @{same.epoch}\n" for inode in inodes for time in ("atime", "ctime"))
    debugfs(image, *commands, same=same)


def debugfs(image: Path, *commands: str, same: Same | None = None) -> str:
    """What debugfs(8) answers; with ``same`` it may write."""
    write = ["-w"] if same else []
    environment = same.environment if same else None
    return run(["debugfs", *write, "-f", "-", image], stdin="".join(commands), environment=environment)


def make_xfs(
    context: Context, image: Path, tree: Path, content: Content, *, label: str, size: int, same: Same
) -> None:
    """The same with xfs."""
    with open_private(image) as stream:
        stream.truncate(size)
    command: list[str | Path] = ["mkfs.xfs", "-q", "-f", "-s", f"size={BLOCK}", "-L", label]
    command += ["-m", f"uuid={same.uuid(f'file system {label}')}"]
    what = f"make the file system of {label}"
    if takes_directory():
        run_counted(context, what, [*command, "-p", tree, image], content.size, environment=same.environment)
        return
    run([*command, image])
    with mounted(image, image.with_name("mnt"), "xfs") as where:
        run_counted(context, what, ["cp", "--archive", f"{tree}/.", where], content.size)


def takes_directory() -> bool:
    """Whether mkfs.xfs makes a file system of a directory, since xfsprogs 6.17."""
    found = re.search(r"version (\d+)\.(\d+)", run(["mkfs.xfs", "-V"]))
    return found is not None and (int(found[1]), int(found[2])) >= (6, 17)


@contextmanager
def mounted(image: Path, where: Path, type: str, *options: str) -> Iterator[Path]:
    """A file system in a file, in the mount namespace of this process alone; the loop device goes with it."""
    where.mkdir(exist_ok=True)
    try:
        run(["mount", "-t", type, "-o", ",".join(("loop", "nosuid", "nodev", *options)), image, where])
    except ToolError as error:
        raise FirstbootError(
            "SX-BUILD-08",
            f"a file system cannot be mounted: {error.message}",
            "run it as root, where there are loop devices, on what was unmounted in order",
        ) from None
    try:
        yield where
    finally:
        run(["umount", where])


def make_tree(context: Context, data: Path, tree: Path, *, name: str, size: int, same: Same) -> str:
    """Write the hash tree of the first ``size`` bytes of ``data``; the root hash."""
    said = run_counted(
        context,
        f"make the hash tree of {name}",
        [
            *("veritysetup", "format", f"--data-blocks={size // BLOCK_SIZE}"),
            *(f"--uuid={same.uuid(f'hash tree of {name}')}", f"--salt={same.salt(name)}", data, tree),
        ],
        size // 128,
    )
    return _root_hash(said)


def _root_hash(said: str) -> str:
    found = re.findall(r"^Root hash:\s+([0-9a-f]{64})$", said, re.M)
    if len(found) != 1:
        raise FirstbootError("SX-BUILD-09", "veritysetup tells no root hash", "use cryptsetup 2.4 or newer")
    return str(found[0])


def verify(context: Context, data: Path, tree: Path, *, name: str, root_hash: str) -> Superblock | None:
    """The hash tree's superblock, if the tree proves every block of ``data``; it reads everything."""
    size = size_of(data)
    try:
        superblock = verity_superblock.read(tree, name, tree_room=size_of(tree), data_room=size)
    except FirstbootError:
        return None
    if superblock.data_bytes != size:
        return None
    try:
        run_counted(
            context,
            f"verify {name}",
            ["veritysetup", "verify", data, tree, root_hash],
            size,
            counter=Counter.READ,
        )
    except ToolError as error:
        if error.code in _NOT_PROVEN:
            return None
        raise
    return superblock


def ask(image: Path, request: str) -> str:
    """What debugfs(8) answers of a file system that somebody else has made: bounded."""
    return run_bounded(["debugfs", "-R", request, image], _SAID_LIMIT)


def names(image: Path, directory: str = "/") -> list[str]:
    """What is in a directory of an ext4 file system. Raises FirstbootError if it cannot be read."""
    found: list[str] = _ENTRY.findall(ask(image, f'ls -p "{directory}"'))
    if "." not in found:
        raise FirstbootError("SX-BUILD-49", f"{directory} cannot be read in the file system of {image.stem}")
    return found


def extents_of(image: Path, file: str) -> list[tuple[int, int, int]]:
    """Of a file in an ext4 file system: number of the first block in the file, first and last block there."""
    return [
        (int(found["logical"]), int(found["first"]), int(found["last"]))
        for found in _EXTENT.finditer(debugfs(image, f'dump_extents -l "{file}"\n'))
    ]


def blocks_of(image: Path, file: str) -> list[int]:
    """The blocks of a file in an ext4 file system, in order, counted in its own blocks. Raises FirstbootError
    if it has holes."""
    blocks: list[int] = []
    for number, first, last in extents_of(image, file):
        if number != len(blocks):
            raise FirstbootError("SX-BUILD-32", f"{file} on partition se has a hole", "report it")
        blocks += range(first, last + 1)
    return blocks
