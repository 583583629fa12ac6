"""What the builder writes for the firmware is what the zipl of the tests' system writes, on loop devices."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import debian, raw_disk, se_ready
from harness.firstboot import make_site

from secex_firstboot.sdboot import boot_map
from secex_firstboot.sdboot.boot_map import Content, Program

SECTOR = 512


@contextmanager
def attached(file: Path, *limits: str) -> Iterator[Path]:
    command: list[str | Path] = ["losetup", "--find", "--show", *limits, file]
    device = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def run_zipl(disk: Path, tree: Path, directory: Path) -> None:
    """On the image that lies on partition se."""
    debian.register_binfmt()
    start, size = raw_disk.partition(disk, "se")
    with (
        debian.locked("image"),
        attached(disk, f"--offset={start}", f"--sizelimit={size}") as device,
        attached(disk) as whole,
    ):
        directory.mkdir()
        subprocess.run(["mount", device, directory], check=True)
        try:
            zipl = [
                *(
                    "zipl",
                    "--target=/mnt",
                    "--image=/mnt/sdboot",
                    f"--targetbase={whole}",
                    "--targettype=SCSI",
                ),
                *(f"--targetblocksize={SECTOR}", f"--targetoffset={start // SECTOR}"),
            ]
            command = debian.in_chroot(tree, *zipl, mounts={directory: "mnt"})
            subprocess.run(command, check=True, capture_output=True)
        finally:
            subprocess.run(["umount", directory], check=True)


def started(disk: Path) -> tuple[dict[int, Program], dict[int, bytes]]:
    """The programs, and what they load but for the image, by address."""

    def read(at: int, size: int) -> bytes:
        with disk.open("rb") as stream:
            stream.seek(at)
            return stream.read(size)

    programs = boot_map.read(read, blocks=disk.stat().st_size // SECTOR, block_size=SECTOR)
    loaded = {
        part.address: io.BufferedReader(Content(read, part, SECTOR)).read()
        for part in programs[0].components
        if part != programs[0].image
    }
    return programs, loaded


def test_the_builders_boot_map_is_zipls(tmp_path: Path) -> None:
    with make_site(tmp_path / "site", se_ready.SMALL) as (where, _):
        disk = raw_disk.convert(where.image, tmp_path / "disk.raw")
    ours, ours_loaded = started(disk)
    before = disk.open("rb").read(440)
    run_zipl(disk, where.tree, tmp_path / "se")
    zipls, zipls_loaded = started(disk)
    assert disk.open("rb").read(440) != before
    assert ours.keys() == zipls.keys() == {0}
    assert ours[0].psw == zipls[0].psw
    assert [part.address for part in ours[0].components] == [part.address for part in zipls[0].components]
    assert ours[0].image.extents == zipls[0].image.extents
    assert ours_loaded == zipls_loaded
