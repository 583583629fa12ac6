"""Switching the boot record. zipl itself runs only on s390x, so in guests; here a stand-in writes what the
firmware needs: a boot record that names the boot map's content, and a boot map that names the image's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import needs

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.sdboot import boot_record
from secex_firstboot.storage import filesystem, loop
from secex_firstboot.storage.disk import Disk, Partition

pytestmark = needs.loop_devices

ZIPL = f"""#!{sys.executable}
import configparser, hashlib, os, re, sys
options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
images, default = [options.get("image")], "1"
if "config" in options:
    assert not os.path.exists(options["blsdir"])
    text = re.sub("^:(.*)$", r"[:\\1]", open(options["config"]).read(), flags=re.M)
    config = configparser.ConfigParser()
    config.read_string(text)
    menu = config[":" + options["menu"]]
    images = [config[menu[number]]["image"] for number in ("1", "2")]
    options, default = dict(menu), menu["default"]
assert options["targettype"] == "SCSI" and int(options["targetoffset"]) > 0
content = default.encode()
for image in images:
    content += hashlib.sha256(open(image, "rb").read()).digest()
boot_map = options["target"] + "/bootmap"
with open(boot_map + "~", "wb") as stream:
    stream.write(content)
os.rename(boot_map + "~", boot_map)
with open(options["targetbase"], "r+b") as device:
    device.write(hashlib.sha256(content).digest())
    if os.environ.get("ZIPL_WRITES_MORE"):
        device.seek(4096)
        device.write(b"more")
