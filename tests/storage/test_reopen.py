"""A LUKS2 volume with a header of the host's, opened with one made here. cryptsetup itself makes the volumes.

The kernel of a build host need not have device-mapper: the opening itself runs in the guest
(vm-tests/test_owners_volumes.py), up to it everything is real here.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import null_header
from harness.tamper import rewrite_luks_header
from support import needs

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.storage import cryptsetup, devicemapper, reopen
from secex_firstboot.storage.cryptsetup import CryptSetup, CryptSetupError

pytestmark = needs.cryptsetup

MIB = 1 << 20
KEY = b"the owner's key, of any length"
OTHER = b"another one"


def run(*argv: str | Path, key: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["cryptsetup", *argv, "--key-file=-"], input=key, capture_output=True)


def make(path: Path, *options: str, key: bytes = KEY) -> Path:
    """As Ignition makes it, but for a key derivation that takes its time."""
    path.touch()
    os.truncate(path, 20 * MIB)
    quick = ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"]
    made = run("luksFormat", "--batch-mode", "--type=luks2", *quick, *options, path, key=key)
    assert made.returncode == 0, made.stderr
    return path


def opens(header: Path, key: bytes) -> bool:
    return run("open", "--test-passphrase", header, key=key).returncode == 0


def volume_key(header: Path, key: bytes = KEY) -> bytearray:
    with CryptSetup(header) as handle:
        handle.load_luks2()
        with handle.volume_key(bytearray(key)) as found:
            return bytearray(found)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return make(tmp_path / "disk", "--sector-size=4096", "--label=data")


@pytest.fixture
def reopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Opens a volume again; returns the header that was made. Device-mapper's part is a stand-in."""
    monkeypatch.setattr(devicemapper, "BLOCK", tmp_path / "block")
    monkeypatch.setattr(
        CryptSetup, "activate", lambda handle, name, key: activated.append((name, bytes(key)))
    )
    activated: list[tuple[str, bytes]] = []

    def reopen_it(disk: Path) -> Path:
        header, scratch = tmp_path / "headers/data.header", tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        try:
            reopen.reopen("data", disk, bytearray(KEY), header, scratch)
        finally:
            assert list(scratch.iterdir()) == []
        assert activated == [("data", KEY)]
        return header

    return reopen_it


def test_the_new_header_opens_the_same_volume(volume: Path, reopened: Callable[[Path], Path]) -> None:
    header = reopened(volume)
    assert opens(header, KEY)
    assert not opens(header, OTHER)
    assert volume_key(header) == volume_key(volume)
    with CryptSetup(volume) as old, CryptSetup(header) as new:
        before, after = old.load_luks2(), new.load_luks2()
    for same in ("uuid", "cipher", "integrity", "volume_key_size", "sector_size", "data_offset"):
        assert getattr(before, same) == getattr(after, same)
    assert cryptsetup.luks2_uuid(header) == before.uuid
    assert header.stat().st_size < MIB
    assert header.stat().st_mode & 0o777 == 0o600


def test_a_key_that_is_not_in_the_first_keyslot_is_found(
    volume: Path, reopened: Callable[[Path], Path]
) -> None:
    new = volume.with_name("new")
    new.write_bytes(OTHER)
    quick = ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"]
    assert run("luksAddKey", volume, "--new-keyfile", new, *quick, key=KEY).returncode == 0
    assert volume_key(volume, OTHER) == volume_key(volume)
    assert volume_key(reopened(volume)) == volume_key(volume)


# --- what the host does to the header between Ignition's format and this ---


