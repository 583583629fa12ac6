"""What is left on partition se for recovery keys, with each boot image. gpg is real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import TEST_VECTORS, recovery_keys
from support.recovery_keys import Owner

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.boot_image import Image
from secex_firstboot.contract.recovery import MESSAGE, Recovery
from secex_firstboot.roots import recovery
from secex_firstboot.roots.system_image import SystemImage
from secex_firstboot.sdboot.boot_entry import BootEntry
from secex_firstboot.storage.disk import Disk, Partition

OPENS = {"boot": b"header and key of boot", "root": b"header and key of root"}
UUIDS = {name: f"0e4a2f11-6a0c-4a6e-9d1b-2b6f3a1d90d{number}" for number, name in enumerate(OPENS)}
DISK = Disk.of(
    Path("/dev/vda"),
    1 << 30,
    512,
    [
        Partition(number, name, Path("/dev/vda"), UUIDS[name], 0, 0)
        for number, name in ((3, "boot"), (4, "root"))
    ],
)
MADE = Image(generation=7, identity="", kernel="6.12", inputs={}, command_line="quiet secex.generation=7")
HOST = TEST_VECTORS / "se-image/host-a.crt"


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    yield from recovery_keys.owner(monkeypatch)


def leave(se: Path, keys: dict[str, bytes]) -> list[str]:
    said: list[str] = []
    image = SystemImage(
        entry=BootEntry("", "", Path("vmlinuz"), (), ""),
        command_line="quiet",
        files={f"/etc/luks/{name}": content for name, content in OPENS.items()} | {"/etc/crypttab": b""},
        documents={"ibm-z-hostkey-a": HOST.read_bytes()},
        recovery_keys=keys,
        deployment="",
    )
    recovery.leave(Context("", say=said.append), se, DISK, image, MADE)
    return said


def test_the_owner_finds_there_what_opens_both_volumes(owner: Owner, tmp_path: Path) -> None:
    keys = {f"{name}.asc": owner.key(name) for name in ("first", "second")}
    leave(tmp_path, keys)
    found = Recovery.parse(owner.reads((tmp_path / MESSAGE).read_bytes(), tmp_path))
    assert {name: volume.opens for name, volume in found.volumes.items()} == OPENS
    assert {name: volume.partition for name, volume in found.volumes.items()} == UUIDS
    assert (found.generation, found.kernel, found.command_line) == (7, "6.12", MADE.command_line)
    assert len(found.hosts) == 1
    assert not [part for part in OPENS.values() if part in (tmp_path / MESSAGE).read_bytes()]


def test_without_recovery_keys_nothing_is_left_nor_stays(tmp_path: Path) -> None:
    (tmp_path / MESSAGE).write_bytes(b"from before")
    leave(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_has_expired_since_stops_nothing_and_what_it_opens_stays(
    owner: Owner, tmp_path: Path
) -> None:
    keys = {"expired.asc": owner.expired("expired")}
    with pytest.raises(Refusal, match=r"gpg does not encrypt to expired\.asc"):
        leave(tmp_path, keys)
    (tmp_path / MESSAGE).write_bytes(b"from before")
    assert leave(tmp_path, keys)[0].startswith(
        f"{MESSAGE} stays as it was: gpg does not encrypt to expired.asc"
    )
    assert (tmp_path / MESSAGE).read_bytes() == b"from before"