"""


class PowerCut(Exception):
    pass


@pytest.fixture
def se(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "zipl").write_text(ZIPL)
    (tools / "zipl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (tmp_path / "vda").write_bytes(bytes(2 << 20))
    where = tmp_path / "se"
    where.mkdir()
    (where / "sdboot").write_bytes(b"old")
    return where


@pytest.fixture
def disk(se: Path, tmp_path: Path) -> Disk:
    part = Partition(1, "se", tmp_path / "vda1", "uuid", 1 << 20, 1 << 20)
    found = Disk(tmp_path / "vda", 2 << 20, 512, {"se": part})
    (se / "sdboot").rename(se / "sdboot.new")
    boot_record.install(se, found, tmp_path)
    assert boots(se, found) == b"old"
    return found


def offers(se: Path, disk: Disk) -> tuple[list[bytes | None], int]:
    """The images that the boot record leads to, and which of them it starts, from 1 on.

    Blocks stay as long as one name of their file is left.
    """
    files = [path.read_bytes() for path in sorted(se.rglob("*")) if path.is_file()]
    by_digest = {hashlib.sha256(content).digest(): content for content in files}
    boot_map = by_digest[disk.device.read_bytes()[:32]]
    digests = [boot_map[at : at + 32] for at in range(1, len(boot_map), 32)]
    return [by_digest.get(digest) for digest in digests], int(boot_map[:1])


def boots(se: Path, disk: Disk) -> bytes | None:
    """The image that starts if nobody chooses."""
    images, default = offers(se, disk)
    return images[default - 1]


def test_the_new_image_boots_and_is_the_only_one(se: Path, disk: Disk, tmp_path: Path) -> None:
    (se / "sdboot.new").write_bytes(b"new")
    boot_record.install(se, disk, tmp_path)
    assert boots(se, disk) == b"new"
    assert sorted(path.name for path in se.iterdir()) == ["bootmap", "sdboot", "sdboot.kept"]


def test_all_else_on_the_disk_stays(se: Path, disk: Disk, tmp_path: Path) -> None:
    before = disk.device.read_bytes()
    (se / "sdboot.new").write_bytes(b"new")
    boot_record.install(se, disk, tmp_path)
    assert disk.device.read_bytes()[512:] == before[512:]


def test_a_zipl_that_writes_beyond_the_boot_record_is_refused_and_the_old_image_boots(
    se: Path, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIPL_WRITES_MORE", "1")
    (se / "sdboot.new").write_bytes(b"new")
    with pytest.raises(FirstbootError, match="zipl wrote more than the boot record"):
        boot_record.install(se, disk, tmp_path)
    assert boots(se, disk) == b"old"


def operations(monkeypatch: pytest.MonkeyPatch, cut_before: int) -> Callable[[], int]:
    """Cut the power before the given change of the disk; the result counts those that were made."""
    made = 0

    def guarded(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal made
            if made == cut_before:
                raise PowerCut
            made += 1
            return original(*arguments, **options)

        return call

    for owner, name in (
        (os, "link"), (os, "unlink"), (os, "rmdir"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir"),
        (boot_record, "run"), (boot_record, "sync"), (boot_record, "_write_record"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, guarded(getattr(owner, name)))
    return lambda: made


def switch(se: Path, disk: Disk, scratch: Path) -> None:
    boot_record.settle(se, disk)
    (se / "sdboot.new").write_bytes(b"new")
    boot_record.install(se, disk, scratch)


def test_after_a_cut_at_any_moment_one_of_the_two_boots_and_the_next_try_ends_well(
    se: Path, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for cut_before in range(1000):
        with monkeypatch.context() as patched:
            made = operations(patched, cut_before)
            try:
                switch(se, disk, tmp_path)
                break
            except PowerCut:
                pass
        outcomes.append(boots(se, disk))
        boot_record.settle(se, disk)
        assert boots(se, disk) == outcomes[-1] == (se / "sdboot").read_bytes()
        assert sorted(path.name for path in se.iterdir()) == ["bootmap", "sdboot", "sdboot.kept"]
        (se / "sdboot.new").write_bytes(b"old")
        boot_record.install(se, disk, tmp_path)
        assert boots(se, disk) == b"old"
    assert made() > 15
    assert outcomes[0] == b"old"
    assert outcomes[-1] == b"new"
    assert set(outcomes) == {b"old", b"new"}
    switched = [outcome == b"new" for outcome in outcomes]
    assert switched == sorted(switched)  # once switched, never back
    assert boots(se, disk) == b"new"


def test_a_partition_table_that_has_grown_does_not_hide_which_image_boots(
    se: Path, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise PowerCut

    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        patched.setattr(boot_record, "_write_record", cut)
        switch(se, disk, tmp_path)
    with disk.device.open("r+b") as stream:
        stream.seek(446)
        stream.write(b"the size of a larger disk")
    boot_record.settle(se, disk)
    assert boots(se, disk) == b"old" == (se / "sdboot").read_bytes()


def test_what_a_killed_zipl_leaves_is_removed(se: Path, disk: Disk) -> None:
    (se / "bootmap_temp.AbCdEf").write_bytes(b"half")
    boot_record.settle(se, disk)
    assert sorted(path.name for path in se.iterdir()) == ["bootmap", "sdboot", "sdboot.kept"]


# --- two images ---

Names = dict[str, bytes]


def names(se: Path) -> Names:
    assert (se / boot_record.KEPT).samefile(se / boot_record.IMAGE)
    return {
        path.name: path.read_bytes()
        for path in se.iterdir()
        if path.name not in (boot_record.BOOT_MAP, boot_record.KEPT)
    }


def try_new(se: Path, disk: Disk, scratch: Path, content: bytes, good: str = boot_record.IMAGE) -> None:
    (se / "sdboot.new").write_bytes(content)
    boot_record.install(se, disk, scratch, fallback=good, default=boot_record.FALLBACK_ENTRY)


def test_a_new_image_is_offered_and_the_last_good_one_starts(se: Path, disk: Disk, tmp_path: Path) -> None:
    try_new(se, disk, tmp_path, b"new")
    assert offers(se, disk) == ([b"new", b"old"], 2)
    assert names(se) == {"sdboot": b"new", "sdboot.old": b"old"}


def test_once_it_has_come_up_it_starts_and_the_other_stays(se: Path, disk: Disk, tmp_path: Path) -> None:
    try_new(se, disk, tmp_path, b"new")
    boot_record.choose(se, disk, tmp_path, boot_record.IMAGE_ENTRY)
    assert offers(se, disk) == ([b"new", b"old"], 1)
    assert names(se) == {"sdboot": b"new", "sdboot.old": b"old"}


def test_the_next_one_has_the_one_before_it_as_fallback(se: Path, disk: Disk, tmp_path: Path) -> None:
    try_new(se, disk, tmp_path, b"new")
    boot_record.choose(se, disk, tmp_path, boot_record.IMAGE_ENTRY)
    try_new(se, disk, tmp_path, b"newer")
    assert offers(se, disk) == ([b"newer", b"new"], 2)


def test_one_that_never_came_up_does_not_become_the_fallback(se: Path, disk: Disk, tmp_path: Path) -> None:
    try_new(se, disk, tmp_path, b"broken")
    try_new(se, disk, tmp_path, b"mended", good=boot_record.FALLBACK)
    assert offers(se, disk) == ([b"mended", b"old"], 2)


def test_without_a_fallback_one_image_is_left(se: Path, disk: Disk, tmp_path: Path) -> None:
    try_new(se, disk, tmp_path, b"new")
    (se / "sdboot.new").write_bytes(b"newer")
    boot_record.install(se, disk, tmp_path)
    assert offers(se, disk) == ([b"newer"], 1)
    assert names(se) == {"sdboot": b"newer"}


@pytest.mark.parametrize(("name", "content"), [(boot_record.IMAGE, b"new"), (boot_record.FALLBACK, b"old")])
def test_either_of_two_may_be_the_one_that_is_left(
    se: Path, disk: Disk, tmp_path: Path, name: str, content: bytes
) -> None:
    try_new(se, disk, tmp_path, b"new")
    boot_record.leave(se, disk, tmp_path, name)
    assert offers(se, disk) == ([content], 1)
    assert names(se) == {"sdboot": content}


CHANGES: dict[str, Callable[[Path, Disk, Path], None]] = {
    "tried": lambda se, disk, scratch: try_new(se, disk, scratch, b"newer"),
    "tried, after a broken one": lambda se, disk, scratch: try_new(
        se, disk, scratch, b"newer", boot_record.FALLBACK
    ),
    "confirmed": lambda se, disk, scratch: boot_record.choose(se, disk, scratch, boot_record.IMAGE_ENTRY),
    "alone": lambda se, disk, scratch: boot_record.leave(se, disk, scratch, boot_record.IMAGE),
    "the older one alone": lambda se, disk, scratch: boot_record.leave(
        se, disk, scratch, boot_record.FALLBACK
    ),
}


def copy(directory: Path, to: Path) -> None:
    """With several names of a file as they are."""
    subprocess.run(["cp", "--archive", directory, to], check=True)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_after_a_cut_at_any_moment_what_is_offered_and_its_names_are_the_old_or_the_new(
    se: Path,
    disk: Disk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, Disk, Path], None],
) -> None:
    try_new(se, disk, tmp_path, b"new")
    saved_se, saved_disk = tmp_path / "saved", disk.device.read_bytes()
    copy(se, saved_se)

    def begin() -> None:
        """With two images, of which the second starts."""
        shutil.rmtree(se)
        copy(saved_se, se)
        disk.device.write_bytes(saved_disk)

    before = offers(se, disk), names(se)
    change(se, disk, tmp_path)
    after = offers(se, disk), names(se)
    assert before != after
    seen = []
    for cut_before in range(1000):
        begin()
        with monkeypatch.context() as patched:
            operations(patched, cut_before)
            try:
                change(se, disk, tmp_path)
                break
            except PowerCut:
                pass
        offered = offers(se, disk)
        boot_record.settle(se, disk)
        seen.append((offers(se, disk), names(se)))
        assert seen[-1][0] == offered  # settling switches nothing
        assert seen[-1] in (before, after)
    assert seen[0] == before
    assert seen[-1] == after
    switched = [each == after for each in seen]
    assert switched == sorted(switched)


# --- another's image in place of the newest ---


def by_another(se: Path, disk: Disk, content: bytes = b"another's") -> None:
    """As libostree does it: the name goes before there is another image, and zipl is called for it alone."""
    (se / boot_record.IMAGE).unlink()
    (se / boot_record.IMAGE).write_bytes(content)
    boot_map = b"1" + hashlib.sha256(content).digest()
    (se / boot_record.BOOT_MAP).write_bytes(boot_map)
    with disk.device.open("r+b") as stream:
        stream.write(hashlib.sha256(boot_map).digest())


def test_anothers_image_starts_until_the_next_switch_and_ours_is_the_fallback(
    se: Path, disk: Disk, tmp_path: Path
) -> None:
    assert not boot_record.has_another(se)
    by_another(se, disk)
    boot_record.settle(se, disk)
    assert offers(se, disk) == ([b"another's"], 1)
    assert (se / boot_record.KEPT).read_bytes() == b"old"
    assert boot_record.has_another(se)
    try_new(se, disk, tmp_path, b"new")
    assert offers(se, disk) == ([b"new", b"old"], 2)
    assert names(se) == {"sdboot": b"new", "sdboot.old": b"old"}


def test_without_a_new_one_ours_takes_its_place_again(se: Path, disk: Disk, tmp_path: Path) -> None:
    by_another(se, disk)
    boot_record.settle(se, disk)
    boot_record.leave(se, disk, tmp_path, boot_record.IMAGE)
    assert offers(se, disk) == ([b"old"], 1)
    assert names(se) == {"sdboot": b"old"}


def test_after_a_cut_anothers_image_starts_or_ours(
    se: Path, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_another(se, disk)
    saved_se, saved_disk = tmp_path / "saved", disk.device.read_bytes()
    copy(se, saved_se)
    seen = []
    for cut_before in range(1000):
        shutil.rmtree(se)
        copy(saved_se, se)
        disk.device.write_bytes(saved_disk)
        with monkeypatch.context() as patched:
            operations(patched, cut_before)
            try:
                boot_record.settle(se, disk)
                try_new(se, disk, tmp_path, b"new")
                break
            except PowerCut:
                pass
        offered = offers(se, disk)
        boot_record.settle(se, disk)
        assert offers(se, disk) == offered
        seen.append(offered)
        try_new(se, disk, tmp_path, b"newer")  # of what is kept, the newest is the fallback
        kept = b"old" if offered == ([b"another's"], 1) else b"new"
        assert offers(se, disk) == ([b"newer", kept], 2)
    assert seen[0] == ([b"another's"], 1)
    assert seen[-1] == ([b"new", b"old"], 2)
    assert len({str(each) for each in seen}) == 2


# --- mounting it ---


@pytest.fixture
def partition(disk: Disk) -> Path:
    """With an ext4 on it."""
    needs.require("mkfs.ext4")
    device = disk.partitions["se"].device
    with device.open("wb") as stream:
        stream.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    return device


def loop_devices(partition: Path) -> list[str]:
    command = ["losetup", f"--associated={partition}", "--noheadings", "--output=NAME"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_what_one_that_was_killed_has_left_mounted_is_no_second_mount(
    disk: Disk, partition: Path, tmp_path: Path
) -> None:
    where = tmp_path / "mnt"
    left = boot_record.mounted(disk, where)
    (left.__enter__() / "of the killed one").write_bytes(b"whole")
    with boot_record.mounted(disk, where) as se:
        assert len(filesystem.mount_sources(where)) == len(loop_devices(partition)) == 1
        assert (se / "of the killed one").read_bytes() == b"whole"
    assert filesystem.mount_sources(where) == loop_devices(partition) == []
    with pytest.raises(FirstbootError):
        left.__exit__(None, None, None)  # there is nothing left to unmount


def test_a_partition_that_somebody_has_mounted_is_refused(
    disk: Disk, partition: Path, tmp_path: Path
) -> None:
    """As a block device of its own; here that is a loop device."""
    with loop.attached(partition, block_size=512) as device:
        part = dataclasses.replace(disk.partitions["se"], device=device)
        with (
            filesystem.mounted(device, tmp_path / "elsewhere", type="ext4"),
            pytest.raises(Refusal, match=f"partition se is mounted on {tmp_path}/elsewhere: umount "),
            boot_record.mounted(dataclasses.replace(disk, partitions={"se": part}), tmp_path / "mnt"),
        ):
            pass


def test_an_image_whose_name_was_removed_has_it_again(se: Path, disk: Disk) -> None:
    """As libostree before 2026.2 removes it, before there is another one."""
    (se / boot_record.IMAGE).unlink()
    boot_record.settle(se, disk)
    assert boots(se, disk) == b"old"
