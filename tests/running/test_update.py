"""When the boot image is made anew, and what a kill on the way leaves. Disk and builder are stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.machine import put

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.boot_image import Arguments
from secex_firstboot.contract.partitions import VOLUMES
from secex_firstboot.roots import system_image
from secex_firstboot.running import update
from secex_firstboot.sdboot import boot_record, contents
from secex_firstboot.storage import disk


class Killed(BaseException):
    pass


class Machine:
    """What was made, what starts, and where the next update is killed."""

    def __init__(self, root: Path) -> None:
        self.root, self.se = root, root / "se"
        self.built: list[str] = []
        self.starts = "first boot's"
        self.killed_at = ""

    def kill(self, at: str) -> None:
        if at == self.killed_at:
            self.killed_at = ""
            raise Killed

    def update(self) -> tuple[str, ...]:
        return update.in_system(Context(""), self.root)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in VOLUMES:
        for kind in ("", ".header", ".mode"):
            put(tmp_path / f"etc/luks/{name}{kind}", b"key")
    put(tmp_path / "etc/crypttab", b"boot PARTUUID=2 - luks\nroot PARTUUID=3 - luks\n")
    put(tmp_path / "boot/vmlinuz", b"kernel")
    put(tmp_path / "boot/loader/entries/a.conf", b"linux /vmlinuz\noptions quiet\n")
    system_image.remember(tmp_path, Arguments(), {}, {"ibm-z-hostkey-a": b"document"})
    system_image.record(tmp_path, system_image.find(tmp_path, tmp_path / "boot").made())
    made = Machine(tmp_path)
    made.se.mkdir()

    @contextmanager
    def mounted(found: object, where: Path) -> Iterator[Path]:
        yield made.se

    def build(
        context: Context, entry: object, se: Path, *, command_line: str, scratch: Path, **_: object
    ) -> None:
        made.kill("build")
        assert scratch.stat().st_mode & 0o777 == 0o700
        (scratch / "secret").write_bytes(b"key")
        made.built.append(command_line)

    def install(se: Path, found: object, scratch: Path) -> None:
        made.kill("install")
        made.starts = made.built[-1]
        made.kill("installed")

    monkeypatch.setattr(disk, "find_disk", lambda: None)
    monkeypatch.setattr(boot_record, "mounted", mounted)
    monkeypatch.setattr(boot_record, "settle", lambda se, found: None)
    monkeypatch.setattr(boot_record, "install", install)
    monkeypatch.setattr(contents, "build_sdboot", build)
    return made


def test_with_nothing_changed_nothing_is_made(machine: Machine) -> None:
    assert machine.update() == ()
    assert machine.built == []


def test_what_has_changed_is_in_the_next_start_and_named_once(machine: Machine) -> None:
    put(machine.root / "boot/loader/entries/b.conf", b"linux /vmlinuz\noptions loud\n")
    assert machine.update() == ("command line",)
    assert "loud" in machine.starts
    assert machine.update() == ()
    assert len(machine.built) == 1


def test_without_a_record_it_is_made(machine: Machine) -> None:
    (machine.root / "var/lib/secex-firstboot/boot-image/made.json").unlink()
    assert len(machine.update()) == 1
    assert len(machine.built) == 1
    assert machine.update() == ()


@pytest.mark.parametrize("at", ["build", "install", "installed"])
def test_killed_on_the_way_the_next_one_ends_well_and_no_secret_lies_about(machine: Machine, at: str) -> None:
    put(machine.root / "boot/vmlinuz", b"newer")
    machine.killed_at = at
    with pytest.raises(Killed):
        machine.update()
    assert machine.update() == ("kernel",)
    assert "quiet" in machine.starts
    assert not list(machine.root.rglob("secret"))


def test_no_room_is_refused_before_anything_is_written(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(machine.root / "boot/vmlinuz", b"newer")
    monkeypatch.setattr(contents, "_ROOM", 1 << 60)
    with pytest.raises(Refusal, match="partition se is too small by"):
        machine.update()
    assert machine.built == []


def test_a_system_that_first_boot_did_not_make_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="was not set up by secex-firstboot: it has no boot image to update"):
        update.in_system(Context(""), tmp_path)
