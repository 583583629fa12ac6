"""The OpenPGP message on the config disk: finding where it ends, decrypting it with the image's key.

The disk is larger than the message, and the rest of it is zeros. A ciphertext may end in zeros too, so the
end comes from the message's own framing: the armor's END line, or the packet lengths of RFC 9580, section 4.2
(the same as RFC 4880's). What follows the message is not looked at.
"""

from __future__ import annotations

import binascii
import io
import logging
import os
import re
import shutil
import tempfile
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gnupg

from secex_firstboot import process
from secex_firstboot.errors import FirstbootError, Refusal
from secex_firstboot.files import exists

MESSAGE_LIMIT = 96 << 20  # bytes: a config of CONFIG_LIMIT, encrypted and armored
CONFIG_LIMIT = 64 << 20  # bytes

_BEGIN = b"-----BEGIN PGP MESSAGE-----"
_END = b"\n-----END PGP MESSAGE-----"
_OTHER_ARMOR = b"-----BEGIN PGP "
_CHUNK = 1 << 16
_HEAD = 1 << 20  # bytes: the session keys of more than 1000 recipients, armored

# RFC 9580, section 5 (packet 20 is GnuPG's own, of the drafts between the two RFCs).
_SESSION_KEYS = {1, 3}
_ENCRYPTED_DATA = {9, 18, 20}
_MARKER = 10  # to be ignored wherever it stands

# unix(7): a socket's path has at most 107 characters; the agent's longest name in a home made here.
_LONGEST_WORK_PATH = 107 - len("/gpg-01234567/S.gpg-agent.browser")

_NO_PIN_ENTRY = 85  # libgpg-error, err-codes.h: what --pinentry-mode=error makes of a passphrase

_BUILD_AGAIN = "build the image again with an OpenPGP private key that has no passphrase"
_ENCRYPT_AGAIN = "encrypt the config with gpg --encrypt and write the file to the start of the config disk"


@dataclass(frozen=True)
class Message:
    """An encrypted OpenPGP message: the first ``size`` bytes of a disk (or file)."""

    device: Path
    size: int


def read_message(device: Path, limit: int = MESSAGE_LIMIT) -> Message:
    """Find the OpenPGP message that the disk (or file) starts with, and where it ends.

    Holds no more than a piece of it in memory. Raises Refusal if there is no complete encrypted message, or
    one longer than ``limit`` bytes.
    """
    try:
        with device.open("rb") as disk:
            return Message(device, _message_size(disk, limit))
    except OSError as error:
        raise Refusal(
            f"the config disk {device} cannot be read ({error.strerror})", "check how the disk is attached"
        ) from None


def _message_size(disk: BinaryIO, limit: int) -> int:
    size = disk.seek(0, os.SEEK_END)
    disk.seek(0)
    head = disk.read(_HEAD)
    disk.seek(0)
    if not head.strip(b"\0"):
        raise Refusal("the config disk is empty", _ENCRYPT_AGAIN)
    if head.startswith(_BEGIN):
        end = _end_of_armor(disk, limit)
        packets = _dearmored(head[:end])
        _Framing(io.BytesIO(packets), len(packets), limit).find_encrypted_data()
        return end
    if head.startswith(_OTHER_ARMOR):
        raise _not_encrypted()
    return _Framing(disk, size, limit).end_of_message()


def _end_of_armor(disk: BinaryIO, limit: int) -> int:
    """Where the END line ends."""
    start, text = 0, b""
    while start + len(text) <= limit:
        chunk = disk.read(_CHUNK)
        text += chunk
        if _END in text:
            end = start + text.index(_END) + len(_END)
            if end > limit:
                break
            return end
        if not chunk or b"\0" in chunk:
            raise _truncated()
        start, text = start + len(text) - len(_END), text[-len(_END) :]
    raise _too_large(limit)


