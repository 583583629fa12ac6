"""What is told of a provisioned guest: of one that runs, and of a root file system that is only mounted."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support import TEST_VECTORS, guest_root, needs, plain

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.contract.partitions import VOLUMES
from secex_firstboot.hostkeys import document
from secex_firstboot.running import status
from secex_firstboot.running.status import Growth, Mapping
from secex_firstboot.storage import cryptsetup, devicemapper
from secex_firstboot.storage.cryptsetup import VolumeDescription
from secex_firstboot.storage.mounted import Mounted

MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return guest_root.make(tmp_path)


@pytest.fixture
def running(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both volumes are open; the root file system has 60 of 64 MiB."""
    device = root / "device"
    with device.open("wb") as stream:
        stream.truncate(64 * MIB)
    monkeypatch.setattr(
        devicemapper,
        "find",
        lambda name: devicemapper.Mapping("253:1", name, "uuid") if name in guest_root.MODES else None,
    )
    monkeypatch.setattr(devicemapper, "device", lambda number: device)
    monkeypatch.setattr(devicemapper, "crypt_mode", guest_root.MODES.__getitem__)
    monkeypatch.setattr(Mounted, "size", lambda self: 60 * MIB)
    monkeypatch.setattr(Mounted, "find", lambda where, device: Mounted(where, device, "ext4", 4096))
    return root


def key_hash(name: str) -> str:
    return document.key_hash(
        document.parse(name, (TEST_VECTORS / f"se-image/host-{name}.crt").read_bytes())
    ).hex()


def show_keys(root: Path, *hashes: str) -> None:
    """As uv_keys_all() in arch/s390/kernel/uv.c does."""
    directory = root / "sys/firmware/uv/keys"
    directory.mkdir(parents=True)
    (directory / "all").write_text("".join(f"{each}\n" for each in [*hashes, "0" * 64]))


def test_a_system_that_first_boot_has_not_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="was not set up by secex-firstboot"):
        status.gather(plain(tmp_path), None)


def test_hosts_are_those_of_the_documents_by_the_hash_of_their_key(root: Path) -> None:
    found = status.gather(plain(root), None)
    assert [(host.name, host.hash) for host in found.hosts] == [
        (f"ibm-z-hostkey-{name}", key_hash(name)) for name in "ab"
    ]
    assert {host.this_machine for host in found.hosts} == {None}
    assert found.this_machine == ()
    assert all(host.expires and len(host.expires) == len("2026-01-01") for host in found.hosts)


def test_this_machine_is_named_if_the_kernel_tells_its_keys(root: Path) -> None:
    show_keys(root, key_hash("b"))
    found = status.gather(plain(root), None)
    assert [host.this_machine for host in found.hosts] == [False, True]
    assert found.this_machine == (key_hash("b"),)


def test_a_file_that_is_no_document_is_shown_as_one_and_said(root: Path) -> None:
    (root / "etc/se-hostkeys/ibm-z-hostkey-c").write_text("no certificate")
    found = status.gather(plain(root), None)
    assert [host.hash is None for host in found.hosts] == [False, False, True]
    assert any("ibm-z-hostkey-c is no X.509 certificate" in line for line in found.untold)


def test_the_boot_images_are_those_of_the_record_and_which_starts(root: Path) -> None:
    found = status.gather(plain(root), None).boot_images
    assert found
    assert (found.newest, found.fallback) == (guest_root.IMAGES.newest, guest_root.IMAGES.fallback)
    assert (found.running, found.starts) == (None, 2)


@pytest.mark.parametrize(("content", "says"), [(None, "there is no record of them"), ("{", "is none")])
def test_without_a_record_of_the_boot_images_that_is_said(root: Path, content: str | None, says: str) -> None:
    path = root / "etc/luks/boot-image/images.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    found = status.gather(plain(root), None)
    assert found.boot_images is None
    assert any(line.startswith("the boot images: ") and says in line for line in found.untold)


