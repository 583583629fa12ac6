"""A root file system is taken from a directory, a tar or a disk image, with all that belongs to its files."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support import needs, se_tree
from support.builds import CONTEXT, disk, parted

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.builder import tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = se_tree.make(tmp_path / "source")
    for name in ("dev", "proc", "run", "sys", "tmp"):
        (made / name).mkdir()
        (made / name / "of a running system").write_text("no part of an image")
    (made / "usr/bin/program").chmod(0o4711)
    os.utime(made / "usr/bin/program", (1_600_000_000, 1_600_000_000))
    return made


def looked_at(directory: Path) -> None:
    """Whatever it was made of."""
    program = directory / "usr/bin/program"
    assert program.stat().st_mode & 0o7777 == 0o4711
    assert program.stat().st_mtime == 1_600_000_000
    assert program.samefile(directory / "usr/bin/hard-link")
    assert (directory / "usr/bin/link").readlink() == Path("program")
    assert (directory / f"boot/vmlinuz-{se_tree.RELEASE}").exists()
    for name in ("dev", "proc", "run", "sys", "tmp"):
        assert list((directory / name).iterdir()) == []
    assert (directory / "tmp").stat().st_mode & 0o7777 == 0o1777


def unpacked(source: Path, target: Path) -> Path:
    tree.unpack(CONTEXT, source, target)
    return target


def test_from_a_directory(source: Path, tmp_path: Path) -> None:
    looked_at(unpacked(source, tmp_path / "tree"))
    assert (source / "run/of a running system").exists()


@pytest.mark.parametrize("form", ["w", "w:gz", pytest.param("w:xz", marks=needs.programs("xz"))])
@pytest.mark.parametrize("top", [".", ""])
def test_from_a_tar(form: str, top: str, source: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    with tarfile.open(packed, form) as archive:  # type: ignore[call-overload]
        for path in sorted(source.iterdir()):
            archive.add(path, f"./{path.name}" if top else path.name)
    looked_at(unpacked(packed, tmp_path / "tree"))


def test_a_tar_leads_nowhere_else(source: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.tar"
    with tarfile.open(packed, "w") as archive:
        archive.add(source, ".")
        link = tarfile.TarInfo("./etc/outside")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("./etc/outside/written"))
        archive.addfile(tarfile.TarInfo("../above"))
    with contextlib.suppress(Refusal):
        unpacked(packed, tmp_path / "tree")
    assert not (tmp_path / "written").exists()
    assert not (tmp_path / "above").exists()


WITH_DISKS = needs.mounting("mkfs.ext4", "sfdisk", "qemu-img")


@WITH_DISKS
@pytest.mark.parametrize("form", ["raw", "qcow2"])
@pytest.mark.parametrize("own_boot", [True, False])
def test_from_a_disk_image_with_or_without_a_boot_partition(
    form: str, own_boot: bool, source: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    if own_boot:
        root, boot = parted(source)
        made = disk(tmp_path / "disk.raw", [("ext4", boot), ("ext4", empty), ("ext4", root)])
    else:
        made = disk(tmp_path / "disk.raw", [("ext4", empty), ("ext4", source)])
    if form == "qcow2":
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", made, tmp_path / "disk.qcow2"], check=True)
        made = tmp_path / "disk.qcow2"
    looked_at(unpacked(made, tmp_path / "tree"))


def two_roots(source: Path, directory: Path) -> Path:
    return disk(directory / "disk.raw", [("ext4", source), ("ext4", source)])


def two_boots(source: Path, directory: Path) -> Path:
    root, boot = parted(source)
    return disk(directory / "disk.raw", [("ext4", boot), ("ext4", boot), ("ext4", root)])


def no_root(source: Path, directory: Path) -> Path:
    return disk(directory / "disk.raw", [("ext4", source / "boot")])


def cut_short(source: Path, directory: Path) -> Path:
    made, cut = disk(directory / "disk.raw", [("ext4", source)]), directory / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", made, cut], check=True)
    os.truncate(cut, cut.stat().st_size // 2)
    return cut


def with_a_backing_file(source: Path, directory: Path) -> Path:
    made, part = disk(directory / "disk.raw", [("ext4", source)]), directory / "part.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", made, part], check=True)
    return part


@WITH_DISKS
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (two_roots, "has 2 root file systems"),
        (two_boots, "has 2 boot partitions"),
        (no_root, "has no root file system: no /etc and /usr"),
        (cut_short, r"is damaged: qemu-img failed|has no root file system|no sound partition table"),
        (with_a_backing_file, "is a part of an image, and names the file with the rest"),
    ],
)
def test_a_disk_image_that_has_not_one_root_is_refused(
    make: Callable[[Path, Path], Path], says: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(FirstbootError, match=says):
        unpacked(make(source, tmp_path), tmp_path / "tree")
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(tmp_path) not in mounts
