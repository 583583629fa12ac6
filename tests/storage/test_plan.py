"""The plan's figures, over disks of many shapes; where dm-integrity puts its bytes is test_integrity's."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.partitions import NUMBERS
from secex_firstboot.storage.cryptsetup import DATA_OFFSET
from secex_firstboot.storage.disk import Disk, Partition
from secex_firstboot.storage.encrypted import JOURNAL_SIZE, TAIL_SIZE, required_device_size
from secex_firstboot.storage.filesystem import FileSystem
from secex_firstboot.storage.integrity import Layout
from secex_firstboot.storage.plan import MIB, Plan, Source, Span, grown_root, lay_out

PAGE = 4096
KEY = "5e" * 32
HASH = "ab" * 32
GPT_BLOCKS = {512: 33, 4096: 5}  # the backup table and its header
HEAD = 28 * MIB  # at most: LUKS2 header, superblock, journal


def disk(sizes: dict[str, int], *, free: int = 0, block_size: int = 512) -> Disk:
    """Partitions one after the other from the second MiB, then ``free`` bytes, then the backup GPT."""
    partitions, at = {}, MIB
    for name, size in sizes.items():
        uuid = f"00000000-0000-4000-8000-00000000000{NUMBERS[name]}"
        device = Path(f"/dev/vda{NUMBERS[name]}")
        partitions[name] = Partition(NUMBERS[name], name, device, uuid, at, size)
        at += size
    return Disk(Path("/dev/vda"), at + free + GPT_BLOCKS[block_size] * block_size, block_size, partitions)


def source(size: int, *, sector_size: int = 4096, type: str = "xfs", root_hash: str = HASH) -> Source:
    return Source(root_hash=root_hash, size=size, file_system=FileSystem(type, size, sector_size))


def enlarged(before: Disk, mib: int) -> Disk:
    return replace(before, size=before.size + mib * MIB)


def missing_mib(refusal: Refusal) -> int:
    """What the message names, which is also what the cure asks for."""
    named = re.search(r"too small by (\d+) MiB$", refusal.message)
    cured = re.search(r"qemu-img resize \S+ \+(\d+)M$", refusal.cure)
    assert named and cured and named[1] == cured[1], refusal
    return int(named[1])


SIZES = {
    "se": 64 * MIB,
    "boot": 128 * MIB,
    "root": 300 * MIB,
    "boothash": MIB,
    "roothash": 3 * MIB,
}
BOOT, ROOT = source(64 * MIB, type="ext4"), source(300 * MIB)


@st.composite
def machines(draw: st.DrawFn) -> tuple[Disk, Source, Source]:
    """A disk with two sources, room at its end as it comes. What boot lacks, root has."""
    block_size = draw(st.sampled_from([512, 4096]))

    def size(least: int, most: int, step: int) -> int:
        return draw(st.integers(-(-least // step), most // step)) * step

    boot, root = (
        source(size(least, most, PAGE), sector_size=draw(st.sampled_from([512, 1024, 4096])))
        for least, most in ((PAGE, 300 * MIB), (2 * MIB, 3000 * MIB))
    )
    least = max(boot.size, boot.size + boot.size // 12 + 40 * MIB - root.size)
    sizes = {
        "se": size(MIB, 200 * MIB, MIB),
        "boot": size(least, 600 * MIB, MIB),
        "root": size(root.size, root.size + 300 * MIB, block_size),
    }
    trees = {"boothash": 4 * MIB, "roothash": 40 * MIB}
    sizes |= {name: size(PAGE, trees[name], block_size) for name in draw(st.permutations(list(trees)))}
    return disk(sizes, free=size(0, 400 * MIB, block_size), block_size=block_size), boot, root


def accepted(machine: Disk, boot: Source, root: Source) -> tuple[Disk, Plan]:
    """The machine, with as much room as the refusal asks for, and its plan."""
    try:
        return machine, lay_out(machine, boot, root, 0, KEY)
    except Refusal as refusal:
        large_enough = enlarged(machine, missing_mib(refusal))
        return large_enough, lay_out(large_enough, boot, root, 0, KEY)


@given(machines())
def test_nothing_that_is_still_needed_is_written_over(machine: tuple[Disk, Source, Source]) -> None:
    found, plan = accepted(*machine)
    start = plan.root.partition.offset
    layout = Layout.planned(
        sector_size=plan.root.sector_size, journal_bytes=JOURNAL_SIZE, data_offset=DATA_OFFSET
    )
    target_end = layout.data_address(plan.root.source_size - 1) + 1
    for tree, name in ((plan.boot.tree, "boothash"), (plan.root.tree, "roothash")):
        assert (start + tree.offset, tree.size) == (found.partitions[name].start, found.partitions[name].size)
    # The boot tree is read in place while boot is encrypted, when only the saved copies have been written.
    assert plan.boot.saved_tree == plan.boot.tree
    # While root is encrypted, its saved head and tree are read and its target is written.
    spans = [(0, max(target_end, found.partitions["root"].end - start))]
    spans += [(tree.offset, tree.offset + tree.size) for tree in (plan.boot.tree, plan.root.tree)]
    saved = (plan.boot.saved_head, plan.root.saved_head, plan.root.saved_tree)
    reached = max(end for _, end in spans)
    ordered = sorted((span.offset, span.offset + span.size) for span in saved)
    assert reached <= ordered[0][0]
    assert all(end <= start for (_, end), (start, _) in pairwise(ordered))
    assert ordered[-1][1] <= plan.root.partition.size


@given(machines())
def test_what_is_saved_is_all_that_placing_overwrites(machine: tuple[Disk, Source, Source]) -> None:
    _, plan = accepted(*machine)
    for volume in plan.volumes:
        layout = Layout.planned(
            sector_size=volume.sector_size, journal_bytes=JOURNAL_SIZE, data_offset=DATA_OFFSET
        )
        assert volume.saved_head.size >= min(volume.shift + layout.areas_start, volume.source_size)
        assert volume.saved_head.size <= volume.source_size
    assert plan.root.saved_tree.size == plan.root.tree.size


@given(machines())
def test_the_volume_has_room_for_source_and_tail(machine: tuple[Disk, Source, Source]) -> None:
    _, plan = accepted(*machine)
    for volume in plan.volumes:
        layout = Layout.planned(
            sector_size=volume.sector_size, journal_bytes=JOURNAL_SIZE, data_offset=DATA_OFFSET
        )
        assert layout.device_bytes_for(volume.source_size + TAIL_SIZE) <= volume.partition.size


@given(machines())
def test_boot_grows_only_over_what_is_saved_of_root(machine: tuple[Disk, Source, Source]) -> None:
    found, plan = accepted(*machine)
    boot, root = (found.partitions[name] for name in ("boot", "root"))
    shift = plan.root.shift
    assert (plan.boot.partition.offset, plan.root.partition.offset) == (boot.start, root.start + shift)
    assert plan.boot.partition.size == boot.size + shift
    assert plan.boot.partition.offset + plan.boot.partition.size <= plan.root.partition.offset
    assert shift <= plan.root.saved_head.size
    assert shift % MIB == plan.boot.shift == 0


@given(machines())
def test_the_grown_root_leaves_the_backup_partition_table_alone(machine: tuple[Disk, Source, Source]) -> None:
    found, plan = accepted(*machine)
    root = found.partitions["root"]
    backup = found.size - GPT_BLOCKS[found.block_size] * found.block_size
    grown = plan.root.partition
    assert root.end < grown.offset + grown.size <= backup
    assert (grown.offset + grown.size) % MIB == 0
    positions = [grown.offset, grown.size, plan.boot.partition.size]
    for volume in plan.volumes:
        for span in (volume.tree, volume.saved_head, volume.saved_tree):
            positions += [span.offset, span.size]
    assert all(position % found.block_size == 0 for position in positions)


@given(machines())
def test_the_missing_room_is_named_to_the_mib(machine: tuple[Disk, Source, Source]) -> None:
    found, boot, root = machine
    used = max(partition.end for partition in found.partitions.values())
    small = replace(found, size=used + GPT_BLOCKS[found.block_size] * found.block_size)
    with pytest.raises(Refusal) as refused:
        lay_out(small, boot, root, 0, KEY)
    needed = missing_mib(refused.value)
    for mib in {1, needed // 2, needed - 1} - {0, needed}:
        with pytest.raises(Refusal) as refused:
            lay_out(enlarged(small, mib), boot, root, 0, KEY)
        assert missing_mib(refused.value) == needed - mib
    lay_out(enlarged(small, needed), boot, root, 0, KEY)


LACKING = required_device_size(BOOT.size, 4096) - BOOT.size  # where boot's file system fills its partition
LACKING_MIB = -(-LACKING // MIB)


@pytest.mark.parametrize("room", [0, 1, LACKING_MIB - 1, LACKING_MIB, LACKING_MIB + 1])
def test_root_gives_what_boots_partition_lacks_and_no_more(room: int) -> None:
    plan = lay_out(disk(SIZES | {"boot": BOOT.size + room * MIB}, free=400 * MIB), BOOT, ROOT, 0, KEY)
    assert plan.root.shift == max(0, LACKING_MIB - room) * MIB
    assert plan.boot.partition.size == BOOT.size + max(LACKING_MIB, room) * MIB


def test_what_boot_lacks_is_needed_twice_at_the_end_of_the_disk() -> None:
    """Root begins later, and more of its start is saved."""
    roomy, tight = (disk(SIZES | {"boot": BOOT.size + room * MIB}) for room in (LACKING_MIB, 0))
    missing = []
    for each in (roomy, tight):
        with pytest.raises(Refusal) as refused:
            lay_out(each, BOOT, ROOT, 0, KEY)
        missing.append(missing_mib(refused.value))
    assert missing[1] - missing[0] == 2 * LACKING_MIB


@pytest.mark.parametrize(
    ("order", "room", "root"),
    [(("boot", "se", "root"), 1, ROOT.size), (("se", "boot", "root"), 0, (LACKING_MIB - 1) * MIB)],
)
def test_a_boot_partition_that_can_get_no_room_of_root_is_refused_and_names_what_is_missing(
    order: tuple[str, ...], room: int, root: int
) -> None:
    sizes = SIZES | {"boot": BOOT.size + room * MIB, "root": root}

    def laid_out(sizes: dict[str, int]) -> Plan:
        names = (*order, "boothash", "roothash")
        found = disk({name: sizes[name] for name in names}, free=400 * MIB)
        return lay_out(found, BOOT, source(sizes["root"]), 0, KEY)

    with pytest.raises(Refusal, match=rf"boot is too small by {LACKING_MIB - room} MiB") as refused:
        laid_out(sizes)
    assert refused.value.id == "SX-DISK-33"
    laid_out(sizes | {"boot": BOOT.size + LACKING_MIB * MIB})
    if order[0] == "se":
        laid_out(sizes | {"root": LACKING_MIB * MIB})


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (("se", "boot", "boothash", "root", "roothash"), "boothash does not lie behind root"),
        (("se", "boot", "roothash", "root", "boothash"), "roothash does not lie behind root"),
        (("se", "root", "boot", "boothash", "roothash"), "boot does not lie before root"),
    ],
)
def test_partitions_in_another_order_are_refused(order: tuple[str, ...], message: str) -> None:
    with pytest.raises(Refusal, match=message):
        lay_out(disk({name: SIZES[name] for name in order}, free=400 * MIB), BOOT, ROOT, 0, KEY)


@pytest.mark.parametrize(
    "order", [("se", "boot", "root", "roothash", "boothash"), ("boot", "se", "root", "boothash", "roothash")]
)
def test_the_order_of_the_others_does_not_matter(order: tuple[str, ...]) -> None:
    lay_out(disk({name: SIZES[name] for name in order}, free=400 * MIB), BOOT, ROOT, 0, KEY)


@pytest.mark.parametrize(("file_system", "volume"), [(512, 512), (1024, 512), (2048, 512), (4096, 4096)])
def test_the_volume_never_has_larger_sectors_than_its_file_system(file_system: int, volume: int) -> None:
    plan = lay_out(disk(SIZES, free=400 * MIB), BOOT, source(300 * MIB, sector_size=file_system), 0, KEY)
    assert plan.root.sector_size == volume


def test_small_sectors_need_more_room() -> None:
    needed = []
    for sector_size in (512, 4096):
        with pytest.raises(Refusal) as refused:
            lay_out(disk(SIZES), BOOT, source(300 * MIB, sector_size=sector_size), 0, KEY)
        needed.append(missing_mib(refused.value))
    assert needed[0] - needed[1] in range(15, 20)  # 32 bytes of tags a sector: 6.25 % against 0.78 %


def test_a_file_system_other_than_ext4_and_xfs_is_refused() -> None:
    for name in ("ext4", "xfs"):
        plan = lay_out(disk(SIZES, free=400 * MIB), BOOT, source(300 * MIB, type=name), 0, KEY)
        assert plan.root.file_system == name
    with pytest.raises(Refusal, match="file system of root is btrfs"):
        lay_out(disk(SIZES, free=400 * MIB), BOOT, source(300 * MIB, type="btrfs"), 0, KEY)


def test_a_short_source_is_saved_as_a_whole() -> None:
    plan = lay_out(disk(SIZES, free=400 * MIB), source(PAGE, type="ext4"), ROOT, 0, KEY)
    assert plan.boot.saved_head.size == PAGE
    assert MIB < plan.root.saved_head.size <= HEAD


@pytest.mark.parametrize("block_size", [512, 4096])
def test_root_grows_to_the_last_whole_mib_before_the_backup_table(block_size: int) -> None:
    exact = disk(SIZES, free=100 * MIB, block_size=block_size)
    whole = grown_root(exact)
    assert whole.offset == exact.partitions["root"].start
    assert whole.size == sum(SIZES[name] for name in ("root", "boothash", "roothash")) + 100 * MIB
    assert grown_root(replace(exact, size=exact.size - block_size)).size == whole.size - MIB


def test_the_plan_carries_what_identifies_each_volume() -> None:
    plan = lay_out(disk(SIZES, free=400 * MIB), BOOT, ROOT, 7 * MIB, KEY)
    assert (plan.boot.label, plan.root.label) == ("crypt_bootfs", "crypt_rootfs")
    assert (plan.headroom, plan.root.root_hash) == (7 * MIB, HASH)


def test_the_plan_knows_where_the_image_and_what_is_saved_lie() -> None:
    plan = lay_out(disk(SIZES, free=400 * MIB), BOOT, ROOT, 0, KEY)
    assert plan.image_end == sum(SIZES[name] for name in ("root", "boothash", "roothash"))
    saved = [plan.boot.saved_head, plan.root.saved_head, plan.root.saved_tree]
    assert plan.saved == Span(offset=saved[0].offset, size=sum(span.size for span in saved))
    assert plan.saved.offset + plan.saved.size == plan.root.partition.size


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = lay_out(disk(SIZES, free=400 * MIB), BOOT, ROOT, 0, KEY)
    path = tmp_path / "plan.json"
    path.write_text(plan.model_dump_json())
    assert Plan.load(path) == plan
    path.write_text(plan.model_dump_json().replace('"version":1', '"version":2'))
    with pytest.raises(ValidationError):
        Plan.load(path)


def test_a_printed_plan_does_not_show_the_record_key() -> None:
    plan = lay_out(disk(SIZES, free=400 * MIB), BOOT, ROOT, 0, KEY)
    assert plan.record_key == KEY
    assert KEY not in f"{plan!r} {plan}"


def test_a_partition_where_root_has_to_grow_is_refused() -> None:
    machine = disk(SIZES, free=200 * MIB)
    behind = Partition(7, "data", Path("/dev/vda7"), "uuid", machine.partitions["root"].end + MIB, MIB)
    with pytest.raises(Refusal, match="partition 7 'data' lies where root has to grow"):
        lay_out(replace(machine, others=(behind,)), BOOT, ROOT, 0, KEY)
    lay_out(replace(machine, others=(replace(behind, start=0),)), BOOT, ROOT, 0, KEY)
