"""volumes: the config's LUKS volumes, before Ignition writes to them, and in the system.

Opening them is a stand-in.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from support import REPOSITORY, needs

from secex_firstboot.agent import luks_volumes, places
from secex_firstboot.agent.step import Context
from secex_firstboot.agent.steps.volumes import Volumes
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.contract.dry_run import State
from secex_firstboot.ignition import ownership
from secex_firstboot.storage import devicemapper, disk, reopen
from secex_firstboot.storage.disk import Disk

UUIDS = {"data": "0e4a2f11-6a0c-4a6e-9d1b-2b6f3a1d90d0", "my-logs": "1e4a2f11-6a0c-4a6e-9d1b-2b6f3a1d90d0"}
KEYS = {"data": "a2V5IG9mIGRhdGE=", "my-logs": "a2V5IG9mIGxvZ3M="}
IMAGES_CRYPTTAB = b"scratch /dev/vdz /dev/urandom swap\n"


class Machine:
    """Mappings by name, and with which key each was opened again."""

    def __init__(self) -> None:
        self.device = Path("/dev/null")
        self.opened: dict[str, bytes] = {}

    def reopen(self, name: str, device: Path, key: bytearray, header: Path, scratch: Path) -> None:
        assert device == self.device
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_bytes(
            f"header of {name}".encode().ljust(168, b"\0") + UUIDS[name].encode().ljust(40, b"\0")
        )
        self.opened[name] = bytes(key)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """After Ignition's disks stage, with two volumes in the config."""
    for name in ("STATE", "COMMITTED", "RUNTIME", "FILES_FINISHED", "SYSROOT", "IGNITION_MERGED_CONFIG"):
        monkeypatch.setattr(places, name, tmp_path / name)
    monkeypatch.setattr(places, "IGNITION_STATE", tmp_path / "state")
    found = Machine()
    monkeypatch.setattr(disk, "find_disk", lambda: Disk(Path("/dev/vda"), 1 << 30, 512, {}))
    monkeypatch.setattr(ownership, "device_numbers", lambda device: frozenset({1}))
    monkeypatch.setattr(reopen, "device_below", lambda name: found.device)
    monkeypatch.setattr(reopen, "reopen", found.reopen)
    monkeypatch.setattr(reopen, "is_open", lambda header, name: name in found.opened)
    monkeypatch.setattr(devicemapper, "crypt_mode", lambda name: f"CRYPT-LUKS2-{name} aes-xts-plain64")
    configure([{"name": name, "device": f"/dev/disk/{name}", "wipeVolume": True} for name in UUIDS])
    places.IGNITION_STATE.write_text(
        json.dumps({"luksPersistKeyFiles": {name: f"data:;base64,{key}" for name, key in KEYS.items()}})
    )
    places.COMMITTED.touch()
    (places.SYSROOT / "etc").mkdir(parents=True)
    (places.SYSROOT / "etc/crypttab").write_bytes(IMAGES_CRYPTTAB)
    return found


def configure(luks: list[dict[str, object]]) -> None:
    places.IGNITION_MERGED_CONFIG.write_text(
        json.dumps({"ignition": {"version": "3.3.0"}, "storage": {"luks": luks}})
    )


def test_volumes_are_opened_anew_with_the_keys_that_ignition_keeps(machine: Machine) -> None:
    step = Volumes()
    assert step.observe(Context("")).state is State.READY
    step.perform(Context(""))
    assert machine.opened == {"data": b"key of data", "my-logs": b"key of logs"}
    assert step.observe(Context("")).done
    del machine.opened["data"]
    assert step.observe(Context("")).state is State.READY


def test_volumes_wait_for_the_commit_point(machine: Machine) -> None:
    places.COMMITTED.unlink()
    assert Volumes().observe(Context("ignition.firstboot")).state is State.WAITING


def test_a_config_without_volumes_needs_nothing(machine: Machine) -> None:
    configure([])
    assert Volumes().observe(Context("")).done
    luks_volumes.add_to_system(places.SYSROOT)
    assert [path.name for path in (places.SYSROOT / "etc").iterdir()] == ["crypttab"]


def test_after_the_files_stage_the_system_has_what_it_needs(machine: Machine) -> None:
    places.FILES_FINISHED.touch()
    assert Volumes().observe(Context("")).done