@needs.cryptsetup
def test_a_volume_is_described_by_its_header(root: Path) -> None:
    guest_root.make_headers(root)
    files = [root / f"etc/luks/{name}" for name in ("boot", "root", "my-data.header")]
    before = [file.read_bytes() for file in files]
    found = status.gather(plain(root), None)
    assert [(volume.name, volume.file) for volume in found.volumes] == [
        (file.name.removesuffix(".header"), f"/etc/luks/{file.name}") for file in files
    ]
    for volume in found.volumes:
        assert volume.header and volume.mapping is None
        assert replace(volume.header, uuid="") == status.Header("", "aes-xts-plain64", "none", 4096)
    assert [file.read_bytes() for file in files] == before


@needs.cryptsetup
def test_of_a_key_nothing_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest_root.make_headers(root)
    described: list[bytes] = []
    describe = cryptsetup.describe

    def noting(header: bytes) -> VolumeDescription:
        described.append(header)
        return describe(header)

    monkeypatch.setattr(cryptsetup, "describe", noting)
    status.gather(plain(root), None)
    files = [(root / f"etc/luks/{name}").read_bytes() for name in VOLUMES]
    assert all(file.endswith(b"key") for file in files)
    assert described[:2] == [file.removesuffix(b"key") for file in files]


@needs.cryptsetup
def test_a_header_that_is_half_spoiled_is_not_mended(root: Path) -> None:
    """There are two copies in it, and the library would write the other one anew."""
    guest_root.make_headers(root)
    header = root / "etc/luks/root"
    header.chmod(0o600)
    with header.open("r+b") as stream:
        stream.write(bytes(512))
    before = header.read_bytes()
    found = status.gather(plain(root), None)
    assert header.read_bytes() == before
    assert found.volumes[1].header  # by the other copy


def test_a_volume_without_a_header_is_said(root: Path) -> None:
    (root / "etc/luks/boot").unlink()
    found = status.gather(plain(root), None)
    assert [volume.header for volume in found.volumes] == [None, None]
    assert "/etc/luks/boot: is not there" in found.untold
    assert any(line.startswith("/etc/luks/root: ") for line in found.untold)


def test_of_a_root_that_is_only_mounted_nothing_of_this_machine_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devicemapper, "find", lambda name: pytest.fail("asked"))
    found = status.gather(plain(root), None)
    assert not found.running
    assert found.growth == Growth(None, True, None, None)
    assert any("is not the running system" in line for line in found.untold)


def test_in_the_running_system_mappings_and_growth_are_told(running: Path) -> None:
    found = status.gather(plain(running), Context("secex.grow=firstboot"))
    assert found.running and found.sealed
    assert [volume.mapping for volume in found.volumes] == [
        Mapping(f"/dev/mapper/{name}", 64 * MIB, True) for name in ("boot", "root")
    ]
    assert found.growth == Growth("firstboot", True, 60 * MIB, 64 * MIB)
    (running / "var/lib/secex-firstboot/grown").unlink()
    (running / "etc/luks/sealed").unlink()
    found = status.gather(plain(running), Context(""))
    assert (found.sealed, found.growth.grown, found.growth.setting) == (False, False, "background")


def test_a_volume_that_is_another_than_first_boot_made_is_said(running: Path) -> None:
    file = running / "etc/crypttab"
    file.write_text(file.read_text().replace("root aes", "root cipher_null"))
    found = status.gather(plain(running), Context(""))
    assert [volume.mapping and volume.mapping.as_recorded for volume in found.volumes] == [True, False]


def test_a_volume_that_is_not_open_has_no_mapping(running: Path) -> None:
    (running / "etc/luks/my-data.header").touch()
    found = status.gather(plain(running), Context(""))
    assert [volume.mapping is None for volume in found.volumes] == [False, False, True]


