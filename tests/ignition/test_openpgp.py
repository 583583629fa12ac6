"""The OpenPGP message on the config disk, with the real gpg."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import TEST_VECTORS, needs
from support.openpgp_messages import (
    Gpg,
    Host,
    armored,
    can_unshare,
    compressed,
    confine,
    flipped,
    literal,
    packet,
    session_keys,
    with_a_home,
)

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import in_memory
from secex_firstboot.ignition import openpgp, packets

VECTORS = TEST_VECTORS / "openpgp"
CONFIG = b'{"ignition": {"version": "3.3.0"}}'


@pytest.fixture(autouse=True)
def confined(monkeypatch: pytest.MonkeyPatch) -> None:
    confine(monkeypatch)


@pytest.fixture(scope="module")
def gpg() -> Iterator[Gpg]:
    yield from with_a_home()


@pytest.fixture(scope="module")
def image_key(gpg: Gpg) -> bytes:
    return gpg.make_key("image")


@pytest.fixture(scope="module")
def other_key(gpg: Gpg) -> bytes:
    return gpg.make_key("other")


@pytest.fixture
def work() -> Iterator[Path]:
    """Short, as in the guest: gpg-agent's socket lies below."""
    with tempfile.TemporaryDirectory(prefix="fb-", dir="/tmp") as directory:
        Path(directory).chmod(0o711)  # as for /tmp, gpg's own user has to find its home below
        yield Path(directory)


def disk(directory: Path, content: bytes, size: int = 1 << 20) -> Path:
    """A config disk: the content, then zeros (a hole) up to the size."""
    path = directory / "disk"
    path.write_bytes(content)
    os.truncate(path, max(size, len(content)))
    return path


def content(message: BinaryIO) -> bytes:
    """What was read, which can be decrypted afterwards all the same."""
    text = message.read()
    message.seek(0)
    return text


def decrypt(message: bytes, key: Path, work: Path) -> bytes:
    """Decrypt what lies on a disk."""
    path = disk(work, message)
    try:
        return openpgp.decrypt(openpgp.read_message(path), key, work)
    finally:
        path.unlink()


def dearmored(armor: bytes) -> bytes:
    return subprocess.run(["gpg", "--dearmor"], input=armor, capture_output=True, check=True).stdout


def key_file(directory: Path, key: bytes) -> Path:
    path = directory / "ignition.asc"
    path.write_bytes(key)
    return path


# Finding the message.


@pytest.mark.parametrize("text", [CONFIG, bytes(range(256)) * 4096], ids=["small", "partial lengths"])
@pytest.mark.parametrize("to", [("image",), ("other", "image")], ids=["one recipient", "two"])
@pytest.mark.parametrize("armor", [[], ["--armor"]], ids=["binary", "armored"])
def test_a_padded_message_is_read_exactly_and_decrypted(
    gpg: Gpg,
    image_key: bytes,
    other_key: bytes,
    work: Path,
    text: bytes,
    to: tuple[str, ...],
    armor: list[str],
) -> None:
    message = gpg.encrypt(text, *armor, "--compress-algo", "none", to=to)
    read = openpgp.read_message(disk(work, message, size=4 << 20))
    assert content(read) == (dearmored(message) if armor else message)
    assert openpgp.decrypt(read, key_file(work, image_key), work) == text


def test_an_armor_with_headers_and_line_ends_of_another_system_is_read(
    gpg: Gpg, image_key: bytes, work: Path
) -> None:
    message = gpg.encrypt(CONFIG, "--armor", "--comment", "made elsewhere").replace(b"\n", b"\r\n")
    read = openpgp.read_message(disk(work, message))
    assert content(read) == dearmored(message)
    assert openpgp.decrypt(read, key_file(work, image_key), work) == CONFIG


def test_only_the_message_of_a_huge_disk_is_read(gpg: Gpg, image_key: bytes, work: Path) -> None:
    message = gpg.encrypt(CONFIG)
    assert content(openpgp.read_message(disk(work, message, size=1 << 40))) == message


def test_a_message_that_fills_the_disk_is_read(gpg: Gpg, image_key: bytes, work: Path) -> None:
    for armor in [], ["--armor"]:
        message = gpg.encrypt(CONFIG, *armor).removesuffix(b"\n")
        read = openpgp.read_message(disk(work, message, size=0))
        assert content(read) == (dearmored(message) if armor else message)


