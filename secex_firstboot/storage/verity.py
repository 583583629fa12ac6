"""Reading a volume through dm-verity."""

from __future__ import annotations

from pathlib import Path

from secex_firstboot.basic.files import size_of
from secex_firstboot.storage import devicemapper, verity_superblock
from secex_firstboot.storage.cryptsetup import CryptSetup


def open_verified(data: Path, tree: Path, name: str, root_hash: str) -> Path:
    """Open ``data`` as /dev/mapper/``name`` with the hash tree on ``tree``.

    The superblock is read here, once. Raises FirstbootError if it is not of veritysetup's default kind, or
    the content does not match.
    """
    superblock = verity_superblock.read(tree, str(data), tree_room=size_of(tree), data_room=size_of(data))
    with CryptSetup(data, header=tree) as handle:
        handle.use_verity(superblock)
        return handle.activate_verity(name, bytes.fromhex(root_hash))


def data_size(name: str) -> int:
    """Bytes that the open mapping ``name`` shows: what its tree covers, as the kernel has it."""
    (target,) = devicemapper.table(name)
    _, _, _, block_size, _, blocks, *_ = target.arguments
    return int(block_size) * int(blocks)


def is_open(data: Path, tree: Path, name: str, root_hash: str) -> bool:
    """Whether the mapping ``name`` is what ``open_verified`` makes: of these devices, with this root hash.

    Linux: Documentation/admin-guide/device-mapper/verity.rst, construction parameters.
    """
    mapping = devicemapper.find(name)
    if not mapping or not mapping.uuid.startswith("CRYPT-VERITY-"):
        return False
    found = [(each.type, [*each.arguments[1:3], *each.arguments[8:9]]) for each in devicemapper.table(name)]
    return found == [("verity", [devicemapper.number_of(data), devicemapper.number_of(tree), root_hash])]