def _dearmored(armor: bytes) -> bytes:
    """The packets in an armor, or in its start: header lines, a blank line, base64, gpg's checksum line."""
    text = armor.removesuffix(_END)
    blank = re.search(rb"\n[ \t\r]*\n", text)
    body = text[blank.end() - 1 :] if blank else b""
    checksum = body.rfind(b"\n=")
    digits = (body[:checksum] if checksum >= 0 else body).translate(None, b" \t\r\n")
    try:
        return b64decode(digits if armor.endswith(_END) else digits[: len(digits) & ~3], validate=True)
    except binascii.Error:
        raise Refusal("the armor of the message on the config disk is damaged", _ENCRYPT_AGAIN) from None


class _Framing:
    """Walks over OpenPGP packets by their lengths, without reading their bodies."""

    def __init__(self, stream: BinaryIO, size: int, limit: int) -> None:
        self.stream, self.size, self.limit, self.position = stream, size, limit, 0

    def end_of_message(self) -> int:
        self.step_over_body(self.find_encrypted_data())
        return self.position

    def find_encrypted_data(self) -> int:
        """Go to the body of the packet of encrypted data; that packet's header octet.

        RFC 9580, section 10.3: an encrypted message is session-key packets, then one of encrypted data.
        """
        session_keys = False
        while True:
            header = self.header()
            tag = header & 0x3F if header & 0x40 else header >> 2 & 0x0F
            if tag in _ENCRYPTED_DATA and session_keys:
                return header
            if tag not in _SESSION_KEYS and tag != _MARKER:
                raise _not_encrypted()
            session_keys = session_keys or tag in _SESSION_KEYS
            self.step_over_body(header)

    def header(self) -> int:
        """The first octet of the packet that starts here."""
        at_start = self.position == 0
        octet = self.number(1)
        if octet & 0x80:
            return octet
        if at_start:
            raise Refusal("the config disk holds no OpenPGP message", _ENCRYPT_AGAIN)
        raise _truncated()

    def step_over_body(self, header: int) -> None:
        if header & 0x40:
            return self.step_over_parts()
        if header & 0x03 == 3:
            raise Refusal("the message on the config disk does not say how long it is", _ENCRYPT_AGAIN)
        self.step(self.number(1 << (header & 0x03)))

    def step_over_parts(self) -> None:
        """RFC 9580, section 4.2.1: a length and a body, and after a partial length the next pair."""
        while True:
            first = self.number(1)
            if first < 192:
                return self.step(first)
            if first < 224:
                return self.step((first - 192 << 8) + self.number(1) + 192)
            if first == 255:
                return self.step(self.number(4))
            self.step(1 << (first & 0x1F))

    def number(self, octets: int) -> int:
        start = self.position
        self.step(octets)
        self.stream.seek(start)
        return int.from_bytes(self.stream.read(octets), "big")

    def step(self, octets: int) -> None:
        self.position += octets
        if self.position > self.size:
            raise _truncated()
        if self.position > self.limit:
            raise _too_large(self.limit)


def _not_encrypted() -> Refusal:
    return Refusal("the OpenPGP data on the config disk is not an encrypted message", _ENCRYPT_AGAIN)


def _truncated() -> Refusal:
    return Refusal("the message on the config disk is cut off", "write the whole encrypted file to the disk")


def _too_large(limit: int) -> Refusal:
    return Refusal(
        f"the message on the config disk is larger than {limit} bytes",
        "keep large files out of the config and let Ignition fetch them",
    )


