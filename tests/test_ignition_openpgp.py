"""The OpenPGP message on the config disk, with the real gpg."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secex_firstboot.errors import FirstbootError, Refusal
from secex_firstboot.ignition import openpgp

CONFIG = b'{"ignition": {"version": "3.3.0"}}'


@dataclass(frozen=True)
class Gpg:
    home: Path

    def __call__(self, *words: str, stdin: bytes = b"") -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--trust-model", "always", *words]
        return subprocess.run(argv, input=stdin, capture_output=True, check=True).stdout

    def make_key(self, user: str, passphrase: str = "") -> bytes:
        loopback = ["--pinentry-mode", "loopback", "--passphrase", passphrase]
        self(*loopback, "--quick-generate-key", user, "future-default", "default", "never")
        return self(*loopback, "--armor", "--export-secret-keys", user)

    def encrypt(self, text: bytes, *words: str, to: tuple[str, ...] = ("image",)) -> bytes:
        return self(*words, *(f"--recipient={user}" for user in to), "--encrypt", stdin=text)


@pytest.fixture(scope="module")
def gpg() -> Iterator[Gpg]:
    home = Path(tempfile.mkdtemp(prefix="pgp-", dir="/tmp"))
    yield Gpg(home)
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)
    shutil.rmtree(home, ignore_errors=True)


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
        yield Path(directory)


def disk(directory: Path, content: bytes, size: int = 1 << 20) -> Path:
    """A config disk: the content, then zeros (a hole) up to the size."""
    path = directory / "disk"
    path.write_bytes(content)
    os.truncate(path, max(size, len(content)))
    return path


def content(message: openpgp.Message) -> bytes:
    with message.device.open("rb") as stream:
        return stream.read(message.size)


def decrypt(message: bytes, key: Path, work: Path) -> bytes:
    """Decrypt a message that lies on a disk, without looking at it first."""
    path = disk(work, message)
    try:
        return openpgp.decrypt(openpgp.Message(path, len(message)), key, work)
    finally:
        path.unlink()


def key_file(directory: Path, key: bytes) -> Path:
    path = directory / "ignition.asc"
    path.write_bytes(key)
    return path


def packet(tag: int, body: bytes) -> bytes:
    return bytes([0xC0 | tag, 255]) + len(body).to_bytes(4, "big") + body


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
    assert content(read) == (message.removesuffix(b"\n") if armor else message)
    assert openpgp.decrypt(read, key_file(work, image_key), work) == text


def test_an_armor_with_headers_and_line_ends_of_another_system_is_read(
    gpg: Gpg, image_key: bytes, work: Path
) -> None:
    message = gpg.encrypt(CONFIG, "--armor", "--comment", "made elsewhere").replace(b"\n", b"\r\n")
    read = openpgp.read_message(disk(work, message))
    assert content(read) == message.removesuffix(b"\r\n")
    assert openpgp.decrypt(read, key_file(work, image_key), work) == CONFIG


def test_only_the_message_of_a_huge_disk_is_read(gpg: Gpg, image_key: bytes, work: Path) -> None:
    message = gpg.encrypt(CONFIG)
    assert content(openpgp.read_message(disk(work, message, size=1 << 40))) == message


def test_a_message_that_fills_the_disk_is_read(gpg: Gpg, image_key: bytes, work: Path) -> None:
    for armor in [], ["--armor"]:
        message = gpg.encrypt(CONFIG, *armor).removesuffix(b"\n")
        assert content(openpgp.read_message(disk(work, message, size=0))) == message


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
            assert read.size <= min(len(text), 200)
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
    assert content(openpgp.read_message(path, limit=len(message))) == message
    with pytest.raises(Refusal, match="larger than"):
        openpgp.read_message(path, limit=len(message) - 1)


def test_an_armor_without_end_is_not_read_beyond_the_limit(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="larger than"):
        openpgp.read_message(disk(tmp_path, b"-----BEGIN PGP MESSAGE-----\n" + b"A" * 500_000), limit=100_000)


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
    with pytest.raises(Refusal, match=r"encrypted to a hidden key; the image's key is [0-9A-F]{16}:"):
        decrypt(message, key_file(work, image_key), work)


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


def test_an_armor_with_more_recipients_than_are_looked_at_at_once_is_read(
    gpg: Gpg, image_key: bytes, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = gpg.encrypt(os.urandom(3000), "--armor", "--compress-algo=none").removesuffix(b"\n")
    for head in range(1000, 1070):
        monkeypatch.setattr(openpgp, "_HEAD", head)
        monkeypatch.setattr(openpgp, "_CHUNK", head)
        assert openpgp.read_message(disk(work, message)).size == len(message)


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
    with pytest.raises(Refusal, match="larger than 1000000 bytes"):
        decrypt(gpg.encrypt(bytes(1_000_001)), key, work)


READ_IN_A_PROCESS_OF_ITS_OWN = """
import re, sys
from pathlib import Path
from secex_firstboot.ignition import config, openpgp
usage = lambda: int(re.search(r"VmHWM:\\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1])
before = usage()
work = Path(sys.argv[1])
text = openpgp.decrypt(openpgp.read_message(work / "disk"), work / "ignition.asc", work)
config.parse(text)
print(len(text), usage() - before)
"""


def test_the_largest_config_is_read_with_no_more_than_two_copies_in_memory(
    gpg: Gpg, image_key: bytes, work: Path
) -> None:
    start, end = b'{"ignition": {"version": "3.3.0"}, "storage": {"files": [{"path": "/', b'"}]}}'
    digits = b64encode(os.urandom(openpgp.CONFIG_LIMIT * 3 // 4))[: -len(start + end) - 80]
    source = b'a", "contents": {"source": "data:;base64,' + digits + b'"}, "a": "'
    text = (start + source).ljust(openpgp.CONFIG_LIMIT - len(end), b"a") + end
    disk(work, gpg.encrypt(text, "--armor", "--compress-algo=none"))
    key_file(work, image_key)
    command = [sys.executable, "-c", READ_IN_A_PROCESS_OF_ITS_OWN, str(work)]
    size, kibibytes = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert size == openpgp.CONFIG_LIMIT
    assert kibibytes << 10 < 2.5 * openpgp.CONFIG_LIMIT


def test_a_directory_too_deep_for_the_agents_sockets_is_an_error_of_its_own(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    with pytest.raises(FirstbootError, match="too long"):
        decrypt(b"", deep / "key", deep)


def test_no_part_of_key_or_config_is_logged(
    gpg: Gpg, image_key: bytes, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    decrypt(gpg.encrypt(CONFIG), key_file(work, image_key), work)
    assert "PRIVATE KEY" not in caplog.text
    assert "3.3.0" not in caplog.text