@st.composite
def framed(draw: st.DrawFn) -> bytes:
    """An encrypted message as far as framing goes, in every form of length; its body is mostly zeros."""

    def body(size: int) -> bytes:
        return draw(st.binary(min_size=0, max_size=min(size, 4))).ljust(size, b"\0")

    def old(tag: int, octets: int) -> bytes:
        size = draw(st.integers(0, min(256**octets - 1, 700)))
        return (
            bytes([0x80 | tag << 2 | {1: 0, 2: 1, 4: 2}[octets]]) + size.to_bytes(octets, "big") + body(size)
        )

    def length(size: int) -> bytes:
        if size < 192:
            return bytes([size])
        if size < 8384:
            return bytes([(size - 192 >> 8) + 192, size - 192 & 0xFF])
        return b"\xff" + size.to_bytes(4, "big")

    def new(tag: int, powers: list[int]) -> bytes:
        parts = b"".join(bytes([224 | power]) + body(1 << power) for power in powers)
        size = draw(st.sampled_from([0, 191, 192, 8383, 8384]))
        return bytes([0xC0 | tag]) + parts + length(size) + body(size)

    message = b""
    for tag in [*draw(st.lists(st.sampled_from([1, 3, 10]), max_size=3)), 1]:
        message += old(tag, draw(st.sampled_from([1, 2, 4]))) if draw(st.booleans()) else new(tag, [])
    tag = draw(st.sampled_from([9, 18, 20]))
    if tag == 9 and draw(st.booleans()):
        return message + old(tag, draw(st.sampled_from([1, 2, 4])))
    return message + new(tag, draw(st.lists(st.integers(0, 12), max_size=3)))


@settings(deadline=None)
@given(message=framed(), padding=st.integers(0, 600))
def test_zeros_at_the_end_of_a_ciphertext_belong_to_it(message: bytes, padding: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        assert (
            content(openpgp.read_message(disk(Path(directory), message, len(message) + padding))) == message
        )


@settings(deadline=None)
@given(message=framed(), data=st.data())
def test_a_message_cut_off_at_the_end_of_the_disk_is_refused(message: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(message) - 1))
    with tempfile.TemporaryDirectory() as directory, pytest.raises(Refusal):
        openpgp.read_message(disk(Path(directory), message[:cut], 0))


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda rest: b"\x84\x00" + rest)))
def test_nothing_but_a_refusal_comes_of_any_binary_disk(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        try:
            read = openpgp.read_message(disk(Path(directory), text, 0), limit=200)
            assert 0 < len(content(read)) <= min(len(text), 200)
        except Refusal as refusal:
            assert refusal.cure


@settings(deadline=None)
@given(st.binary(max_size=100), st.booleans())
def test_nothing_but_a_refusal_comes_of_any_armor(text: bytes, ended: bool) -> None:
    armor = b"-----BEGIN PGP MESSAGE-----\n\n" + text + (b"\n-----END PGP MESSAGE-----" if ended else b"")
    with tempfile.TemporaryDirectory() as directory, pytest.raises(Refusal):
        openpgp.read_message(disk(Path(directory), armor))


SESSION_KEY = packet(1, b"key")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (bytes(1 << 16), "is empty"),
        (b'{"ignition": {}}', "holds no OpenPGP message"),
        (b"-----BEGIN PGP SIGNED MESSAGE-----\n", "not an encrypted message"),
        (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n", "not an encrypted message"),
        (packet(11, b"literal"), "not an encrypted message"),
        (packet(18, b"no session key"), "not an encrypted message"),
        (SESSION_KEY + packet(11, b"literal"), "not an encrypted message"),
        (SESSION_KEY, "cut off"),
        (SESSION_KEY + bytes(512), "cut off"),
        (b"\x84\x00\xa7body", "does not say how long"),
        (b"-----BEGIN PGP MESSAGE-----\n\nhF4D\n", "cut off"),
        (b"-----BEGIN PGP MESSAGE-----\n\nhF4D!\n-----END PGP MESSAGE-----\n", "damaged"),
        (b"-----BEGIN PGP MESSAGE-----\n\nhF4D\n-----END PGP MESSAGE-----\n", "cut off"),
    ],
)
def test_a_disk_without_an_encrypted_message_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(Refusal, match=message) as refused:
        openpgp.read_message(disk(tmp_path, text, 0))
    assert refused.value.cure


def test_a_disk_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="No such file"):
        openpgp.read_message(tmp_path / "missing")


def test_a_binary_message_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    message = SESSION_KEY + packet(18, bytes(100))
    path = disk(tmp_path, message)
    assert content(openpgp.read_message(path, limit=len(message))) == message
    with pytest.raises(Refusal, match="larger than"):
        openpgp.read_message(path, limit=len(message) - 1)


def test_an_armored_message_larger_than_the_limit_is_refused(
    gpg: Gpg, image_key: bytes, tmp_path: Path
) -> None:
    message = gpg.encrypt(CONFIG, "--armor").removesuffix(b"\n")
    path = disk(tmp_path, message)
    assert content(openpgp.read_message(path, limit=len(message))) == dearmored(message)
    with pytest.raises(Refusal, match="larger than"):
        openpgp.read_message(path, limit=len(message) - 1)


