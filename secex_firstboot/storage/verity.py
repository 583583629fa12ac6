"""Reading a volume through dm-verity."""

from __future__ import annotations

from pathlib import Path

from secex_firstboot.storage import devicemapper
from secex_firstboot.storage.cryptsetup import CryptSetup


def data_size(data: Path, tree: Path) -> int:
    """Bytes of the volume that the hash tree covers."""
    with CryptSetup(data, header=tree) as volume:
        return volume.load_verity().data_bytes


def open_verified(data: Path, tree: Path, name: str, root_hash: str) -> Path:
    """Open ``data`` as /dev/mapper/``name`` with the hash tree on ``tree``.

    Raises FirstbootError if the tree is not veritysetup's default format, or the content does not match.
    """
    with CryptSetup(data, header=tree) as volume:
        volume.load_verity()
        return volume.activate_verity(name, bytes.fromhex(root_hash))


def is_open(data: Path, tree: Path, name: str, root_hash: str) -> bool:
    """Whether the mapping ``name`` is what ``open_verified`` makes: of these devices, with this root hash.

    Linux: Documentation/admin-guide/device-mapper/verity.rst, construction parameters.
    """
    mapping = devicemapper.find(name)
    if not mapping or not mapping.uuid.startswith("CRYPT-VERITY-"):
        return False
    found = [(each.type, [*each.arguments[1:3], *each.arguments[8:9]]) for each in devicemapper.table(name)]
    return found == [("verity", [devicemapper.number_of(data), devicemapper.number_of(tree), root_hash])]