def test_a_volume_without_a_key_is_an_error_by_its_place(machine: Machine) -> None:
    places.IGNITION_STATE.write_text(json.dumps({"luksPersistKeyFiles": {"data": "data:;base64,"}}))
    with pytest.raises(FirstbootError, match=re.escape("storage.luks[1]: Ignition has no key of it")):
        Volumes().perform(Context(""))


def test_a_volume_on_the_system_disk_is_not_touched(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = machine.device.stat().st_rdev
    monkeypatch.setattr(ownership, "device_numbers", lambda device: frozenset({number}))
    with pytest.raises(FirstbootError, match=re.escape("storage.luks[0]: it lies on the system disk")):
        Volumes().perform(Context(""))
    assert machine.opened == {}


def ignition_writes(machine: Machine, uuid: str = UUIDS["data"]) -> None:
    """What its files stage appends: filesystemEntries.go, createCrypttabEntries."""
    with (places.SYSROOT / "etc/crypttab").open("a") as crypttab:
        crypttab.write(
            f"data UUID={uuid} /etc/luks/data luks\nmy-logs UUID=x /etc/luks/my-logs luks,_netdev\n"
        )


def named_in(crypttab: str) -> list[str]:
    return [line.split()[0] for line in crypttab.splitlines() if not line.startswith("#")]


@needs.programs("systemd-escape")
def test_the_system_gets_headers_modes_checks_and_crypttab(machine: Machine) -> None:
    Volumes().perform(Context(""))
    ignition_writes(machine)
    luks_volumes.add_to_system(places.SYSROOT)
    etc = places.SYSROOT / "etc"
    assert (etc / "luks/data.header").read_bytes().startswith(b"header of data\0")
    assert all(path.stat().st_mode & 0o77 == 0 for path in (etc / "luks").iterdir())
    lines = [
        f"# secex-firstboot {name}: CRYPT-LUKS2-{name} aes-xts-plain64\n"
        f"{name} UUID={uuid} /etc/luks/{name} luks,header=/etc/luks/{name}.header,headless=yes\n"
        for name, uuid in UUIDS.items()
    ]
    assert (etc / "crypttab").read_bytes() == IMAGES_CRYPTTAB + "".join(lines).encode()
    for name in UUIDS:
        escaped = subprocess.run(
            ["systemd-escape", "--template=systemd-cryptsetup@.service", name], capture_output=True, text=True
        ).stdout.strip()
        drop_in = (etc / f"systemd/system/{escaped}.d/50-secex-firstboot.conf").read_text()
        assert f"\nExecStartPost=/usr/lib/secex-firstboot/check-volume {name}\n" in drop_in


def test_what_ignition_read_from_the_disk_adds_no_line_to_crypttab(machine: Machine) -> None:
    """It asks the header for its UUID once more, after the volume was proven."""
    Volumes().perform(Context(""))
    ignition_writes(machine, uuid="x\nconsole /dev/vdz none luks\n")
    luks_volumes.add_to_system(places.SYSROOT)
    crypttab = (places.SYSROOT / "etc/crypttab").read_text()
    assert named_in(crypttab) == ["scratch", *UUIDS]


def test_discards_pass_where_the_config_says_so(machine: Machine) -> None:
    configure([{"name": "data", "device": "/dev/vdb", "wipeVolume": True, "discard": True}])
    Volumes().perform(Context(""))
    luks_volumes.add_to_system(places.SYSROOT)
    assert (places.SYSROOT / "etc/crypttab").read_text().endswith(",headless=yes,discard\n")


def test_an_image_without_crypttab_gets_one(machine: Machine) -> None:
    (places.SYSROOT / "etc/crypttab").unlink()
    Volumes().perform(Context(""))
    ignition_writes(machine)
    luks_volumes.add_to_system(places.SYSROOT)
    crypttab = (places.SYSROOT / "etc/crypttab").read_text()
    assert named_in(crypttab) == list(UUIDS)


def test_the_system_has_the_check_that_its_units_name(tmp_path: Path) -> None:
    where = [f"DESTDIR={tmp_path}", "PYTHONDIR=/python", "PREFIX=/usr"]
    subprocess.run(["make", "--silent", "-C", REPOSITORY, "install", *where], check=True)
    check = tmp_path / "usr/lib/secex-firstboot/check-volume"
    assert check.read_bytes() == (REPOSITORY / "dracut/check-volume.sh").read_bytes()
    assert check.stat().st_mode & 0o777 == 0o755