def test_an_armor_without_end_is_not_read_beyond_the_limit(tmp_path: Path) -> None:
    armor = armored(packet(1, bytes(400_000)))[:500_000]
    with pytest.raises(Refusal, match="larger than"):
        openpgp.read_message(disk(tmp_path, armor), limit=100_000)
    with pytest.raises(Refusal, match="damaged"):  # no blank line, so nothing but the first piece is read
        openpgp.read_message(disk(tmp_path, armor.replace(b"\n\n", b"\n")), limit=100_000)


@pytest.mark.parametrize("armor", [[], ["--armor"]], ids=["binary", "armored"])
def test_each_byte_of_the_disk_is_read_once(
    gpg: Gpg, image_key: bytes, work: Path, armor: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host answers differently the second time."""
    message = gpg.encrypt(os.urandom(300_000), *armor, "--compress-algo=none")
    path, opened, places = disk(work, message), list[io.FileIO](), list[int]()

    class Disk(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            places.append(self.tell())
            return super().read(size) or b""

        def seek(self, place: int, whence: int = 0) -> int:
            raise AssertionError("nothing is read again")

    def open_once(self: Path, mode: str) -> BinaryIO:
        assert self == path and not opened
        opened.append(Disk(self, mode))
        return cast(BinaryIO, opened[0])

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_once)
        read = openpgp.read_message(path)
    assert opened[0].closed
    assert len(places) > 3 and places == sorted(set(places))
    path.unlink()
    assert len(openpgp.decrypt(read, key_file(work, image_key), work)) == 300_000


# What lies behind it.


@pytest.mark.parametrize(
    "behind",
    [
        packet(11, b"b\0\0\0\0\0a literal"),
        packet(18, b"a second layer"),
        packet(10, b"PGP"),
        b"\n",
        b"{}",
        bytes(1000) + b"x",
    ],
)
def test_a_binary_message_with_anything_but_zeros_behind_it_is_refused(
    gpg: Gpg, image_key: bytes, work: Path, behind: bytes
) -> None:
    message = gpg.encrypt(CONFIG)
    assert content(openpgp.read_message(disk(work, message + bytes(len(behind))))) == message
    with pytest.raises(Refusal, match="something else behind the message"):
        openpgp.read_message(disk(work, message + behind))


def test_the_same_message_twice_is_refused(gpg: Gpg, image_key: bytes, work: Path) -> None:
    binary, armor = gpg.encrypt(CONFIG), gpg.encrypt(CONFIG, "--armor")
    for twice in binary + binary, armor + armor, armor + binary, armored(binary + binary), binary + armor:
        with pytest.raises(Refusal, match="something else behind the message"):
            openpgp.read_message(disk(work, twice))
    assert content(openpgp.read_message(disk(work, armored(binary)))) == binary


@pytest.mark.parametrize("behind", [literal(b"x"), packet(10, b"PGP"), b"\0", bytes(100_000)])
def test_an_armor_holds_one_message_and_nothing_else(
    gpg: Gpg, image_key: bytes, work: Path, behind: bytes
) -> None:
    message = gpg.encrypt(CONFIG)
    with pytest.raises(Refusal, match="something else behind the message"):
        openpgp.read_message(disk(work, armored(message + behind)))


@pytest.mark.parametrize("checksum", [rb"", rb"=AAAA\n", rb"=\1\n\n"])
def test_the_checksum_of_an_armor_need_not_be_there_or_right(
    gpg: Gpg, image_key: bytes, work: Path, checksum: bytes
) -> None:
    """RFC 9580, section 6.1: it proves nothing, and must not be a reason to refuse."""
    armor, found = re.subn(rb"=(.{4})\n(?=-)", checksum, gpg.encrypt(CONFIG, "--armor"))
    assert found == 1
    assert decrypt(armor, key_file(work, image_key), work) == CONFIG


@pytest.mark.parametrize(
    ("old", "new", "refused"),
    [
        (b"\n\n", b"\n \t\n", ""),
        (b"\n\n", b"\nComment: a\nVersion: b\n\n", ""),
        (b"MESSAGE-----\n\n", b"MESSAGE----- \n\n", ""),
        (b"\n-----END", b"\n\n\n-----END", ""),
        (b"\n\n", b"\nno colon\n\n", "damaged"),
        (b"\n\n", b"\n", "damaged"),
        (b"-----END", b"=AAA\n-----END", "damaged"),
        (b"-----END", b"=AAAA\nAAAA\n-----END", "damaged"),
        (b"-----END", b"AA==\nAAAA\n-----END", "damaged"),
        (b"\n-----END", b"-----END", "damaged"),
        (b"-----END PGP MESSAGE-----", b"-----END PGP SIGNATURE-----", "damaged"),
        (b"-----END PGP MESSAGE-----", b"-----END PGP MESSAGE----", "damaged"),
        (b"MESSAGE-----\n\n", b"MESSAGE-----x\n\n", "damaged"),
    ],
)
def test_an_armor_is_read_as_a_grammar(
    gpg: Gpg, image_key: bytes, work: Path, old: bytes, new: bytes, refused: str
) -> None:
    message = gpg.encrypt(b"x" * 99, "--compress-algo=none")
    armor = armored(message)
    assert old in armor
    if refused:
        with pytest.raises(Refusal, match=refused):
            openpgp.read_message(disk(work, armor.replace(old, new, 1)))
    else:
        assert content(openpgp.read_message(disk(work, armor.replace(old, new, 1)))) == message


# Decrypting it.


def test_gpg_needs_no_home_no_terminal_and_leaves_nothing_behind(
    gpg: Gpg, image_key: bytes, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setenv("GPG_TTY", "/dev/nowhere")
    key = key_file(work, image_key)
    assert decrypt(gpg.encrypt(CONFIG), key, work) == CONFIG
    assert_nothing_left(work, key)


def assert_nothing_left(work: Path, key: Path) -> None:
    assert list(work.iterdir()) == [key]
    deadline = time.monotonic() + 5
    while left := [line for line in command_lines() if str(work) in line]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(errors="replace")
        except OSError:
            continue  # gone meanwhile


def recipients(gpg: Gpg, work: Path, message: bytes) -> list[str]:
    path = message_file(work, message)
    listing = gpg("--list-only", "--list-packets", path).decode()
    Path(path).unlink()
    return re.findall(r"keyid ([0-9A-F]+)", listing)


def test_a_message_to_another_key_is_refused_naming_its_recipients(
    gpg: Gpg, image_key: bytes, other_key: bytes, work: Path
) -> None:
    third_key = gpg.make_key("third")
    message = gpg.encrypt(CONFIG, to=("other", "third"))
    theirs = recipients(gpg, work, message)
    (ours,) = recipients(gpg, work, gpg.encrypt(CONFIG))
    key = key_file(work, image_key)
    with pytest.raises(Refusal) as refused:
        decrypt(message, key, work)
    assert refused.value.message == (
        f"the config is encrypted to key {theirs[0]}, key {theirs[1]}; the image's key is {ours}"
    )
    assert_nothing_left(work, key)
    assert decrypt(message, key_file(work, third_key), work) == CONFIG


def test_a_message_to_hidden_recipients_is_decrypted_by_one_of_them_and_refused_by_another(
    gpg: Gpg, image_key: bytes, other_key: bytes, work: Path
) -> None:
    message = gpg.encrypt(CONFIG, "--throw-keyids", to=("other", "image"))
    assert set(recipients(gpg, work, message)) == {"0" * 16}
    assert decrypt(message, key_file(work, image_key), work) == CONFIG
    message = gpg.encrypt(CONFIG, "--hidden-recipient", "other", to=())
    with pytest.raises(Refusal) as refused:  # the private key was tried, and nothing tells how far that went
        decrypt(message, key_file(work, image_key), work)
    assert str(refused.value) == str(openpgp.refused())


def message_file(work: Path, message: bytes) -> str:
    path = work / "message"
    path.write_bytes(message)
    return str(path)


@pytest.mark.parametrize("words", [["--sign"], ["--clearsign"], ["--store"], ["--detach-sign"]])
@pytest.mark.parametrize("armor", [[], ["--armor"]], ids=["binary", "armored"])
def test_a_message_that_is_not_encrypted_is_refused(
    gpg: Gpg, image_key: bytes, work: Path, words: list[str], armor: list[str]
) -> None:
    message = gpg(*armor, "--local-user=image", *words, stdin=CONFIG)
    with pytest.raises(Refusal, match="not an encrypted message"):
        openpgp.read_message(disk(work, message))
    with pytest.raises(Refusal):
        decrypt(message, key_file(work, image_key), work)


@pytest.mark.parametrize("signer", ["image", "other"])
def test_a_signed_and_encrypted_message_is_decrypted(
    gpg: Gpg, image_key: bytes, other_key: bytes, work: Path, signer: str
) -> None:
    message = gpg.encrypt(CONFIG, f"--local-user={signer}", "--sign")
    assert (
        openpgp.decrypt(openpgp.read_message(disk(work, message)), key_file(work, image_key), work) == CONFIG
    )


def test_an_armor_is_read_whatever_the_pieces_it_comes_in(
    gpg: Gpg, image_key: bytes, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = gpg.encrypt(os.urandom(3000), "--armor", "--compress-algo=none").removesuffix(b"\n")
    binary = dearmored(message)
    for chunk in [*range(100, 170), *range(1000, 1070)]:
        monkeypatch.setattr(openpgp, "_CHUNK", chunk)
        assert content(openpgp.read_message(disk(work, message))) == binary


@needs.programs("gpg")
def test_a_message_in_gnupgs_own_mode_is_decrypted_and_refused_if_altered(work: Path) -> None:
    """OCB, which gpg 2.3 and later take for keys that they made themselves."""
    key, message = VECTORS / "ocb-key.asc", dearmored((VECTORS / "ocb.asc").read_bytes())
    assert decrypt(message, key, work) == CONFIG + b"\n"
    for place in (-20, -1):
        with pytest.raises(Refusal, match="damaged or was altered"):
            decrypt(flipped(message, place), key, work)


@pytest.mark.parametrize("to", [("image",), ("other", "image")])
def test_a_flipped_bit_is_refused(
    gpg: Gpg, image_key: bytes, other_key: bytes, work: Path, to: tuple[str, ...]
) -> None:
    message = bytearray(gpg.encrypt(CONFIG, to=to))
    message[-5] ^= 1
    with pytest.raises(Refusal, match="damaged or was altered"):
        decrypt(bytes(message), key_file(work, image_key), work)


def test_a_message_without_integrity_protection_is_refused(gpg: Gpg, image_key: bytes, work: Path) -> None:
    message = gpg.encrypt(CONFIG, "--rfc2440", "--cipher-algo", "AES")
    read = openpgp.read_message(disk(work, message))
    with pytest.raises(Refusal, match="damaged or was altered"):
        openpgp.decrypt(read, key_file(work, image_key), work)


def test_a_message_encrypted_with_a_passphrase_is_refused(gpg: Gpg, image_key: bytes, work: Path) -> None:
    message = gpg("--pinentry-mode", "loopback", "--passphrase", "x", "--symmetric", stdin=CONFIG)
    with pytest.raises(Refusal, match="with a passphrase"):
        openpgp.decrypt(openpgp.read_message(disk(work, message)), key_file(work, image_key), work)


def test_a_private_key_with_a_passphrase_is_refused_without_waiting(gpg: Gpg, work: Path) -> None:
    key = gpg.make_key("guarded", passphrase="secret")
    with pytest.raises(Refusal, match="the image's private key has a passphrase"):
        decrypt(gpg.encrypt(CONFIG, to=("guarded",)), key_file(work, key), work)


@pytest.mark.parametrize("key", [b"", b"no key at all"])
def test_a_file_that_holds_no_private_key_is_refused(
    gpg: Gpg, image_key: bytes, work: Path, key: bytes
) -> None:
    with pytest.raises(Refusal, match="none that gpg can read"):
        decrypt(gpg.encrypt(CONFIG), key_file(work, key), work)


def test_a_public_key_in_place_of_the_private_one_is_refused(gpg: Gpg, image_key: bytes, work: Path) -> None:
    with pytest.raises(Refusal, match="none that gpg can read"):
        decrypt(gpg.encrypt(CONFIG), key_file(work, gpg("--export", "image")), work)


def test_a_missing_private_key_is_refused(gpg: Gpg, image_key: bytes, work: Path) -> None:
    with pytest.raises(Refusal, match="No such file"):
        decrypt(gpg.encrypt(CONFIG), work / "ignition.asc", work)
    assert not list(work.iterdir())


def test_a_config_that_decompresses_beyond_the_limit_is_refused(
    gpg: Gpg, image_key: bytes, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openpgp, "CONFIG_LIMIT", 1_000_000)
    key = key_file(work, image_key)
    assert decrypt(gpg.encrypt(bytes(1_000_000)), key, work) == bytes(1_000_000)
    with pytest.raises(Refusal) as refused:
        decrypt(gpg.encrypt(bytes(1_000_001)), key, work)
    assert str(refused.value) == str(openpgp.refused())


@pytest.mark.parametrize("algorithm", ["zip", "zlib", "bzip2"])
def test_a_bomb_is_given_up_at_the_limit(
    gpg: Gpg, image_key: bytes, work: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred million bytes in a few thousand: no more is ever written than the limit, and a little."""
    written: list[int] = []
    write = packets.write

    def counted(file: BinaryIO, text: bytes) -> None:
        written.append(len(text))
        write(file, text)

    monkeypatch.setattr(packets, "write", counted)
    monkeypatch.setattr(openpgp, "CONFIG_LIMIT", 1_000_000)
    message = gpg.encrypt(bytes(100_000_000), f"--compress-algo={algorithm}")
    assert len(message) < 200_000
    with pytest.raises(Refusal, match="damaged or was altered"):
        decrypt(message, key_file(work, image_key), work)
    assert sum(written) < len(message) + 1_000_000 + (2 << 16)


READ_IN_A_PROCESS_OF_ITS_OWN = """
import re, sys
from pathlib import Path
from secex_firstboot.ignition import config, openpgp
usage = lambda: int(re.search(r"VmHWM:\\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1])
before = usage()
work = Path(sys.argv[1])
text = openpgp.decrypt(openpgp.read_message(work / "disk"), work / "ignition.asc", work)
decrypted = usage() - before
config.parse(text)
print(len(text), decrypted, usage() - before)
"""


def test_the_largest_config_takes_one_copy_in_memory_to_decrypt_and_two_more_to_parse(
    gpg: Gpg, image_key: bytes, work: Path
) -> None:
    start, end = b'{"ignition": {"version": "3.3.0"}, "storage": {"files": [{"path": "/', b'"}]}}'
    digits = b64encode(os.urandom(openpgp.CONFIG_LIMIT * 3 // 4))[: -len(start + end) - 80]
    source = b'a", "contents": {"source": "data:;base64,' + digits + b'"}, "a": "'
    text = (start + source).ljust(openpgp.CONFIG_LIMIT - len(end), b"a") + end
    disk(work, gpg.encrypt(text, "--armor", "--compress-algo=none"))
    key_file(work, image_key)
    command = [sys.executable, "-c", READ_IN_A_PROCESS_OF_ITS_OWN, str(work)]
    done = subprocess.run(command, capture_output=True, check=True)
    size, decrypted, parsed = map(int, done.stdout.split())
    assert size == openpgp.CONFIG_LIMIT
    # Beside the files in RAM that gpg reads and writes: two at a time, gone when the config is parsed.
    assert decrypted << 10 < 1.5 * openpgp.CONFIG_LIMIT
    assert parsed << 10 < 3.2 * openpgp.CONFIG_LIMIT


def test_a_directory_too_deep_for_the_agents_sockets_is_an_error_of_its_own(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    with pytest.raises(FirstbootError, match="too long"):
        openpgp.decrypt(io.BytesIO(), deep / "key", deep)


# What the host puts together.


@pytest.fixture(scope="module")
def host(gpg: Gpg, image_key: bytes) -> Host:
    return gpg.host()


def inner(gpg: Gpg) -> dict[str, bytes]:
    """What a host may put into a message that opens with the image's key."""
    owners, text = gpg.encrypt(CONFIG, "--compress-algo=none"), literal(CONFIG)
    return {
        "the owner's message": owners,
        "the owner's message, armored": armored(owners),
        "the owner's message, compressed": compressed(owners),
        "the owner's message, and a literal": owners + text,
        "a literal, and the owner's message": text + owners,
        "a compressed literal, and the owner's message": compressed(text) + owners,
        "the owner's encrypted data alone": owners[len(session_keys(owners)) :],
        "two literals": text + text,
        "two literals, compressed": compressed(text + text),
        "a literal, and a compressed one": text + compressed(text),
        "a compressed literal, and another": compressed(text) + text,
        "a literal compressed twice": compressed(text, times=2),
        "a literal compressed forty times": compressed(text, times=40),
        "no packet": b"",
        "no plaintext": packet(10, b"PGP"),
        "no packets": CONFIG,
        "half a literal": text[:-3],
        "half a compressed literal": packet(8, b"\2" + zlib.compress(text)[:-5]),
        "a compressed literal and more": packet(8, b"\2" + zlib.compress(text) + b"more"),
        "a literal and half of another": text + text[:-3],
        "a literal and something": text + b"something",
        "a literal and zeros": text + bytes(20),
        "a literal and a marker": text + packet(10, b"PGP"),
        "a literal and a private packet": text + packet(60, b"?"),
        "a literal and a key": text + gpg("--export", "image"),
        "a key": gpg("--export", "image"),
        "a literal and half a signature": text + packet(2, b"?"),
        "a literal of an unknown kind": literal(CONFIG, mode=b"x"),
        "a literal with half a header": packet(11, b"b\7name"),
        "an unknown compression": packet(8, b"\4" + text),
        "an empty compression": packet(8, b""),
        "a passphrase": gpg("--pinentry-mode=loopback", "--passphrase=x", "--symmetric", stdin=CONFIG),
    }


def test_one_layer_and_one_plaintext_and_nothing_else(
    gpg: Gpg, image_key: bytes, host: Host, work: Path
) -> None:
    key = key_file(work, image_key)
    for name, within in inner(gpg).items():
        for message in host.encrypt(within), armored(host.encrypt(within)):
            with pytest.raises(Refusal) as refused:
                decrypt(message, key, work)
            assert str(refused.value) == str(openpgp.refused()), name


def test_what_the_host_puts_together_opens_if_it_is_one_plaintext(
    gpg: Gpg, image_key: bytes, host: Host, work: Path
) -> None:
    key = key_file(work, image_key)
    texts = [literal(CONFIG), literal(CONFIG, mode=b"t"), literal(CONFIG, mode=b"u")]
    texts += [compressed(literal(CONFIG), algorithm) for algorithm in (1, 2, 3)]
    for within in texts:
        assert decrypt(host.encrypt(within), key, work) == CONFIG
        assert decrypt(armored(host.encrypt(within)), key, work) == CONFIG


def test_the_owners_message_with_flipped_bits_within_the_hosts_is_no_oracle(
    gpg: Gpg, image_key: bytes, host: Host, work: Path
) -> None:
    """Nothing shows where the flipped bit was, nor that the outer layer is whole."""
    key = key_file(work, image_key)
    owners = gpg.encrypt(CONFIG, "--compress-algo=none")
    assert decrypt(owners, key, work) == CONFIG
    start = len(session_keys(owners))
    for place in (5, start - 3, start + 25, start + 40, -30, -5):
        altered = flipped(owners, place)
        for message in (
            host.encrypt(altered),
            armored(host.encrypt(altered)),
            host.encrypt(compressed(altered)),
        ):
            with pytest.raises(Refusal) as refused:
                decrypt(message, key, work)
            assert str(refused.value) == str(openpgp.refused())


def test_where_a_message_was_altered_does_not_show(gpg: Gpg, work: Path) -> None:
    """With RSA above all: whether its padding was right is all that one needs to know to decrypt anything."""
    loopback = ["--pinentry-mode=loopback", "--passphrase="]
    gpg(*loopback, "--quick-generate-key", "rsa", "rsa2048", "sign", "never")
    fingerprint = re.findall(
        r"^fpr:+([0-9A-F]{40}):", gpg("--with-colons", "-k", "=rsa").decode(), re.MULTILINE
    )
    gpg(*loopback, "--quick-add-key", fingerprint[0], "rsa2048", "encr", "never")
    key = gpg(*loopback, "--export-secret-keys", "rsa")
    message = gpg.encrypt(CONFIG, to=("rsa",))
    assert message[0] == 0x85
    assert decrypt(message, key_file(work, key), work) == CONFIG
    said = set()
    for place in (20, 100, 260, len(session_keys(message)) + 3, -30, -1):
        with pytest.raises(Refusal) as refused:
            decrypt(flipped(message, place), key_file(work, key), work)
        said.add(str(refused.value))
    assert said == {str(openpgp.refused())}


def test_encrypted_data_without_integrity_protection_is_refused_the_same_way(
    gpg: Gpg, image_key: bytes, host: Host, work: Path
) -> None:
    with pytest.raises(Refusal) as refused:
        decrypt(host.encrypt_unprotected(literal(CONFIG)), key_file(work, image_key), work)
    assert str(refused.value) == str(openpgp.refused())


# gpg's status.

GOOD = """\
ENC_TO 33D246CDD07E64E2 18 0
KEY_CONSIDERED 5AB43C50AE50088CE8A9E4EAA5C074037D487345 0
DECRYPTION_KEY 959DE7D4A5DE41FFED99ACD633D246CDD07E64E2 5AB43C50AE50088CE8A9E4EAA5C074037D487345 -
KEY_CONSIDERED 5AB43C50AE50088CE8A9E4EAA5C074037D487345 0
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
"""
# From gpg 2.2.40: to a hidden recipient that is not us, and to us. 2.4 says no CARDCTRL and ends with 0.
HIDDEN = """\
ENC_TO 0000000000000000 18 0
CARDCTRL 6
KEY_CONSIDERED 5AB43C50AE50088CE8A9E4EAA5C074037D487345 0
ENC_TO 33D246CDD07E64E2 18 0
DECRYPTION_KEY 959DE7D4A5DE41FFED99ACD633D246CDD07E64E2 5AB43C50AE50088CE8A9E4EAA5C074037D487345 -
NO_SECKEY 0000000000000000
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
"""
# From gpg 2.2.40 and 2.4.7 without --unwrap, of the owner's message in one of the host's.
NESTED = GOOD.replace("DECRYPTION_OKAY\n", f"{GOOD}DECRYPTION_OKAY\n")


def is_one_layer(status: str, code: int = 0) -> bool:
    lines = re.sub("^", "[GNUPG:] ", status, flags=re.MULTILINE).removesuffix("[GNUPG:] ")
    return openpgp._is_one_layer(openpgp._Result(code, lines, io.BytesIO()))


def test_what_gpg_says_of_one_layer_that_is_ours_and_whole() -> None:
    assert is_one_layer(GOOD)
    assert is_one_layer(HIDDEN)
    assert is_one_layer(HIDDEN, 2)
    assert is_one_layer(f"{HIDDEN}FAILURE gpg-exit 33554433\n", 2)
    compliance = "DECRYPTION_COMPLIANCE_MODE 23\n"
    for line in ("DECRYPTION_INFO 2 9 0\n", "END_DECRYPTION\n"):
        assert is_one_layer(GOOD.replace(line, compliance + line))


@pytest.mark.parametrize("code", [1, 2, 127, -9])
def test_an_exit_code_counts_whatever_the_status_says(code: int) -> None:
    assert not is_one_layer(GOOD, code)
    assert not is_one_layer(HIDDEN, 1)


def test_no_line_may_be_missing_or_there_twice_or_elsewhere() -> None:
    lines = GOOD.splitlines(keepends=True)
    assert is_one_layer("".join(lines))
    for number, line in enumerate(lines):
        rest = lines[:number] + lines[number + 1 :]
        if line.split()[0] not in ("ENC_TO", "KEY_CONSIDERED"):
            assert not is_one_layer("".join(rest)), line
            assert not is_one_layer("".join([*lines[:number], line, *lines[number:]])), line
            assert line.startswith("DECRYPTION_KEY") or not is_one_layer("".join([line, *rest])), line


@pytest.mark.parametrize("code", [0, 2])
@pytest.mark.parametrize(
    "line",
    [
        *("BADMDC", "DECRYPTION_FAILED", "NODATA 1", "ERROR proc_pkt.plaintext 89_BAD_DATA", "UNEXPECTED 0"),
        *("PLAINTEXT 62 0 ", "FAILURE decrypt 4294967295", "FAILURE gpg-exit 33554433", "SOMETHING_NEW"),
        *("ERROR pkdecrypt_failed 33554450", "NEED_PASSPHRASE_SYM 9 3 8", "GOODMDC_TOO", "goodmdc", "", " "),
        *("USERID_HINT 0123456789ABCDEF a", "NEED_PASSPHRASE 0 0 1 0", "PINENTRY_LAUNCHED 9"),
    ],
)
def test_no_other_line_is_passed_over_wherever_it_stands(line: str, code: int) -> None:
    lines = HIDDEN.splitlines(keepends=True)
    for number in range(len(lines) + 1):
        if (line, code, number) != ("FAILURE gpg-exit 33554433", 2, len(lines)):
            assert not is_one_layer("".join([*lines[:number], f"{line}\n", *lines[number:]]), code)


def test_words_of_another_program_in_the_status_are_refused() -> None:
    good = re.sub("^(?=.)", "[GNUPG:] ", GOOD, flags=re.MULTILINE)
    assert openpgp._is_one_layer(openpgp._Result(0, good, io.BytesIO()))
    for status in (f"{good}setpriv: failed\n", f"x{good}", good.removesuffix("\n"), good + good, ""):
        assert not openpgp._is_one_layer(openpgp._Result(0, status, io.BytesIO()))


def test_two_layers_are_refused() -> None:
    assert not is_one_layer(NESTED)
    assert not is_one_layer(NESTED.replace("GOODMDC", "BADMDC", 1))


# What gpg runs as.

SHOW = """\
#!/bin/sh
sleep 987654 > /dev/null 2>&1 &
cat /proc/self/status /proc/net/dev
touch "$2/written"
cat > /dev/null
exit 2
"""


@needs.root
@pytest.mark.skipif(not can_unshare(), reason="needs namespaces, which this container may not make")
def test_gpg_has_no_privilege_no_network_and_leaves_no_process(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = work / "bin" / "gpg"
    program.parent.mkdir()
    program.write_text(SHOW)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with openpgp._home(work) as home:
        assert home.stat().st_mode & 0o777 == 0o700
        result = openpgp._unwrap(home, in_memory("message"))
        assert (home / "written").stat().st_uid == 65533
    assert result.code == 2
    result.output.seek(0)
    shown = result.output.read().decode()
    value = dict(re.findall(r"^(\w+):[ \t]*(.*?)[ \t]*$", shown, re.MULTILINE))
    assert value["Uid"] == value["Gid"] == "\t".join(["65533"] * 4)
    assert value["Groups"] == ""
    assert value["NoNewPrivs"] == "1"
    assert {value[f"Cap{name}"].strip("0") for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {""}
    assert re.findall(r"^ *(\w+):(?: +[0-9]+){16}$", shown, re.MULTILINE) == ["lo"]
    assert not [line for line in command_lines() if "987654" in line]


def test_gpg_that_does_not_start_is_an_error_of_its_own(
    gpg: Gpg, image_key: bytes, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = gpg.encrypt(CONFIG)
    assert decrypt(message, key_file(work, image_key), work) == CONFIG
    monkeypatch.setenv("PATH", str(work))
    with pytest.raises(FirstbootError, match="gpg does not start") as failed:
        decrypt(message, key_file(work, image_key), work)
    assert failed.value.cure


def test_no_part_of_key_or_config_is_logged(
    gpg: Gpg, image_key: bytes, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    decrypt(gpg.encrypt(CONFIG), key_file(work, image_key), work)
    assert "PRIVATE KEY" not in caplog.text
    assert "3.3.0" not in caplog.text
