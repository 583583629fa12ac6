"""What of libcryptsetup runs without device-mapper; the rest runs in the guest."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support import needs

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.storage import devicemapper, encrypted
from secex_firstboot.storage.cryptsetup import HEADER_SIZE, CryptSetup, CryptSetupError, close
from secex_firstboot.storage.encrypted import Secrets

MIB = 1 << 20
KEY = bytearray(range(64))

pytestmark = needs.cryptsetup
without_device_mapper = pytest.mark.skipif(
    "device-mapper" in Path("/proc/devices").read_text(), reason="device-mapper would do it here"
)


@pytest.fixture
def luks(tmp_path: Path) -> Path:
    """A LUKS2 file that cryptsetup itself made (without dm-integrity, which needs the kernel's help)."""
    path = tmp_path / "luks"
    path.touch()
    os.truncate(path, 32 * MIB)
    options = "--type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --label crypt_test --key-size 512"
    options += " --sector-size 4096 --luks2-metadata-size 16k --luks2-keyslots-size 512k --offset 8192"
    argv = ["cryptsetup", "luksFormat", *options.split(), "--batch-mode", "--key-file", "-", str(path)]
    subprocess.run(argv, input=KEY, check=True)
    return path


def test_a_luks2_header_describes_its_volume(luks: Path) -> None:
    with CryptSetup(luks) as handle:
        seen = handle.load_luks2()
    uuid = subprocess.run(
        ["cryptsetup", "luksUUID", str(luks)], capture_output=True, text=True
    ).stdout.strip()
    assert (seen.uuid, seen.label) == (uuid, "crypt_test")
    assert (seen.cipher, seen.integrity, seen.tag_size) == ("aes-xts-plain64", "none", 0)
    assert (seen.volume_key_size, seen.sector_size, seen.data_offset) == (64, 4096, 4 * MIB)


def test_a_header_backup_is_small_and_serves_as_detached_header(luks: Path, tmp_path: Path) -> None:
    backup = tmp_path / "header"
    with CryptSetup(luks) as handle:
        described = handle.load_luks2()
        handle.backup_header(backup)
    assert backup.stat().st_size == HEADER_SIZE
    with luks.open("r+b") as disk:
        disk.write(bytes(MIB))
    with CryptSetup(luks, header=backup) as handle:
        assert handle.load_luks2() == described
    with CryptSetup(luks) as handle, pytest.raises(CryptSetupError):
        handle.load_luks2()


def test_one_file_with_header_and_key_opens_the_volume_as_crypttab_says(luks: Path, tmp_path: Path) -> None:
    """Options of crypttab(5) have the names that cryptsetup-open(8) has."""
    files, one = Secrets.below(tmp_path), tmp_path / "one"
    with CryptSetup(luks) as handle:
        handle.load_luks2()
        handle.backup_header(files.header)
    files.key.write_bytes(KEY)
    one.write_bytes(files.in_one())
    with luks.open("r+b") as disk:
        disk.write(bytes(MIB))
    options = [f"--{option}" for option in encrypted.KEY_BEHIND_HEADER.split(",")]
    command = ["cryptsetup", "open", "--test-passphrase", f"--header={one}", f"--key-file={one}", str(luks)]
    subprocess.run([*command, *options], check=True)
    assert subprocess.run([*command, *options[:1], "--keyfile-size=63"]).returncode == 2


def test_a_header_backup_never_replaces_a_file(luks: Path, tmp_path: Path) -> None:
    backup = tmp_path / "header"
    backup.write_text("mine")
    with CryptSetup(luks) as handle:
        handle.load_luks2()
        with pytest.raises(CryptSetupError, match="exists"):
            handle.backup_header(backup)
    assert backup.read_text() == "mine"


def test_an_error_carries_the_words_of_the_library_and_errno(tmp_path: Path) -> None:
    with pytest.raises(CryptSetupError, match="no-such-device does not exist") as caught:
        CryptSetup(tmp_path / "no-such-device")
    assert caught.value.errno > 0
    assert isinstance(caught.value, FirstbootError)


def test_words_of_one_error_do_not_come_back_with_the_next(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with pytest.raises(CryptSetupError) as caught:
            CryptSetup(tmp_path / name)
    assert "first" not in caught.value.message
    assert "second" in caught.value.message


@without_device_mapper
def test_what_needs_device_mapper_fails_without_a_word_of_the_key(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.touch()
    os.truncate(device, 64 * MIB)
    key = bytearray(b"0123456789abcdef" * 4)
    with CryptSetup(device) as handle, pytest.raises(CryptSetupError, match="cannot format") as caught:
        handle.format_luks2(label="crypt_test", sector_size=4096, key=key, journal_bytes=MIB)
    assert "0123456789abcdef" not in str(caught.value) + repr(caught.value.args)


def test_an_impossible_sector_size_is_refused(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.touch()
    os.truncate(device, 64 * MIB)
    with CryptSetup(device) as handle, pytest.raises(CryptSetupError, match="sector size"):
        handle.format_luks2(label="crypt_test", sector_size=1000, key=KEY, journal_bytes=MIB)


def test_closing_what_is_not_open_does_nothing() -> None:
    close("secex-no-such-mapping")


def test_a_mapping_that_cannot_be_closed_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devicemapper, "BLOCK", tmp_path)
    mapping = tmp_path / "dm-0"
    (mapping / "dm").mkdir(parents=True)
    for name, content in {"dev": "253:0", "dm/name": "secex-no-such-mapping", "dm/uuid": ""}.items():
        (mapping / name).write_text(f"{content}\n")
    with pytest.raises(CryptSetupError, match="secex-no-such-mapping"):
        close("secex-no-such-mapping")


def test_zeros_go_to_the_range_and_nowhere_else(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.write_bytes(b"x" * 8 * MIB)
    seen: list[tuple[int, int]] = []
    with CryptSetup(device) as handle:
        handle.wipe_zero(2 * MIB, 3 * MIB, lambda *done: seen.append(done))
    assert device.read_bytes() == b"x" * 2 * MIB + bytes(3 * MIB) + b"x" * 3 * MIB
    assert seen[-1] == (3 * MIB, 3 * MIB)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_an_error_in_the_progress_callback_ends_zeroing(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.write_bytes(b"x" * 8 * MIB)

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with CryptSetup(device) as handle, pytest.raises(KeyboardInterrupt):
        handle.wipe_zero(0, 8 * MIB, stop)
    assert device.read_bytes().endswith(b"x" * 6 * MIB)
