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
from pathlib import Path
from typing import Any, BinaryIO

import gnupg

from secex_firstboot import process
from secex_firstboot.errors import FirstbootError, Refusal

MESSAGE_LIMIT = 96 << 20  # bytes: a config of CONFIG_LIMIT, encrypted and armored
CONFIG_LIMIT = 64 << 20  # bytes

_BEGIN = b"-----BEGIN PGP MESSAGE-----"
_END = b"\n-----END PGP MESSAGE-----"
_CHUNK = 1 << 16

# RFC 9580, section 5 (packet 20 is GnuPG's own, of the drafts between the two RFCs).
_SESSION_KEYS = {1, 3}
_ENCRYPTED_DATA = {9, 18, 20}
_MARKER = 10  # to be ignored wherever it stands

# unix(7): a socket's path has at most 107 characters; the agent's longest name in a home made here.
_LONGEST_WORK_PATH = 107 - len("/gpg-01234567/S.gpg-agent.browser")

_ENCRYPT_AGAIN = "encrypt the config with gpg --encrypt and write the file to the start of the config disk"


def read_message(device: Path, limit: int = MESSAGE_LIMIT) -> bytes:
    """The OpenPGP message that the disk (or file) starts with, without the padding after it.

    Reads no more than the message, and nothing at all of one longer than ``limit`` bytes. Raises Refusal if
    there is no complete encrypted message.
    """
    try:
        with device.open("rb") as disk:
            return _message(disk, limit)
    except OSError as error:
        raise Refusal(
            f"the config disk {device} cannot be read ({error.strerror})", "check how the disk is attached"
        ) from None


def _message(disk: BinaryIO, limit: int) -> bytes:
    size = disk.seek(0, os.SEEK_END)
    disk.seek(0)
    head = disk.read(4096)
    disk.seek(0)
    if not head.strip(b"\0"):
        raise Refusal("the config disk is empty", _ENCRYPT_AGAIN)
    if head.startswith(_BEGIN):
        armored = _read_armored(disk, limit)
        packets = _dearmored(armored)
        _Framing(io.BytesIO(packets), len(packets), limit).end_of_message()
        return armored
    end = _Framing(disk, size, limit).end_of_message()
    disk.seek(0)
    return disk.read(end)


def _read_armored(disk: BinaryIO, limit: int) -> bytes:
    text = bytearray()
    while len(text) <= limit:
        chunk = disk.read(_CHUNK)
        text += chunk
        end = text.find(_END, max(0, len(text) - len(chunk) - len(_END)))
        if 0 <= end <= limit - len(_END):
            return bytes(text[: end + len(_END)])
        if end < 0 and (not chunk or b"\0" in chunk):
            raise _truncated()
    raise _too_large(limit)


def _dearmored(armored: bytes) -> bytes:
    """The packets in an armor: header lines, a blank line, base64, a checksum line that gpg looks at."""
    text = armored.removesuffix(_END)
    blank = re.search(rb"\n[ \t\r]*\n", text)
    body = text[blank.end() - 1 :] if blank else b""
    checksum = body.rfind(b"\n=")
    try:
        return b64decode(
            (body[:checksum] if checksum >= 0 else body).translate(None, b" \t\r\n"), validate=True
        )
    except binascii.Error:
        raise Refusal("the armor of the message on the config disk is damaged", _ENCRYPT_AGAIN) from None


class _Framing:
    """Walks over OpenPGP packets by their lengths, without reading their bodies."""

    def __init__(self, stream: BinaryIO, size: int, limit: int) -> None:
        self.stream, self.size, self.limit, self.position = stream, size, limit, 0

    def end_of_message(self) -> int:
        """RFC 9580, section 10.3: an encrypted message is session-key packets, then one of encrypted data."""
        session_keys = False
        while True:
            tag = self.step_over_packet()
            if tag in _SESSION_KEYS:
                session_keys = True
            elif tag in _ENCRYPTED_DATA and session_keys:
                return self.position
            elif tag != _MARKER:
                raise Refusal(
                    "the OpenPGP data on the config disk is not an encrypted message", _ENCRYPT_AGAIN
                )

    def step_over_packet(self) -> int:
        """Go to the end of the packet that starts here; its tag."""
        at_start = self.position == 0
        header = self.number(1)
        if not header & 0x80:
            raise (
                Refusal("the config disk holds no OpenPGP message", _ENCRYPT_AGAIN)
                if at_start
                else _truncated()
            )
        if header & 0x40:
            self.step_over_body()
            return header & 0x3F
        length_type = header & 0x03
        if length_type == 3:
            raise Refusal("the message on the config disk does not say how long it is", _ENCRYPT_AGAIN)
        self.step(self.number(1 << length_type))
        return header >> 2 & 0x0F

    def step_over_body(self) -> None:
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


def _truncated() -> Refusal:
    return Refusal("the message on the config disk is cut off", "write the whole encrypted file to the disk")


def _too_large(limit: int) -> Refusal:
    return Refusal(
        f"the message on the config disk is larger than {limit} bytes",
        "keep large files out of the config and let Ignition fetch them",
    )


def decrypt(message: bytes, private_key: Path, work: Path) -> bytes:
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
            if home.exists():
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
    cure = "build the image again with an OpenPGP private key that has no passphrase"
    try:
        result = gpg.import_keys(private_key.read_bytes())
    except OSError as error:
        raise Refusal(
            f"the image's private key {private_key} cannot be read ({error.strerror})", cure
        ) from None
    if not int(result.sec_read or 0):
        raise Refusal(f"the image's private key {private_key} is none that gpg can read", cure)


def _decrypted(gpg: Any, message: bytes) -> bytes:
    try:
        result = gpg.decrypt(message, extra_args=["--max-output", str(CONFIG_LIMIT)])
    except OSError:  # gpg closed its input early
        raise _damaged() from None
    if "exceeded --max-output limit" in result.stderr:
        raise Refusal(
            f"the decrypted config is larger than {CONFIG_LIMIT} bytes", "let Ignition fetch the large files"
        )
    if result.ok and result.returncode == 0:
        return bytes(result.data)
    raise _why_not(result.stderr)


def _why_not(status: str) -> Refusal:
    """From gpg's status lines (GnuPG, doc/DETAILS)."""
    if "[GNUPG:] DECRYPTION_KEY " in status:
        return _damaged()
    recipients = re.findall(r"^\[GNUPG:\] ENC_TO ([0-9A-F]+) ", status, re.MULTILINE)
    if recipients:
        return Refusal(
            f"the config is encrypted to key {', '.join(recipients)}; the image's key is another",
            "encrypt the config to the public key that came with this image, one without a passphrase",
        )
    if "[GNUPG:] NEED_PASSPHRASE_SYM " in status:
        return Refusal(
            "the config is encrypted with a passphrase",
            "encrypt it to the public key that came with this image",
        )
    return _damaged()


def _damaged() -> Refusal:
    return Refusal("the message on the config disk is damaged or was altered", _ENCRYPT_AGAIN)
