"""``secex build``, ``seal``, ``adopt`` and ``inspect`` as they are called, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.site import Host
from support import REPOSITORY, needs, se_tree
from support.builds import small_disk

pytestmark = [
    needs.programs("mkfs.ext4", "debugfs", "veritysetup", "qemu-img", "sfdisk", "gpg", "unshare"),
    needs.root,
]
# A user namespace in which root is somebody without any right outside: no device, no loop, no mknod.
NOBODY = ["unshare", "--user", "--map-root-user"]


def command(*words: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "secex_firstboot.cli.secex", *words]


def secex(
    *words: str | Path, directory: Path, before: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [*(before or []), *command(*words)], cwd=directory, env=environment, capture_output=True, text=True
    )


def test_from_a_tree_to_an_adopted_image_without_any_right(
    tree: Path, hosts: dict[str, Host], tmp_path: Path
) -> None:
    first, mine = hosts["first"].document, hosts["mine"].document
    done = secex(
        *("build", tree, "--output", "linux", "--no-verify", "--hostkey", first),
        directory=tmp_path,
        before=NOBODY,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING: nothing proves that the host keys are those of IBM Z" in done.stderr
    assert f"kernel      {se_tree.RELEASE}" in done.stdout
    page = done.stdout[done.stdout.index("kernel      ") :]
    assert max(map(len, page.splitlines())) <= 100
    done = secex(
        *("adopt", "linux.qcow2", "--output", "mine", "--no-verify", "--hostkey", mine, "--json"),
        directory=tmp_path,
        before=NOBODY,
    )
    assert done.returncode == 0, done.stderr
    assert [each["document"] for each in json.loads(done.stdout)["host_keys"]] == ["mine.crt"]
    done = secex("inspect", "mine.qcow2", "--verify", "--hostkey", mine, directory=tmp_path, before=NOBODY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "SE-ready image" in done.stdout
    assert "for mine.crt: " in done.stdout
    assert done.stdout.count("proven") == 2
    done = secex("inspect", "mine.qcow2", "--json", directory=tmp_path)
    assert json.loads(done.stdout)["damage"] == []


def test_by_a_recipe_and_sealed_elsewhere(tree: Path, hosts: dict[str, Host], tmp_path: Path) -> None:
    recipe = tmp_path / "linux.toml"
    recipe.write_text(f'source = "{tree}"\noptions = "quiet"\n[trust]\nverify = false\n')
    done = secex("build", "--recipe", recipe, "--output", "linux", "--unsealed", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "none: the image is not sealed" in done.stdout
    assert secex("inspect", "linux.qcow2", directory=tmp_path).returncode == 1  # nothing would start
    done = secex(
        *("seal", "linux.qcow2", "--no-verify", "--hostkey", hosts["first"].document), directory=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "options     quiet root=/dev/mapper/root" in done.stdout
    assert secex("inspect", "linux.qcow2", "--verify", directory=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("build", "missing", "--output", "o"), "no host-key document is given: --hostkey FILE"),
        (("build", "--output", "o"), "source: Field required"),
        (("build", "--recipe", "missing", "--output", "o"), "missing cannot be read: No such file"),
        (
            ("adopt", "missing.qcow2", "--output", "o"),
            "missing.json cannot be read: it is missing or no regular file",
        ),
        (("inspect", "missing"), "missing is missing or no regular file"),
    ],
)
def test_what_is_refused_is_one_line_with_the_cure(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = secex(*words, directory=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("secex: ")
    assert says in line
    assert list(tmp_path.iterdir()) == []


@contextmanager
def begun(*words: str | Path, directory: Path, until: str) -> Iterator[subprocess.Popen[bytes]]:
    """A build that has come so far that this file is there."""
    with subprocess.Popen(
        command(*words),
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while not (directory / until).exists():
            assert process.poll() is None
            time.sleep(0.01)
        yield process


def test_a_build_that_is_told_to_end_leaves_nothing(
    tree: Path, hosts: dict[str, Host], tmp_path: Path
) -> None:
    (tmp_path / "linux.qcow2").write_text("old")
    first = hosts["first"].document
    words = ("build", tree, "--output", "linux", "--no-verify", "--hostkey", first)
    with begun(*words, directory=tmp_path, until="linux.unfinished/root") as process:
        process.terminate()
    assert process.returncode == 128 + 15
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"linux.qcow2": "old"}


def test_a_killed_build_keeps_the_old_image_and_the_next_one_starts_anew(
    tree: Path, hosts: dict[str, Host], tmp_path: Path
) -> None:
    """What it had started may go on for a moment: until that has ended, the next one is told to wait."""
    (tmp_path / "linux.qcow2").write_text("old")
    first = hosts["first"].document
    words = ("build", tree, "--output", "linux", "--no-verify", "--hostkey", first)
    with begun(*words, directory=tmp_path, until="linux.unfinished/boot.img") as process:
        process.kill()
    assert {path.name for path in tmp_path.iterdir()} == {"linux.qcow2", "linux.unfinished"}
    assert (tmp_path / "linux.qcow2").read_text() == "old"
    done = secex(*words, directory=tmp_path)
    while "another build is at work" in done.stderr:
        done = secex(*words, directory=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        f"linux.{end}" for end in ("qcow2", "pub.asc", "json")
    }


@needs.mounting()
def test_what_is_unmounted_beside_a_build_is_not_mounted_in_it(
    tree: Path, hosts: dict[str, Host], tmp_path: Path
) -> None:
    """Else its device would stay busy until the build has ended."""
    shared, stick = tmp_path / "shared", tmp_path / "shared/stick"
    shared.mkdir()
    words = ("build", tree, "--output", "linux", "--no-verify", "--hostkey", hosts["first"].document)
    with small_disk(shared, 1):
        subprocess.run(["mount", "--make-shared", shared], check=True)
        stick.mkdir()
        with (
            small_disk(stick, 1),
            begun(*words, directory=tmp_path, until="linux.unfinished/root") as process,
        ):
            mounts = Path(f"/proc/{process.pid}/mounts")
            assert f" {stick} " in mounts.read_text()
            subprocess.run(["umount", stick], check=True)
            assert f" {stick} " not in mounts.read_text()
            subprocess.run(["mount", "-t", "tmpfs", "none", stick], check=True)
            process.terminate()


@needs.mounting()
@pytest.mark.parametrize("mib", [1, 2, 3, 4, 6])  # for all of it, 24 are enough
def test_a_full_disk_is_said_and_nothing_is_left(
    mib: int, tree: Path, hosts: dict[str, Host], tmp_path: Path
) -> None:
    first = hosts["first"].document
    words = ("build", tree, "--output", "linux", "--no-verify", "--hostkey", first)
    with small_disk(tmp_path, mib):
        (tmp_path / "linux.qcow2").write_text("old")
        done = secex(*words, directory=tmp_path)
        left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    *_, refusal = done.stderr.splitlines()
    assert done.returncode == 1
    assert refusal.startswith("secex: the image cannot be made: ")
    assert f": make sure that there is room in {tmp_path}" in refusal
    assert left == {"linux.qcow2": "old"}
