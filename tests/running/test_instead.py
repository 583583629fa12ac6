"""What stands in place of pvimg and genprotimg: called as libostree and rdcore do it, and otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY, plain

from secex_firstboot.basic.context import Context
from secex_firstboot.running import instead, update
from secex_firstboot.storage import devicemapper, disk, filesystem
from secex_firstboot.storage.disk import Disk, Partition

# libostree, src/libostree/ostree-bootloader-zipl.c: since 2026.2, and before.
NEW = [
    *("create", "--verbose", "--kernel", "/boot/ostree/x/vmlinuz", "--ramdisk", "/proc/1/fd/9"),
    *("--parmfile", "/proc/1/fd/8", "-k", "/etc/se-hostkeys/ibm-z-hostkey-a", "--no-verify", "--overwrite"),
    *("--output", "{se}/sdboot"),
]
OLD = [
    *("-i", "/boot/x/vmlinuz", "-r", "/proc/1/fd/9", "-p", "/proc/1/fd/8", "-k", "/etc/a", "--no-verify"),
    *("-o", "{se}/sdboot"),
]


@pytest.fixture
def se(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Partition se, mounted there by libostree; the root file system below it is provisioned."""
    where, device = tmp_path / "sysroot/se", tmp_path / "vda1"
    (tmp_path / "etc/luks").mkdir(parents=True)
    (tmp_path / "etc/luks/root").touch()
    found = Disk(tmp_path / "vda", 1 << 30, 512, {"se": Partition(1, "se", device, "uuid", 0, 1 << 20)})
    monkeypatch.setattr(disk, "find_disk", lambda: found)
    monkeypatch.setattr(devicemapper, "number_of", lambda path: "252:1" if path == device else "252:0")
    monkeypatch.setattr(filesystem, "mounted_numbers", lambda path: ["252:1"] if path == where else [])
    monkeypatch.setattr(filesystem, "mount_sources", lambda path: ["/dev/vda1"] if path == where else [])
    return where


@pytest.mark.parametrize("words", [NEW, OLD, [*NEW[:-2], "--output={se}/sdboot"]])
def test_the_systems_own_image_is_made_as_by_an_update_and_se_is_the_callers_before_and_after(
    tmp_path: Path, se: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    did: list[str] = []
    monkeypatch.setattr(filesystem, "unmount", lambda where: did.append(f"umount {where}"))
    monkeypatch.setattr(instead, "run", lambda command: did.append(" ".join(map(str, command))))
    monkeypatch.setattr(update, "in_system", lambda context, root: did.append(f"update {root.volume}"))
    given = [word.format(se=se) for word in words]
    assert instead.is_the_systems(plain(tmp_path), given)
    instead.make(Context(""), plain(tmp_path), given)
    assert did == [f"umount {se}", f"update {tmp_path}", f"mount -t ext4 /dev/vda1 {se}"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--version"],
        ["create", "--output"],
        ["create", "--output", "/tmp/sdboot"],
        ["create", "--output", "{se}/another"],
        ["test", "{se}/sdboot"],
    ],
)
def test_any_other_call_is_not_ours(tmp_path: Path, se: Path, words: list[str]) -> None:
    assert not instead.is_the_systems(plain(tmp_path), [word.format(se=se) for word in words])


def test_nor_is_any_call_in_a_system_that_first_boot_did_not_set_up(tmp_path: Path, se: Path) -> None:
    (tmp_path / "etc/luks/root").unlink()
    assert not instead.is_the_systems(plain(tmp_path), [word.format(se=se) for word in NEW])


@pytest.mark.parametrize("installed", [False, True])
def test_it_is_handed_on_to_ibms_program_as_it_is_or_said_that_there_is_none(
    tmp_path: Path, installed: bool
) -> None:
    if installed:
        (tmp_path / "pvimg").write_text('#!/bin/sh\necho "$0: $*"; exit 7\n')
        (tmp_path / "pvimg").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['/x/pvimg', 'test', '-k', 'a b']\n"
         "from secex_firstboot.cli import instead; sys.exit(instead.main())"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    if installed:
        assert (done.returncode, done.stdout) == (7, f"{tmp_path}/pvimg: test -k a b\n")
    else:
        assert (done.returncode, done.stdout) == (127, "")
        assert done.stderr == "pvimg: it is not installed, and this is no boot image of this system\n"
