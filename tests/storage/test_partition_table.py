"""The real sfdisk, on a file that stands for the disk. Only partx and udevadm are left out: they want one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support import needs

from secex_firstboot.basic.process import run
from secex_firstboot.contract.partitions import HASH_TREES, LASTING, NUMBERS
from secex_firstboot.storage import disk_image, gpt, partition_table

MIB = 1 << 20
LAYOUT = """\
label: gpt
first-lba: 2048
1 : size=4MiB, name="se"
3 : size=8MiB, name="boot"
4 : size=16MiB, name="root"
5 : size=1MiB, name="boothash"
6 : size=2MiB, name="roothash"
"""

pytestmark = needs.programs("sfdisk")


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the kernel would have been told."""
    calls: list[str] = []

    def run_only_sfdisk(argv: Sequence[str | Path], *, stdin: str | None = None) -> str:
        if argv[0] in ("partx", "udevadm"):
            calls.append(" ".join(map(str, argv)))
            return ""
        return run(argv, stdin=stdin)

    monkeypatch.setattr(partition_table, "run", run_only_sfdisk)
    return calls


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, 64 * MIB)
    subprocess.run(["sfdisk", "--quiet", str(path)], input=LAYOUT, text=True, check=True)
    with path.open("r+b") as stream:
        stream.write(os.urandom(440))  # where zipl puts its boot record: all that is not the table's
    return path


@pytest.fixture
def disk_4k(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, 64 * MIB)
    argv = ["losetup", "--find", "--show", "--sector-size=4096", str(path)]
    device = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    try:
        layout = LAYOUT.replace("2048", "256")
        subprocess.run(["sfdisk", "--quiet", "--no-reread", device], input=layout, text=True, check=True)
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def table(image: Path) -> dict[str, dict[str, Any]]:
    dump = subprocess.run(["sfdisk", "--json", str(image)], capture_output=True, text=True, check=True)
    rows = json.loads(dump.stdout)["partitiontable"]["partitions"]
    return {row.pop("name"): {key: row[key] for key in row if key != "node"} for row in rows}


def hash_partitions(image: Path) -> list[int]:
    return [
        number for name, number in NUMBERS.items() if name in set(table(image)) & set(HASH_TREES.values())
    ]


def verify(image: Path) -> str:
    argv = ["sfdisk", "--verify", str(image)]
    return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


@pytest.fixture
def change(tmp_path: Path) -> Callable[..., None]:
    def change(image: Path, mib: int, delete: Sequence[int] = (5, 6), block_size: int = 512) -> None:
        partition_table.change(
            image,
            block_size,
            delete=delete,
            places={4: (13 * MIB, mib * MIB)},
            scratch=tmp_path,
        )

    return change


@needs.loop_devices
def test_the_hash_partitions_are_gone_and_root_has_the_planned_size(
    image: Path, change: Callable[..., None]
) -> None:
    before = table(image)
    change(image, 40)
    after = table(image)
    assert after.keys() == {"se", "boot", "root"}
    assert after["root"].pop("size") == 40 * MIB // 512
    before["root"].pop("size")
    assert after == {name: before[name] for name in after}  # start, type, UUID


