"""A real overlayfs on an ext4 file system: what was written through it is taken over as it was seen."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import deployments, needs, plain

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.roots import kinds, overlay
from secex_firstboot.roots.kinds import Root
from secex_firstboot.storage import filesystem

pytestmark = needs.mounting("mkfs.ext4")


class PowerCut(Exception):
    pass


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A small root file system, mounted without an overlay."""
    image, where = tmp_path / "image", tmp_path / "root"
    with image.open("wb") as stream:
        stream.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    where.mkdir()
    subprocess.run(["mount", "-o", "loop", image, where], check=True)
    for name, content in {"etc/motd": "old", "etc/shells": "a\n", "etc/gone": "x", "opt/a/b": "b"}.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(content)
    (where / "etc/link").symlink_to("motd")
    (where / "boot").mkdir()
    try:
        yield where
    finally:
        for point in [*reversed(filesystem.mount_points_below(where)), *[where] * 2]:
            if filesystem.mount_sources(point):
                subprocess.run(["umount", point], check=True)


def begin(root: Path) -> None:
    overlay.mount(plain(root), root)
    assert overlay.is_mounted(plain(root), root)


def change(root: Path) -> None:
    """Changes of every kind that a files stage makes."""
    (root / "etc/motd").unlink()
    (root / "etc/motd").write_text("new")
    with (root / "etc/shells").open("a") as stream:
        stream.write("b\n")
    (root / "etc/gone").unlink()
    (root / "etc/link").unlink()
    (root / "etc/link").mkdir(mode=0o700)
    (root / "etc/link/inside").write_text("i")
    os.setxattr(root / "etc/link/inside", "user.mark", b"1")
    (root / "home/core/.ssh").mkdir(parents=True, mode=0o700)
    (root / "home/core/.ssh/keys").write_text("k")
    os.link(root / "home/core/.ssh/keys", root / "home/core/again")
    os.chown(root / "home/core", 1000, 1000)
    (root / "etc").chmod(0o711)
    shutil.rmtree(root / "opt/a")
    (root / "opt/a").mkdir()
    (root / "opt/a/c").write_text("c")


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below, but the overlay's own directory: mode, owner, attributes, links, content."""
    found: dict[str, tuple[object, ...]] = {}
    tops = [path for path in root.iterdir() if path.name not in (overlay.TOP, "lost+found")]
    for path in sorted([*tops, *(below for top in tops for below in top.rglob("*"))]):
        name = str(path.relative_to(root))
        status = path.lstat()
        attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path)}
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        links = 1 if path.is_dir() else status.st_nlink
        found[name] = (status.st_mode, status.st_uid, status.st_gid, links, attributes, content)
    return found


def test_what_was_seen_through_the_overlay_is_there_without_it(root: Path, tmp_path: Path) -> None:
    begin(root)
    change(root)
    seen = tree(root)
    overlay.take_over(plain(root), root, tmp_path)
    assert filesystem.mount_sources(root) != ["overlay"]
    assert tree(root) == seen
    overlay.remove(root)
    assert not (root / overlay.TOP).exists()


def test_what_is_mounted_below_stays_mounted(root: Path, tmp_path: Path) -> None:
    begin(root)
    subprocess.run(["mount", "-t", "tmpfs", "boot", root / "boot"], check=True)
    (root / "boot/kernel").write_text("k")
    overlay.take_over(plain(root), root, tmp_path)
    assert filesystem.mount_sources(root / "boot") == ["boot"]
    assert (root / "boot/kernel").read_text() == "k"
    assert not list(tmp_path.glob("mount-*"))


def test_what_lies_over_the_overlay_is_no_part_of_it(root: Path, tmp_path: Path) -> None:
    begin(root)
    subprocess.run(["mount", "-t", "tmpfs", "other", root], check=True)
    with pytest.raises(FirstbootError, match="something is mounted over what Ignition wrote to"):
        overlay.take_over(plain(root), root, tmp_path)
    subprocess.run(["umount", root], check=True)


def test_what_a_stage_left_that_did_not_end_is_dropped(root: Path) -> None:
    before = tree(root)
    begin(root)
    change(root)
    subprocess.run(["umount", root], check=True)
    assert not overlay.settle(plain(root))
    assert tree(root) == before
    assert not (root / overlay.TOP).exists()


def test_nothing_to_settle_is_nothing_done(root: Path) -> None:
    before = tree(root)
    assert not overlay.settle(plain(root))
    assert tree(root) == before


def test_after_a_cut_at_any_moment_of_taking_over_it_ends_as_it_was_seen(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(root)
    change(root)
    seen = tree(root)
    with monkeypatch.context() as patched:
        patched.setattr(overlay, "_merge", lambda root: None)
        overlay.take_over(plain(root), root, tmp_path)
    cuts = 0
    while True:
        with monkeypatch.context() as patched:
            cut_after(patched, 2)
            try:
                assert overlay.settle(plain(root))
                break
            except PowerCut:
                cuts += 1
    assert cuts >= 5
    assert tree(root) == seen


def cut_after(monkeypatch: pytest.MonkeyPatch, operations: int) -> None:
    """The power fails before one more change than these is made."""
    left = operations

    def guarded(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal left
            if not left:
                raise PowerCut
            left -= 1
            return original(*arguments, **options)

        return call

    for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "removexattr")):
        monkeypatch.setattr(owner, name, guarded(getattr(owner, name)))


@pytest.fixture
def deployed(root: Path) -> Root:
    """A deployment on that file system, which ostree-prepare-root(1) shows elsewhere."""
    (deployments.make(root) / "etc/motd").write_text("old")
    return kinds.on(root, deployments.ARGUMENT)


@pytest.mark.parametrize("ended", [False, True])
def test_of_a_deployment_etc_and_the_shared_var_are_taken_over_together_or_not_at_all(
    deployed: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    system = tmp_path / "system"
    system.mkdir()
    subprocess.run(["mount", "--bind", deployed.place(Path("/")), system], check=True)
    try:
        overlay.mount(deployed, system)
        (system / "etc/motd").write_text("new")
        (system / "var/home/core").mkdir(parents=True)
        if ended:  # the power fails as soon as that is on the disk
            monkeypatch.setattr(overlay, "_merge", lambda root: None)
            overlay.take_over(deployed, system, tmp_path)
            monkeypatch.undo()
        else:
            for name in ("etc", "var"):
                subprocess.run(["umount", system / name], check=True)
    finally:
        subprocess.run(["umount", "--recursive", system], check=True)
    assert overlay.settle(deployed) is ended
    assert deployed.place(Path("/etc/motd")).read_text() == ("new" if ended else "old")
    assert deployed.place(Path("/var/home/core")).is_dir() is ended
    overlay.remove(deployed.volume)
    assert not (deployed.volume / overlay.TOP).exists()
