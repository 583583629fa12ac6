"""What is refused of a dm-verity superblock, and what beside it is taken."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest
from support import needs

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.storage import cryptsetup, verity_superblock
from secex_firstboot.storage.cryptsetup import CryptSetup
from secex_firstboot.storage.verity_superblock import Superblock, parse

MIB = 1 << 20
SALT = bytes(range(1, 33))
BLOCKS = 8192
DATA, TREE = (
    BLOCKS * 4096,
    (1 + 64 + 1) * 4096,
)  # 8192 hashes of 32 bytes fill 64 blocks, and theirs half a one

needs_veritysetup = needs.programs("veritysetup")


def superblock(**fields: object) -> bytes:
    said: dict[str, object] = {
        **{"signature": b"verity\0\0", "version": 1, "hash_type": 1, "uuid": b"u" * 16},
        **{"algorithm": b"sha256", "data_block": 4096, "hash_block": 4096, "blocks": BLOCKS},
        **{"salt_size": len(SALT), "pad": b"", "salt": SALT, "pad2": b""},
    }
    return struct.pack("<8sII16s32sIIQH6s256s168s", *(said | fields).values())


def read(content: bytes, *, data_room: int = DATA, tree_room: int = TREE) -> Superblock:
    return parse(content, "root", tree_room=tree_room, data_room=data_room)


def test_it_tells_blocks_and_salt() -> None:
    found = read(superblock())
    assert found == Superblock(BLOCKS, SALT)
    assert (found.data_bytes, found.tree_bytes) == (DATA, TREE)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"signature": b"verity\0\1"}, "is not there"),
        *(({"version": value}, f"asks for ({value}, 1, ") for value in (0, 2)),
        *(({"hash_type": value}, f"asks for (1, {value}, ") for value in (0, 2)),
        *(
            ({"algorithm": value}, "asks for ")
            for value in (b"", b"sha512", b"SHA256", b"sha256\0x", b"sha256 ", b"\xff", b"blake2s-256")
        ),
        *(({"data_block": value}, "asks for ") for value in (0, 512, 1024, 8192, 2**32 - 1)),
        *(({"hash_block": value}, "asks for ") for value in (0, 512, 1024, 8192, 2**32 - 1)),
        *(({"blocks": value}, f"is for {value} blocks of data") for value in (0, BLOCKS + 1, 2**64 - 1)),
        *(({"salt_size": value}, "a salt of another form") for value in (31, 257, 2**16 - 1)),
        ({"pad": b"\1"}, "a salt of another form"),
        ({"pad2": b"\0\1"}, "a salt of another form"),
        ({"salt": SALT + b"\1"}, "a salt of another form"),
    ],
)
def test_one_with_another_field_is_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(FirstbootError, match="the dm-verity superblock for root ") as error:
        read(superblock(**fields))
    assert says in error.value.message


@pytest.mark.parametrize("size", [0, 8, 511, 513])
def test_one_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(FirstbootError, match="is not there"):
        read(superblock().ljust(513, b"\0")[:size])


@pytest.mark.parametrize("salt", [b"", b"\0", bytes(256), b"\xff" * 256])
def test_a_salt_of_up_to_256_bytes_is_taken(salt: bytes) -> None:
    assert read(superblock(salt=salt, salt_size=len(salt))).salt == salt


@pytest.mark.parametrize("uuid", [bytes(16), b"\xff" * 16])
def test_its_uuid_does_not_matter(uuid: bytes) -> None:
    assert read(superblock(uuid=uuid)) == read(superblock())


@pytest.mark.parametrize(
    ("blocks", "tree_blocks"),
    [(1, 1), (2, 2), (128, 2), (129, 1 + 2 + 1), (16384, 1 + 128 + 1), (16385, 1 + 129 + 2 + 1)],
)
def test_data_and_tree_must_fit(blocks: int, tree_blocks: int) -> None:
    content, data, tree = superblock(blocks=blocks), blocks * 4096, tree_blocks * 4096
    assert read(content, data_room=data, tree_room=tree).tree_bytes == tree
    with pytest.raises(FirstbootError, match=rf"for {blocks} blocks of data, and there are {blocks - 1}"):
        read(content, data_room=data - 1, tree_room=tree)
    with pytest.raises(FirstbootError, match=rf"for a tree of {tree} bytes, and there are {tree - 1}"):
        read(content, data_room=data, tree_room=tree - 1)


# --- beside veritysetup ---


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path, bytes]:
    """(data, tree, root hash)"""
    data, tree = tmp_path / "data", tmp_path / "tree"
    data.write_bytes(os.urandom(MIB))
    return data, tree, veritysetup_format(data, tree)


def veritysetup_format(data: Path, tree: Path, *options: str) -> bytes:
    argv = ["veritysetup", "format", *options, str(data), str(tree)]
    text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return bytes.fromhex(text.split("Root hash:")[1].split()[0])


@needs_veritysetup
@pytest.mark.parametrize(
    "options", [[], ["--data-blocks=200", "--salt=c0ffee"], ["--data-blocks=1", "--salt=-"]]
)
def test_what_veritysetup_makes_is_taken_and_its_tree_has_that_size(
    made: tuple[Path, Path, bytes], options: list[str]
) -> None:
    data, tree, _ = made
    tree.unlink()
    veritysetup_format(data, tree, *options)
    dump = subprocess.run(["veritysetup", "dump", tree], check=True, capture_output=True, text=True).stdout
    said = dict(line.split(":", 1) for line in dump.splitlines() if ":" in line)
    found = verity_superblock.read(tree, "x", tree_room=tree.stat().st_size, data_room=MIB)
    assert found.data_blocks == int(said["Data blocks"])
    assert found.salt.hex() == said["Salt"].strip().removeprefix("-")
    assert found.tree_bytes == tree.stat().st_size


@needs_veritysetup
@pytest.mark.parametrize(
    "option", ["--hash=sha512", "--hash=blake2s-256", "--data-block-size=1024", "--format=0"]
)
def test_another_kind_is_refused(made: tuple[Path, Path, bytes], option: str) -> None:
    data, tree, _ = made
    veritysetup_format(data, tree, option)
    with pytest.raises(FirstbootError, match="the dm-verity superblock for x asks for"):
        verity_superblock.read(tree, "x", tree_room=tree.stat().st_size, data_room=MIB)


@needs_veritysetup
def test_within_an_image_it_is_the_same(made: tuple[Path, Path, bytes], tmp_path: Path) -> None:
    data, tree, _ = made
    room = tree.stat().st_size
    (tmp_path / "image").write_bytes(bytes(MIB) + tree.read_bytes())
    found = verity_superblock.read(tmp_path / "image", "x", offset=MIB, tree_room=room, data_room=MIB)
    assert found == verity_superblock.read(tree, "x", tree_room=room, data_room=data.stat().st_size)
    with pytest.raises(FirstbootError, match="is not there"):
        verity_superblock.read(tmp_path / "image", "x", offset=2 * MIB, tree_room=room, data_room=MIB)


@needs_veritysetup
def test_the_library_finds_the_hashes_without_reading_the_superblock(
    made: tuple[Path, Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can check a tree by itself (CRYPT_VERITY_CHECK_HASH), with the parameters that the kernel gets."""
    data, tree, root_hash = made
    found = verity_superblock.read(tree, "x", tree_room=tree.stat().st_size, data_room=MIB)
    with tree.open("r+b") as stream:
        stream.write(os.urandom(512))  # as a host may: nobody looks again
    monkeypatch.setattr("secex_firstboot.storage.cryptsetup.CRYPT_VERITY_NO_HEADER", 1 << 0 | 1 << 1)
    with CryptSetup(data, header=tree) as handle:
        handle.use_verity(found)
        assert verifies(handle, root_hash)
    with CryptSetup(data, header=tree) as handle:
        handle.use_verity(found)
        assert not verifies(handle, bytes(32))


def verifies(handle: CryptSetup, root_hash: bytes) -> bool:
    """Without a name the library opens nothing."""
    library = cryptsetup._library()
    result: int = library.crypt_activate_by_volume_key(handle._handle, None, root_hash, len(root_hash), 1)
    cryptsetup._errors.take()
    return result == 0
