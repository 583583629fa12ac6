"""Switching the boot record. zipl itself runs only on s390x, so in guests; here a stand-in writes what the
firmware needs: a boot record that names the boot map's content, and a boot map that names the image's.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import needs

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.sdboot import boot_record
from secex_firstboot.storage.disk import Disk, Partition

pytestmark = needs.loop_devices

ZIPL = f"""#!{sys.executable}
import hashlib, os, sys
options = dict(word.split("=", 1) for word in sys.argv[1:])
image = hashlib.sha256(open(options["--image"], "rb").read()).digest()
boot_map = options["--target"] + "/bootmap"
with open(boot_map + "~", "wb") as stream:
    stream.write(image)
os.rename(boot_map + "~", boot_map)
with open(options["--targetbase"], "r+b") as device:
    device.write(hashlib.sha256(image).digest())
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


def boots(se: Path, disk: Disk) -> bytes | None:
    """The image that the boot record starts: blocks stay as long as one name of their file is left."""
    files = [path.read_bytes() for path in sorted(se.rglob("*")) if path.is_file()]
    record = disk.device.read_bytes()[:32]
    image = next((content for content in files if hashlib.sha256(content).digest() == record), None)
    return next((content for content in files if hashlib.sha256(content).digest() == image), None)


def test_the_new_image_boots_and_is_the_only_one(se: Path, disk: Disk, tmp_path: Path) -> None:
    (se / "sdboot.new").write_bytes(b"new")
    boot_record.install(se, disk, tmp_path)
    assert boots(se, disk) == b"new"
    assert sorted(path.name for path in se.iterdir()) == ["bootmap", "sdboot"]


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
        assert sorted(path.name for path in se.iterdir()) == ["bootmap", "sdboot"]
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
    assert sorted(path.name for path in se.iterdir()) == ["bootmap", "sdboot"]
