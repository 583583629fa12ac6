"""The superblock of a dm-verity hash tree, of a block device or within an image file.

Nothing protects it. So only what veritysetup makes by default is taken: a root hash says nothing under an
algorithm that the host may choose. The root hash covers salt and data, but the host may shorten the number of
blocks here, as long as the tree keeps its height: what is in the data (a file system) must fit within.

Form: cryptsetup, lib/verity/verity.c, struct verity_sb.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError

SIZE = 512  # bytes
BLOCK_SIZE = 4096  # bytes, of data and of hashes
ALGORITHM, HASH_TYPE = "sha256", 1
HASHES_AT = BLOCK_SIZE  # bytes from the superblock: the next block

# Signature, version, hash type, UUID, algorithm, size of a data block and of a hash block, data blocks, bytes
# of salt, padding, salt, padding.
_FORM = struct.Struct("<8sII16s32sIIQH6s256s168s")
_SIGNATURE, _VERSION = b"verity\0\0", 1
_HASHES_IN_A_BLOCK = BLOCK_SIZE // 32


@dataclass(frozen=True)
class Superblock:
    """What it says beyond the one kind there is."""

    data_blocks: int
    salt: bytes

    @property
    def data_bytes(self) -> int:
        return self.data_blocks * BLOCK_SIZE

    @property
    def tree_bytes(self) -> int:
        """With the superblock. The root hash is that of the one block of the highest level."""
        level, blocks = self.data_blocks, 1
        while level > 1:
            level = -(-level // _HASHES_IN_A_BLOCK)
            blocks += level
        return blocks * BLOCK_SIZE


def read(tree: Path, name: str, *, offset: int = 0, tree_room: int, data_room: int) -> Superblock:
    """That of the hash tree at byte ``offset`` of ``tree``, for the volume ``name``.

    ``tree_room`` and ``data_room``: how many bytes there are for tree and data. Raises FirstbootError.
    """
    with tree.open("rb", buffering=0) as stream:
        return parse(os.pread(stream.fileno(), SIZE, offset), name, tree_room=tree_room, data_room=data_room)


def parse(content: bytes, name: str, *, tree_room: int, data_room: int) -> Superblock:
    if len(content) != SIZE or not content.startswith(_SIGNATURE):
        raise _refusal(name, "is not there")
    _, version, hash_type, _, algorithm, data_block, hash_block, blocks, salt_size, *rest = _FORM.unpack(
        content
    )
    kind = (
        version,
        hash_type,
        algorithm.rstrip(b"\0").decode("ascii", errors="replace"),
        data_block,
        hash_block,
    )
    if kind != (wanted := (_VERSION, HASH_TYPE, ALGORITHM, BLOCK_SIZE, BLOCK_SIZE)):
        raise _refusal(name, f"asks for {kind}, not {wanted}")
    padding, salt, more_padding = rest
    if salt_size > len(salt) or any(padding + salt[salt_size:] + more_padding):
        raise _refusal(name, "has a salt of another form")
    found = Superblock(blocks, salt[:salt_size])
    if not 0 < found.data_bytes <= data_room:
        raise _refusal(name, f"is for {blocks} blocks of data, and there are {data_room // BLOCK_SIZE}")
    if found.tree_bytes > tree_room:
        raise _refusal(name, f"is for a tree of {found.tree_bytes} bytes, and there are {tree_room}")
    return found


def _refusal(name: str, what: str) -> FirstbootError:
    return FirstbootError(
        "SX-DISK-38",
        f"the dm-verity superblock for {name} {what}",
        "make the image's hash tree with veritysetup's defaults",
    )
