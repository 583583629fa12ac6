"""Reading a volume through dm-verity."""

from __future__ import annotations

from pathlib import Path

from secex_firstboot.errors import Refusal
from secex_firstboot.storage import cryptsetup, devicemapper
from secex_firstboot.storage.cryptsetup import CryptSetup, VerityParameters

_BLOCK = 4096


def data_size(data: Path, tree: Path) -> int:
    """Bytes of the volume that the hash tree covers."""
    with CryptSetup(data, header=tree) as volume:
        return volume.load_verity().data_bytes


def open_verified(data: Path, tree: Path, name: str, root_hash: str) -> Path:
    """Open ``data`` as /dev/mapper/``name`` with the hash tree on ``tree``.

    Raises Refusal if the superblock asks for other than SHA-256 over blocks of 4096 bytes (it is the host's
    to write; a weaker hash would weaken the root hash), FirstbootError if the content does not match.
    """
    with CryptSetup(data, header=tree) as volume:
        _check(volume.load_verity(), name)
        return volume.activate_verity(name, bytes.fromhex(root_hash))


def close(name: str) -> None:
    if devicemapper.exists(name):
        cryptsetup.deactivate(name)


def _check(parameters: VerityParameters, name: str) -> None:
    found = (
        parameters.hash_name,
        parameters.hash_type,
        parameters.data_block_size,
        parameters.hash_block_size,
    )
    if found != ("sha256", 1, _BLOCK, _BLOCK):
        raise Refusal(
            f"the hash tree for {name} has format {found}, not sha256, 1, {_BLOCK}, {_BLOCK}",
            "build it with veritysetup's defaults",
        )