class _Prefix:
    """The first ``size`` bytes of a stream, for a reader that knows no end but the stream's."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.left = stream, size

    def read(self, size: int) -> bytes:
        data = self.stream.read(min(size, self.left))
        self.left -= len(data)
        return data


def decrypt(message: Message, private_key: Path, work: Path) -> bytes:
    """Decrypt with the OpenPGP private key (no passphrase) in a file; at most CONFIG_LIMIT bytes.

    ``work`` is a directory in RAM with a short path: gpg's home lies in it while this runs. Raises Refusal if
    this key does not open the message, or the message was altered.
    """
    with _gpg_home(work) as home:
        gpg = _gpg(home)
        _import_key(gpg, private_key)
        return _decrypted(gpg, message)


@contextmanager
def _gpg_home(work: Path) -> Iterator[Path]:
    """A directory (0700) for keyring and agent; agent and directory are gone afterwards."""
    if len(str(work)) > _LONGEST_WORK_PATH:
        raise FirstbootError(f"the path {work} is too long for gpg-agent's sockets")
    home = Path(tempfile.mkdtemp(prefix="gpg-", dir=work))
    try:
        yield home
    finally:
        try:
            process.run(["gpgconf", "--homedir", home, "--kill", "all"])
        finally:
            # The agent removes its sockets meanwhile: a file that is gone already is no error.
            shutil.rmtree(home, ignore_errors=True)
            if exists(home):
                raise FirstbootError(f"the private key's directory {home} could not be removed")


def _gpg(home: Path) -> Any:
    # It logs what it is given to import: on debug level the private key.
    logging.getLogger("gnupg").setLevel(logging.CRITICAL)
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    try:
        # No terminal to ask on: a key with a passphrase shall be an error, not a wait.
        return gnupg.GPG(gnupghome=str(home), options=["--pinentry-mode", "error"], env=environment)
    except OSError:
        raise FirstbootError("gpg is not installed", "install the package that has it") from None


def _import_key(gpg: Any, private_key: Path) -> None:
    try:
        result = gpg.import_keys(private_key.read_bytes())
    except OSError as error:
        raise Refusal(
            f"the image's private key {private_key} cannot be read ({error.strerror})", _BUILD_AGAIN
        ) from None
    if not int(result.sec_read or 0):
        raise Refusal(f"the image's private key {private_key} is none that gpg can read", _BUILD_AGAIN)


def _decrypted(gpg: Any, message: Message) -> bytes:
    try:
        with message.device.open("rb") as disk:
            encrypted = _Prefix(disk, message.size)
            result = gpg.decrypt_file(encrypted, extra_args=["--max-output", str(CONFIG_LIMIT)])
    except OSError:  # gpg closed its input early, or the disk could not be read
        raise _damaged() from None
    if "exceeded --max-output limit" in result.stderr:
        raise Refusal(
            f"the decrypted config is larger than {CONFIG_LIMIT} bytes", "let Ignition fetch the large files"
        )
    # The exit code also counts a hidden recipient that was not us, and a signature by a key we do not have.
    if all(f"[GNUPG:] {status}\n" in result.stderr for status in ("DECRYPTION_OKAY", "GOODMDC")):
        return bytes(result.data)
    raise _why_not(result.stderr, _encryption_keys(gpg))


def _encryption_keys(gpg: Any) -> list[str]:
    """The IDs of the keys and subkeys in the keyring that messages are encrypted to."""
    keys = [
        (identity, capabilities)
        for key in gpg.list_keys()
        for identity, capabilities, *_ in [(key["keyid"], key["cap"]), *key["subkeys"]]
    ]
    return [identity for identity, capabilities in keys if "e" in capabilities]


def _why_not(status: str, own_keys: list[str]) -> Refusal:
    """From gpg's status lines (GnuPG, doc/DETAILS)."""
    if "[GNUPG:] DECRYPTION_KEY " in status:
        return _damaged()
    errors = re.findall(r"^\[GNUPG:\] ERROR pkdecrypt_failed ([0-9]+)", status, re.MULTILINE)
    if any(int(code) & 0xFFFF == _NO_PIN_ENTRY for code in errors):
        return Refusal("the image's private key has a passphrase", _BUILD_AGAIN)
    recipients = re.findall(r"^\[GNUPG:\] ENC_TO ([0-9A-F]+) ", status, re.MULTILINE)
    if recipients:
        names = ("a hidden key" if not name.strip("0") else f"key {name}" for name in recipients)
        return Refusal(
            f"the config is encrypted to {', '.join(names)}; the image's key is {', '.join(own_keys)}",
            "encrypt the config to the public key that came with this image",
        )
    if "[GNUPG:] NEED_PASSPHRASE_SYM " in status:
        return Refusal(
            "the config is encrypted with a passphrase",
            "encrypt it to the public key that came with this image",
        )
    return _damaged()


def _damaged() -> Refusal:
    return Refusal("the message on the config disk is damaged or was altered", _ENCRYPT_AGAIN)