def test_a_keyslot_that_every_key_opens_is_the_hosts(
    tmp_path: Path, reopened: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mapping's cipher would be the right one, and its volume key the host's.

    libcryptsetup up to 2.7 opens it where the kernel lends it a null cipher; a stand-in does that here.
    """
    library = cryptsetup._library()
    disk = tmp_path / "disk"
    null_header.make(disk)
    assert null_header.metadata(disk)["keyslots"]["0"]["area"]["encryption"] == "cipher_null-ecb"
    monkeypatch.setattr(library, "crypt_volume_key_get", lambda *_: 0)
    volume_key(make(tmp_path / "other", key=OTHER))
    with pytest.raises(CryptSetupError, match="opens no keyslot"):
        reopened(disk)


def test_a_header_of_the_hosts_own_is_refused(tmp_path: Path, reopened: Callable[[Path], Path]) -> None:
    with pytest.raises(CryptSetupError, match="opens no keyslot"):
        reopened(make(tmp_path / "disk", key=OTHER))


def test_a_null_cipher_for_the_data_is_refused(volume: Path, reopened: Callable[[Path], Path]) -> None:
    null_header.give_null_data(volume)
    assert opens(volume, KEY)
    with pytest.raises(FirstbootError, match="its header is not one that Ignition makes"):
        reopened(volume)


@pytest.mark.parametrize("option", ["--cipher=aes-cbc-essiv:sha256", "--key-size=256"])
def test_another_encryption_is_refused(tmp_path: Path, reopened: Callable[[Path], Path], option: str) -> None:
    with pytest.raises(FirstbootError) as refused:
        reopened(make(tmp_path / "disk", option))
    assert "start anew from the image" in refused.value.cure  # which has the config, by then


@pytest.mark.parametrize("uuid", [b"../../etc/x", b"a b\nroot /dev/vdb none luks", b"\xff\xfe", b""])
def test_a_uuid_that_is_none_is_refused(volume: Path, reopened: Callable[[Path], Path], uuid: bytes) -> None:
    """It would be a word of crypttab; Ignition writes there what it reads from the disk."""
    header = volume.read_bytes()
    volume.write_bytes(rewrite_luks_header(header, header[168:208], uuid.ljust(40, b"\0")))
    with pytest.raises(FirstbootError, match="its header is not one that Ignition makes"):
        reopened(volume)


def test_what_is_no_luks2_is_refused(tmp_path: Path, reopened: Callable[[Path], Path]) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(20 * MIB))
    with pytest.raises(CryptSetupError, match="cannot read the LUKS2 header"):
        reopened(disk)


# --- which mapping, which device ---


def put_mapping(tmp_path: Path, uuid: str) -> None:
    for name, content in {"dev": "253:0", "dm/name": "data", "dm/uuid": uuid}.items():
        path = tmp_path / "block/dm-0" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def test_the_device_is_the_one_that_the_mapping_lies_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    null = Path("/dev/null").stat().st_rdev
    number = f"{os.major(null)}:{os.minor(null)}"
    targets = [devicemapper.Target("crypt", ["aes-xts-plain64", ":64:logon:x", "0", number, "32768"])]
    monkeypatch.setattr(devicemapper, "BLOCK", tmp_path / "block")
    monkeypatch.setattr(devicemapper, "DEVICES", tmp_path / "devices")
    monkeypatch.setattr(devicemapper, "table", lambda name: targets)
    (tmp_path / "devices" / number).mkdir(parents=True)
    uevent = tmp_path / "devices" / number / "uevent"
    uevent.write_text("MAJOR=1\nMINOR=3\nDEVNAME=null\n")
    put_mapping(tmp_path, "CRYPT-LUKS2-0e4a-data")
    assert reopen.device_below("data") == Path("/dev/null")
    uevent.write_text("DEVNAME=zero\n")
    with pytest.raises(FirstbootError, match="is not the block device"):
        reopen.device_below("data")
    for uuid in ("CRYPT-PLAIN-data", "CRYPT-LUKS2-0e4a-database", "mpath-data", ""):
        put_mapping(tmp_path, uuid)
        with pytest.raises(FirstbootError, match="has not opened it as LUKS2"):
            reopen.device_below("data")
    put_mapping(tmp_path, "CRYPT-LUKS2-0e4a-data")
    targets[0] = devicemapper.Target("linear", ["1:3", "0"])
    with pytest.raises(FirstbootError, match="has not opened it as LUKS2"):
        reopen.device_below("data")


def test_an_open_volume_is_known_by_the_uuid_of_its_header(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devicemapper, "BLOCK", tmp_path / "block")
    assert not reopen.is_open(volume, "data")
    put_mapping(tmp_path, devicemapper.uuid_of("LUKS2", cryptsetup.luks2_uuid(volume), "data"))
    assert reopen.is_open(volume, "data")
    put_mapping(tmp_path, "CRYPT-LUKS2-0e4a-data")
    assert not reopen.is_open(volume, "data")
