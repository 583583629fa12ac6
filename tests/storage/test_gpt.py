"""What is refused of a partition table, and what beside it is taken. The checksums are right unless said."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from support.gpt_disks import ENTRIES_SIZE, MBR_RECORD, GptDisk, Part, part

from secex_firstboot.contract.partitions import NUMBERS
from secex_firstboot.storage import disk_image, gpt
from secex_firstboot.storage.gpt import Table, UnsoundTable

FIRST, LAST = 34, 2048 - 34  # what partitions may use on 2048 blocks of 512 bytes
SE, ROOT = part(1, "se", FIRST, 99), part(4, "root", 100, LAST)
DISK = GptDisk([SE, ROOT])
DISK_4K = GptDisk([part(1, "se", 6, 9), part(4, "root", 10, 249)], blocks=256, block_size=4096)


def parsed(disk: GptDisk, *, backup: bool = False, blocks: int | None = None) -> Table:
    header, entries = disk.copy(backup=backup)
    own = disk.blocks - 1 if backup else 1
    return gpt.parse(header, entries, own=own, blocks=blocks or disk.blocks, block_size=disk.block_size)


def refused(disk: GptDisk, *, backup: bool = False) -> str:
    with pytest.raises(UnsoundTable) as error:
        parsed(disk, backup=backup)
    return error.value.message.removeprefix("there is no sound partition table: ")


@pytest.mark.parametrize("disk", [DISK, DISK_4K], ids=["512", "4096"])
def test_a_table_tells_its_partitions_in_bytes(disk: GptDisk) -> None:
    size = disk.block_size
    for table in (parsed(disk), parsed(disk, backup=True)):
        assert [(each.number, each.name) for each in table.entries] == [(1, "se"), (4, "root")]
        assert [(each.start, each.end) for each in table.entries] == [
            (each.first * size, (each.last + 1) * size) for each in disk.parts
        ]
        assert table.entries[0].uuid == "00000000-0000-0001-0000-000000000001"
    assert parsed(disk).agrees_with(parsed(disk, backup=True))


def test_a_table_of_a_disk_that_has_grown_is_taken() -> None:
    assert parsed(DISK, blocks=1 << 40).other == 2047


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"signature": b"EFI PARt"}, "nothing says that it is a GPT"),
        ({"signature": bytes(8)}, "nothing says that it is a GPT"),
        *(({"revision": value}, "its header is of another form") for value in (0, 0x10001, 0x20000)),
        *(({"size": value}, "its header is of another form") for value in (0, 91, 93, 512, 2**32 - 1)),
        ({"reserved": 1}, "its header is of another form"),
        ({"rest": b"\0\1"}, "its header is of another form"),
        ({"rest": bytes(419) + b"\1"}, "its header is of another form"),
        ({"checksum_off": 1}, "its header is damaged"),
        *(({"own": value}, "its header is damaged") for value in (0, 2, 2047)),
        *(({"number": value}, f"it has {value} entries") for value in (0, 127, 129, 2**32 - 1)),
        *(({"entry_size": value}, f"128 entries of {value} bytes") for value in (0, 64, 256, 2**32 - 1)),
        ({"entries_checksum_off": 1}, "its entries are damaged"),
        *(({"entries_at": value}, "overlap") for value in (0, 1, 3, 2015, 2**64 - 1)),
        *(({"other": value}, "overlap") for value in (0, 1, 2048, 2**64 - 1)),
        *(({"other": value}, "overlap") for value in (2046, LAST)),  # the last usable block lies in it
        *(({"first": value}, "overlap") for value in (0, 33, LAST + 1)),
        *(({"last": value}, "overlap") for value in (33, LAST + 1, 2**64 - 1)),
    ],
)
def test_a_primary_header_with_another_field_is_refused(fields: dict[str, object], says: str) -> None:
    assert says in refused(DISK.saying(**fields))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        *(({"own": value}, "its header is damaged") for value in (1, 2046)),
        *(({"other": value}, "overlap") for value in (0, 2, 2047)),
        *(({"entries_at": value}, "overlap") for value in (2, 2014, 2016)),
        ({"last": LAST + 1}, "overlap"),
    ],
)
def test_a_backup_header_with_another_field_is_refused(fields: dict[str, object], says: str) -> None:
    assert says in refused(DISK.saying(**fields), backup=True)


@pytest.mark.parametrize("fields", [{"first": FIRST + 10}, {"last": 200}, {"rest": bytes(420)}])
def test_what_is_a_partitioner_s_choice_is_taken(fields: dict[str, object]) -> None:
    disk = replace(DISK, parts=[part(1, "se", FIRST + 10, 99), part(128, "x", 100, 200)]).saying(**fields)
    assert [each.number for each in parsed(disk).entries] == [1, 128]


@pytest.mark.parametrize(
    ("first", "last"), [(FIRST - 1, 99), (0, 99), (99, 98), (99, LAST + 1), (2**64 - 1, 2**64 - 1), (99, 0)]
)
def test_a_partition_outside_of_what_may_be_used_is_refused(first: int, last: int) -> None:
    assert refused(GptDisk([part(7, "x", first, last)])) == (
        "partition 7 lies outside of what partitions may use"
    )


@pytest.mark.parametrize(("first", "last"), [(FIRST, FIRST), (LAST, LAST), (FIRST, LAST)])
def test_a_partition_up_to_the_edges_is_taken(first: int, last: int) -> None:
    (found,) = parsed(GptDisk([part(7, "x", first, last)])).entries
    assert (found.start, found.size) == (first * 512, (last + 1 - first) * 512)


@pytest.mark.parametrize(
    "others",
    [
        [part(2, "b", 199, 300)],
        [part(2, "b", 50, 100)],
        [part(2, "b", 120, 130)],
        [part(2, "b", 100, 199)],
        [part(2, "b", 200, 300), part(3, "c", 300, 301)],
    ],
)
def test_partitions_that_overlap_are_refused(others: list[Part]) -> None:
    assert "overlap" in refused(GptDisk([part(1, "a", 100, 199), *others]))


def test_partitions_side_by_side_in_any_order_are_taken() -> None:
    assert len(parsed(GptDisk([part(1, "a", 200, 300), part(2, "b", 100, 199)])).entries) == 2


@pytest.mark.parametrize("identity", [bytes(16), SE.uuid])
def test_a_uuid_twice_or_none_is_refused(identity: bytes) -> None:
    assert "UUID" in refused(replace(DISK, parts=[SE, replace(ROOT, identity=identity)]))
    assert len(parsed(replace(DISK, parts=[SE, replace(ROOT, identity=b"\3" * 16)])).entries) == 2


def test_an_entry_without_a_type_is_none() -> None:
    unused = replace(part(2, "gone", 0, 2**64 - 1), kind=bytes(16))
    assert [each.number for each in parsed(replace(DISK, parts=[SE, unused, ROOT])).entries] == [1, 4]
    assert parsed(GptDisk([])).entries == ()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ä" * 36, "ä" * 36),
        ("", ""),
        ("root\0x", "root"),
        ("\N{GRINNING FACE}", "\N{GRINNING FACE}"),
    ],
)
def test_a_name_ends_at_its_nul_or_after_36_characters(name: str, shown: str) -> None:
    assert parsed(GptDisk([part(1, name, 40, 50)])).entries[0].name == shown


@pytest.mark.parametrize("name", [b"\x00\xd8", b"\x00\xdca\0", b"a\0" * 35 + b"\x3d\xd8"])
def test_a_name_that_is_not_utf_16_is_refused(name: bytes) -> None:
    assert "the name of partition 1 is not UTF-16" in refused(GptDisk([Part(1, name, 40, 50)]))


# --- a disk or an image ---


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return DISK.write(tmp_path / "image")


def unsound(image: Path, block_size: int = 512) -> str:
    with pytest.raises(UnsoundTable) as error:
        gpt.whole(image, block_size)
    return error.value.message


def test_a_table_is_whole_if_its_copy_says_the_same(image: Path) -> None:
    assert gpt.whole(image, 512).entries == parsed(DISK).entries
    os.truncate(image, 4 << 20)  # enlarged since: the copy is where the primary table says
    assert gpt.whole(image, 512).other == 2047


@pytest.mark.parametrize(
    "backup",
    [
        replace(DISK, parts=[SE]),
        replace(DISK, parts=[SE, part(4, "root", 100, LAST - 1)]),
        replace(DISK, parts=[SE, part(4, "r00t", 100, LAST)]),
        DISK.saying(disk=b"x" * 16),
        replace(DISK.saying(last=LAST - 1), parts=[SE]),
    ],
)
def test_a_copy_that_says_something_else_is_refused(image: Path, backup: GptDisk) -> None:
    image.write_bytes(DISK.content(backup=backup))
    assert "its two copies differ" in unsound(image)
    assert gpt.in_use(image, 512).entries == parsed(DISK).entries


@pytest.mark.parametrize("at", [512, 1024 + 130, 2047 * 512, 2015 * 512 + 130])
def test_a_flipped_bit_in_either_copy_is_refused(image: Path, at: int) -> None:
    content = bytearray(image.read_bytes())
    content[at] ^= 1
    image.write_bytes(content)
    unsound(image)
    assert gpt.in_use(image, 512).entries == parsed(DISK).entries  # of the other copy


def test_a_disk_that_has_become_smaller_is_refused(image: Path) -> None:
    for size in (2047 * 512, 4096, 512, 0):
        os.truncate(image, size)
        unsound(image)
        with pytest.raises(UnsoundTable):
            gpt.in_use(image, 512)


@pytest.mark.parametrize("disk", [DISK, DISK_4K], ids=["512", "4096"])
def test_an_image_tells_the_size_of_its_blocks(tmp_path: Path, disk: GptDisk) -> None:
    assert gpt.block_size_of(disk.write(tmp_path / "image")) == disk.block_size


def test_an_image_with_a_header_for_either_size_of_blocks_is_refused(image: Path) -> None:
    with image.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"EFI PART")
    with pytest.raises(UnsoundTable, match="two places say that it is a GPT"):
        gpt.block_size_of(image)


@pytest.mark.parametrize(
    "mbr",
    [
        bytes(16),
        b"\0" * 4 + b"\x83" + MBR_RECORD[5:],
        MBR_RECORD[:8] + b"\2" + MBR_RECORD[9:],
        MBR_RECORD * 2,
        MBR_RECORD + b"\0\0\0\0\x83\0\0\0\0\x10\0\0\0\x10\0\0",
        MBR_RECORD + bytes(32) + b"\x80" + bytes(15),
        MBR_RECORD + bytes(48) + b"\x54",
    ],
)
def test_an_mbr_with_another_record_than_the_protective_one_is_refused(image: Path, mbr: bytes) -> None:
    gpt.check_protective_mbr(image)
    content = bytearray(image.read_bytes())
    content[446 : 446 + len(mbr)] = mbr
    image.write_bytes(content)
    with pytest.raises(UnsoundTable, match="the MBR has another record"):
        gpt.check_protective_mbr(image)


def test_the_protective_record_may_be_the_second_and_of_any_size(image: Path) -> None:
    image.write_bytes(DISK.content(mbr=bytes(16) + MBR_RECORD[:12] + b"\1\0\0\0"))
    gpt.check_protective_mbr(image)


def test_an_image_is_the_disk_that_udev_shows_of_it(tmp_path: Path) -> None:
    ends = range(100, 600, 100)
    parts = [part(NUMBERS[name], name, end, end + 99) for name, end in zip(NUMBERS, ends, strict=True)]
    more = [part(2, "bios", 700, 799), part(7, "root", 800, 899)]
    image = GptDisk([*parts, *more]).write(tmp_path / "image")
    found = disk_image.read(image, Path("image.qcow2"))
    assert (found.device, found.size, found.block_size) == (Path("image.qcow2"), 2048 * 512, 512)
    assert {name: each.number for name, each in found.partitions.items()} == NUMBERS
    root = found.partitions["root"]
    assert (root.device, root.start, root.size) == (image, 300 * 512, 100 * 512)
    assert [(each.number, each.name) for each in found.others] == [(2, "bios"), (7, "root")]
    assert found.missing(NUMBERS) == ""
    assert ENTRIES_SIZE == gpt.ENTRIES_SIZE