def test_what_fails_is_said_and_the_rest_is_told(running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FirstbootError("SX-TEST-01", "no", "really")

    monkeypatch.setattr(devicemapper, "crypt_mode", fail)
    monkeypatch.setattr(Mounted, "find", fail)
    found = status.gather(plain(running), Context("secex.grow=never"))
    assert [volume.mapping for volume in found.volumes] == [
        Mapping(f"/dev/mapper/{name}", 64 * MIB, None) for name in ("boot", "root")
    ]
    assert found.growth == Growth(None, True, None, 64 * MIB)
    assert "the table of root: no: really [SX-TEST-01]" in found.untold
    assert "the size of the root file system: no: really [SX-TEST-01]" in found.untold
    assert any(line.startswith("when root grows: ") for line in found.untold)


def test_versions_are_those_of_the_files_that_are_installed(root: Path) -> None:
    found = status.gather(plain(root), None).versions
    assert (found.kernel, found.kernels) == ("6.12.1-s390x", ("6.12.1-s390x",))
    assert (found.dracut, found.systemd) == ("106-6", "257")


@pytest.mark.parametrize(
    ("directory", "name", "version"),
    [
        ("usr/lib/systemd", "libsystemd-shared-258.2-1.fc43.so", "258.2-1.fc43"),
        ("usr/lib64/systemd", "libsystemd-shared-262~rc1.so", "262~rc1"),
    ],
)
def test_systemd_is_found_where_other_distributions_have_it(
    root: Path, directory: str, name: str, version: str
) -> None:
    shutil.rmtree(root / "usr/lib/s390x-linux-gnu")
    (root / directory).mkdir(parents=True)
    (root / directory / name).touch()
    assert status.gather(plain(root), None).versions.systemd == version


def test_what_is_not_installed_has_no_version(root: Path) -> None:
    shutil.rmtree(root / "usr")
    found = status.gather(plain(root), None).versions
    assert (found.kernels, found.dracut, found.systemd) == ((), None, None)


def test_the_report_of_first_boot_is_read(root: Path) -> None:
    assert status.gather(plain(root), None).first_boot == guest_root.REPORT
    (root / "var/lib/secex-firstboot/report.json").unlink()
    found = status.gather(plain(root), None)
    assert found.first_boot is None
    assert not any("report.json" in line for line in found.untold)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"steps": [{"name": "x", "seconds": NaN, "outcome": ""}]}', '{"warnings": 1}']
)
def test_a_report_that_is_none_is_said_and_not_quoted(root: Path, content: str) -> None:
    (root / "var/lib/secex-firstboot/report.json").write_text(content)
    found = status.gather(plain(root), None)
    assert found.first_boot is None
    assert "/var/lib/secex-firstboot/report.json: is no report of a first boot" in found.untold


@pytest.mark.parametrize(
    "name",
    [
        "var/lib/secex-firstboot/report.json",
        "etc/se-hostkeys/ibm-z-hostkey-a",
        "etc/luks/my-data.header",
        "usr/lib/dracut/dracut-version.sh",
        "proc/sys/kernel/osrelease",
    ],
)
def test_a_file_of_any_size_or_kind_is_read_up_to_a_limit(root: Path, name: str) -> None:
    path, shown = root / name, f"/{name}: "
    path.unlink(missing_ok=True)
    with path.open("wb") as stream:
        stream.truncate(1 << 40)  # sparse
    assert any(line.startswith(f"{shown}is larger than") for line in status.gather(plain(root), None).untold)
    path.unlink()
    os.mkfifo(path)  # whoever opens one waits for a writer
    assert f"{shown}is no regular file" in status.gather(plain(root), None).untold
    path.unlink()
    path.symlink_to("/etc/hostname")
    assert f"{shown}leads out of the root" in status.gather(plain(root), None).untold


def test_of_many_documents_some_are_shown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_ENTRIES_LIMIT", 1)
    found = status.gather(plain(root), None)
    assert len(found.hosts) == 1
    assert "/etc/se-hostkeys: only 1 of 2 are shown" in found.untold
    monkeypatch.setattr(status, "_NAMES_LIMIT", 1)
    found = status.gather(plain(root), None)
    assert found.hosts == ()
    assert "/etc/se-hostkeys: holds more than 1 names" in found.untold