@needs.loop_devices
def test_root_makes_room_for_boot_and_both_stay_what_they_were(image: Path, tmp_path: Path) -> None:
    before = table(image)
    places = {4: (16 * MIB, 40 * MIB), 3: (5 * MIB, 11 * MIB)}
    for delete in ((5, 6), ()):
        partition_table.change(image, 512, delete=delete, places=places, scratch=tmp_path)
        after = table(image)
        for name, number in (("root", 4), ("boot", 3)):
            place = {"start": places[number][0] // 512, "size": places[number][1] // 512}
            assert after[name] == before[name] | place
    assert "No errors detected" in verify(image)
    assert partition_table.is_sound(image, 512)


@needs.loop_devices
def test_an_image_is_read_as_sfdisk_reads_it(image: Path, change: Callable[..., None]) -> None:
    for expected, delete in ((NUMBERS, (5, 6)), (LASTING, ())):
        found, rows = disk_image.read(image, image).partitions, table(image)
        assert {name: part.number for name, part in found.items()} == expected
        assert {name: (part.start, part.size, part.uuid) for name, part in found.items()} == {
            name: (row["start"] * 512, row["size"] * 512, row["uuid"].lower()) for name, row in rows.items()
        }
        change(image, 40, delete=delete)


@needs.loop_devices
def test_a_disk_of_4096_byte_blocks_is_read_as_well(disk_4k: Path) -> None:
    assert gpt.whole(disk_4k, 4096).entries[2].size == 16 * MIB
    assert gpt.block_size_of(disk_4k) == 4096


@needs.loop_devices
def test_only_the_named_partitions_are_deleted(image: Path, change: Callable[..., None]) -> None:
    before = table(image)
    change(image, 16, delete=[5])
    before.pop("boothash")
    assert table(image) == before


@needs.loop_devices
def test_the_boot_record_stays_byte_for_byte(image: Path, change: Callable[..., None]) -> None:
    before = image.read_bytes()[:440]
    change(image, 40)
    os.truncate(image, 128 * MIB)
    change(image, 100, delete=[])
    assert image.read_bytes()[:440] == before


@needs.loop_devices
def test_the_content_of_the_partitions_stays(image: Path, change: Callable[..., None]) -> None:
    before = os.urandom(61 * MIB)
    with image.open("r+b") as stream:
        stream.seek(MIB)
        stream.write(before)
    change(image, 40)
    assert image.read_bytes()[MIB : 62 * MIB] == before


@needs.loop_devices
def test_doing_it_again_changes_nothing(image: Path, change: Callable[..., None]) -> None:
    change(image, 40)
    once = image.read_bytes()
    change(image, 40, delete=[])
    assert image.read_bytes() == once


@needs.loop_devices
def test_an_enlarged_disk_gets_its_backup_table_at_the_end(image: Path, change: Callable[..., None]) -> None:
    os.truncate(image, 128 * MIB)
    assert "No errors detected" not in verify(image)
    assert not partition_table.is_sound(image, 512)
    change(image, 100)
    assert "No errors detected" in verify(image)
    assert partition_table.is_sound(image, 512)
    assert image.read_bytes()[-512:].startswith(b"EFI PART")
    assert table(image)["root"]["size"] == 100 * MIB // 512


@needs.loop_devices
def test_a_size_beyond_the_disk_is_refused_and_changes_nothing(
    image: Path, change: Callable[..., None]
) -> None:
    before = image.read_bytes()
    with pytest.raises(Exception, match="sfdisk failed"):
        change(image, 64)
    assert image.read_bytes() == before


@needs.loop_devices
def test_the_kernel_hears_of_each_changed_partition_alone(
    image: Path, change: Callable[..., None], told: list[str]
) -> None:
    change(image, 40)
    assert told == [
        f"partx --delete --nr 5 {image}",
        f"partx --delete --nr 6 {image}",
        f"partx --update --nr 4 {image}",
        "udevadm settle --timeout=30",
    ]


@needs.loop_devices
def test_sizes_count_in_blocks_of_4096_bytes_on_such_a_disk(
    disk_4k: Path, change: Callable[..., None]
) -> None:
    change(disk_4k, 40, block_size=4096)
    assert table(disk_4k)["root"]["size"] == 40 * MIB // 4096
    assert "No errors detected" in verify(disk_4k)
    assert partition_table.is_sound(disk_4k, 4096)


@pytest.mark.parametrize("position", [512, 512 + 16, 1024 + 100, -512, -17 * 1024 + 512])
def test_a_flipped_bit_in_either_table_is_seen(image: Path, position: int) -> None:
    assert partition_table.is_sound(image, 512)
    content = bytearray(image.read_bytes())
    content[position] ^= 1
    image.write_bytes(content)
    assert not partition_table.is_sound(image, 512)


@needs.loop_devices
@pytest.mark.parametrize("torn", range(1, 6))
@pytest.mark.parametrize("table_at", ["backup", "primary"])
def test_a_write_torn_by_a_power_cut_is_mended_by_doing_it_again(
    image: Path, change: Callable[..., None], table_at: str, torn: int
) -> None:
    """Some blocks of one table are new, the rest old; the other table is whole, old or new."""
    os.truncate(image, 128 * MIB)
    before = image.read_bytes()
    change(image, 100)
    after = image.read_bytes()
    size = len(after) // 512
    blocks = range(1, 34) if table_at == "primary" else range(size - 33, size)
    cut = bytearray(after if table_at == "primary" else before[: 34 * 512] + after[34 * 512 :])
    for number in Random(torn).sample(blocks, 16):  # noqa: S311
        cut[number * 512 : number * 512 + 512] = before[number * 512 : number * 512 + 512]
    with image.open("r+b") as stream:  # all but the tables is zeros, before and after
        stream.write(cut[: 34 * 512])
        stream.seek(-33 * 512, os.SEEK_END)
        stream.write(cut[-33 * 512 :])
    assert table(image).keys() in ({"se", "boot", "root"}, {"se", "boot", "root", "boothash", "roothash"})
    change(image, 100, delete=hash_partitions(image))
    assert partition_table.is_sound(image, 512)
    assert table(image)["root"]["size"] == 100 * MIB // 512
