"""OpenPGP messages: that on the config disk, read once, and decrypted with the image's key; and one to the
owner's recovery keys.

The disk is larger than the message, and the rest of it is zeros. A ciphertext may end in zeros too, so the
end comes from the message's own framing: the armor's END line, or the packet lengths of RFC 9580, section 4.2
(the same as RFC 4880's). Exactly one encrypted message is taken from the disk into RAM; gpg gets that copy,
never the disk.

The host knows the image's public key, so it can put the owner's message, changed, into one of its own. What
comes of a private key is therefore no oracle only if every failure looks the same: see ``refused``.
"""

from __future__ import annotations

import binascii
import logging
import os
import re
import shutil
import tempfile
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import gnupg

from secex_firstboot.basic import process
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import exists, in_memory
from secex_firstboot.ignition import packets
from secex_firstboot.ignition.packets import ENCRYPT_AGAIN, MESSAGE_LIMIT, Packets, Plaintext
from secex_firstboot.ignition.recipients import Recipient
from secex_firstboot.ignition.signers import Signers, status_line

CONFIG_LIMIT = 64 << 20  # bytes

_BEGIN = b"-----BEGIN PGP MESSAGE-----"
_END = b"-----END PGP MESSAGE-----"
_OTHER_ARMOR = b"-----BEGIN PGP "
_SPACE = b" \t\r\n"
_CHUNK = 1 << 16

# RFC 9580, section 6.2: what comes before the data, and gpg's checksum behind it.
_ARMOR_HEAD = re.compile(rb"%s[ \t]*\r?\n(?:[^\s:][^:\r\n\0]*:[^\r\n\0]*\r?\n)*[ \t]*\r?\n" % _BEGIN)
_CHECKSUM = re.compile(rb"\n=[A-Za-z0-9+/]{4}\Z")
_LONGEST_TAIL = 64  # bytes: the last digits with the checksum's line, and white space there

# unix(7): a socket's path has at most 107 characters; the agent's longest name in a home made here.
_LONGEST_WORK_PATH = 107 - len("/gpg-01234567/S.gpg-agent.browser")

_NO_PIN_ENTRY = 85  # libgpg-error, err-codes.h: what --pinentry-mode=error makes of a passphrase
_HIDDEN = "0" * 16  # the key ID of a recipient that the message does not name
_STATUS_LIMIT = 1 << 20  # bytes: of more than 3000 recipients

# systemd: docs/UIDS-GIDS.md has no use for it, so nothing else in the initramfs runs as this user.
_USER = 65533
_SANDBOX = [
    # The kernel ends everything that gpg started, with gpg: a process namespace ends with its first process.
    *("unshare", "--net", "--ipc", "--pid", "--fork", "--"),
    *("setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"),
    *("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"),
]
_OPTIONS = [
    # No terminal to ask on: a key with a passphrase shall be an error, not a wait.
    *("--no-options", "--pinentry-mode", "error"),
    *("--disable-dirmngr", "--no-auto-key-locate", "--no-auto-key-retrieve"),
]

_UNWRAP = ["--unwrap", "--decrypt"]

_BUILD_AGAIN = "build the image again with an OpenPGP private key that has no passphrase"


def refused() -> Refusal:
    """The one answer to a config that the private key was used on, whatever is wrong with it.

    The host reads it. Two answers would let it ask the private key, or the config's reader, one question
    each start of the guest.
    """
    return Refusal(
        "SX-CONFIG-12",
        "the config is damaged or was altered, is not for this image's key or by none of its signers, "
        "or is no valid Ignition config",
        "look at it with secex check FILE on a workstation, and encrypt it again",
    )


# Finding the message.


def read_message(device: Path, limit: int = MESSAGE_LIMIT) -> BinaryIO:
    """The one OpenPGP message that the disk (or file) starts with, as binary packets in an anonymous file.

    The file is in RAM, at its start, and ends where the message does. No byte of the disk is read twice.
    Raises Refusal if there is no complete encrypted message, one longer than ``limit`` bytes on the disk, or
    anything but zeros behind it.
    """
    with ExitStack() as if_refused:
        message = if_refused.enter_context(in_memory("message"))
        try:
            with device.open("rb") as disk:
                _copy_message(disk, message, limit)
        except OSError as error:
            raise Refusal(
                "SX-CONFIG-13",
                f"the config disk {device} cannot be read ({error.strerror})",
                "check how the disk is attached",
            ) from None
        message.seek(0)
        if_refused.pop_all()
    return message


def _copy_message(disk: BinaryIO, message: BinaryIO, limit: int) -> None:
    chunks = iter(lambda: disk.read(_CHUNK), b"")
    first = next(chunks, b"")
    whole = chain([first], chunks)
    if not first.strip(b"\0"):
        raise Refusal("SX-CONFIG-14", "the config disk is empty", ENCRYPT_AGAIN)
    if first.startswith(_BEGIN):
        binary = _dearmored(whole, limit)
        behind = Packets(message, binary, limit).take_message() + b"".join(binary)
    elif first.startswith(_OTHER_ARMOR):
        raise packets.not_encrypted()
    else:
        behind = Packets(message, whole, limit).take_message() + next(chunks, b"")
        behind = behind.strip(b"\0")
    if behind:
        raise _something_behind()


def _dearmored(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    """The packets in an armor, which starts with the first chunk."""
    text = next(chunks)
    head = _ARMOR_HEAD.match(text)
    if not head:
        raise _damaged_armor()
    position, text, digits = head.end(), text[head.end() :], b""
    for chunk in chunks:
        if b"-" in text:
            text += chunk
            break
        body, text = text[:-_LONGEST_TAIL], text[-_LONGEST_TAIL:] + chunk
        position += len(body)
        if position > limit:
            raise packets.too_large(limit)
        if b"=" in body:
            raise _damaged_armor()
        digits += _digits(body)
        whole = len(digits) & ~3
        yield _decoded(digits[:whole])
        digits = digits[whole:]
    body, dash, rest = text.partition(b"-")
    if not dash or b"\0" in body:
        raise packets.truncated()
    if not body.endswith(b"\n") or not (dash + rest).startswith(_END):
        raise _damaged_armor()
    if position + len(body) + len(_END) > limit:
        raise packets.too_large(limit)
    yield _decoded(digits + _digits(_CHECKSUM.sub(b"", body.rstrip(_SPACE))))
    if rest.removeprefix(_END[1:]).lstrip(_SPACE).strip(b"\0"):
        raise _something_behind()


def _digits(body: bytes) -> bytes:
    if b"\0" in body:
        raise packets.truncated()
    return body.translate(None, _SPACE)


def _decoded(digits: bytes) -> bytes:
    try:
        return b64decode(digits, validate=True)
    except binascii.Error:
        raise _damaged_armor() from None


def _damaged_armor() -> Refusal:
    return Refusal("SX-CONFIG-15", "the armor of the message on the config disk is damaged", ENCRYPT_AGAIN)


def _something_behind() -> Refusal:
    return Refusal(
        "SX-CONFIG-16",
        "there is something else behind the message on the config disk",
        "write zeros to the config disk, then one encrypted file to its start",
    )


# Decrypting it.


@dataclass(frozen=True)
class _Result:
    """What came of one run of gpg: exit code, status lines, and a file with what it wrote."""

    code: int
    status: str
    output: BinaryIO


def decrypt(message: BinaryIO, private_key: Path, work: Path, trusted: Signers | None = None) -> bytes:
    """Decrypt with the OpenPGP private key (no passphrase) in a file; at most CONFIG_LIMIT bytes.

    One of ``trusted`` has to have signed it; None: anybody may have made it, and no signature is looked at.

    ``message`` is one of ``read_message``, and closed afterwards. ``work`` is a directory in RAM with a short
    path that every user may enter: gpg's homes lie in it while this runs.

    The private key is used on one layer only: gpg takes that one off, and looks at nothing within.

    Raises Refusal if this key does not open the message, or the message was altered, or is not one plaintext,
    or not by one of ``trusted``.
    """
    with message, _home(work) as home:
        gpg = _gpg(home)
        image_keys = _import_key(gpg, private_key)
        result = _unwrap(home, message)
        if not _is_one_layer(result):
            raise _why_not(result.status, gpg)
    with result.output as inner:
        try:
            found = packets.plaintext(inner, CONFIG_LIMIT)
        except Refusal:
            raise refused() from None
    if trusted and not _is_signed(found, trusted, image_keys, work):
        raise refused()
    return found.text


def _is_signed(found: Plaintext, trusted: Signers, image_keys: set[str], work: Path) -> bool:
    """Whether there is one signature, and it is good, of one of ``trusted``, for the image with these keys.

    gpg has a home without a private key here, and gets signature and text as they were understood: one
    packet, encoded anew, and the bytes that Ignition gets.
    """
    if len(found.signatures) != 1 or not trusted.accept(found.signatures[0], image_keys):
        return False
    with _home(work) as home, in_memory("signature") as signature, in_memory("text") as text:
        gpg = _gpg(home)
        for key in trusted.keys.values():
            gpg.import_keys(key)
        packets.write(signature, packets.packet(packets.SIGNATURE, found.signatures[0]))
        signature.seek(0)
        packets.write(text, found.text)
        number = signature.fileno()
        words = [*_alone(home), "--no-armor", "--trust-model", "always", "--enable-special-filenames"]
        result = _run(words, ["--verify", "--", f"-&{number}", "-"], text, _environment(), number)
        result.output.close()
    return trusted.have_made(result.code, result.status)


def decrypt_as_user(message: BinaryIO) -> bytes:
    """Decrypt with a key that the user's own gpg has, which may ask for its passphrase or its card.

    ``message`` is one of ``read_message``, and closed afterwards. Raises Refusal.
    """
    with message:
        result = _run(["gpg", "--no-armor"], _UNWRAP, message, {**os.environ, "LC_ALL": "C"})
    with result.output as inner, suppress(Refusal):
        if _is_one_layer(result, _ONE_LAYER_OF_WHO_MAY_ASK):
            return packets.plaintext(inner, CONFIG_LIMIT).text
    raise Refusal(
        "SX-RECOVER-03",
        "gpg has no key that opens it, or it was altered: it is for "
        + ", ".join(f"key {name}" for name in _recipients(result.status)),
        "give gpg the recovery key: GNUPGHOME names its directory",
    )


@contextmanager
def _home(work: Path) -> Iterator[Path]:
    """A directory for keyring and agent that only gpg's user and root can enter; gone afterwards."""
    if len(str(work)) > _LONGEST_WORK_PATH:
        raise FirstbootError("SX-CONFIG-17", f"the path {work} is too long for gpg-agent's sockets")
    home = Path(tempfile.mkdtemp(prefix="gpg-", dir=work))
    try:
        if _sandbox():
            os.chown(home, _USER, _USER)
        yield home
    finally:
        # An agent that ends removes its sockets meanwhile: a file that is gone already is no error.
        shutil.rmtree(home, ignore_errors=True)
        if exists(home):
            raise FirstbootError("SX-CONFIG-18", f"the private key's directory {home} could not be removed")


def _sandbox() -> list[str]:
    """What gpg is started by. Only root can take anything more away, and the agent is always root."""
    return _SANDBOX if os.geteuid() == 0 else []


class _Gpg(gnupg.GPG):  # type: ignore[misc]  # gnupg has no types
    def make_args(self, args: list[str], passphrase: bool) -> list[str]:
        return [*_sandbox(), *super().make_args(args, passphrase)]


def _gpg(home: Path) -> Any:
    # It logs what it is given to import: on debug level the private key.
    logging.getLogger("gnupg").setLevel(logging.CRITICAL)
    try:
        return _Gpg(gnupghome=str(home), options=_OPTIONS, env=_environment())
    except (OSError, ValueError) as error:
        raise FirstbootError(
            "SX-CONFIG-19",
            f"gpg does not start ({error})",
            "build the image again with gpg, gpg-agent, setpriv and unshare",
        ) from None


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _import_key(gpg: Any, private_key: Path) -> set[str]:
    """The fingerprints of what the file has."""
    try:
        result = gpg.import_keys(private_key.read_bytes())
    except OSError as error:
        raise Refusal(
            "SX-CONFIG-20",
            f"the image's private key {private_key} cannot be read ({error.strerror})",
            _BUILD_AGAIN,
        ) from None
    if not int(result.sec_read or 0):
        raise Refusal(
            "SX-CONFIG-21", f"the image's private key {private_key} is none that gpg can read", _BUILD_AGAIN
        )
    return set(result.fingerprints)


def _unwrap(home: Path, message: BinaryIO) -> _Result:
    return _run([*_alone(home), "--no-armor"], _UNWRAP, message, _environment())


def _alone(home: Path) -> list[str]:
    """gpg with nothing but what is in its ``home``."""
    return [*_sandbox(), "gpg", "--homedir", str(home), "--batch", "--no-tty", *_OPTIONS]


def _run(
    gpg: Sequence[str],
    command: Sequence[str],
    stdin: BinaryIO,
    environment: Mapping[str, str],
    *inherited: int,
) -> _Result:
    """Its status has a descriptor of its own; what else it says is for nobody."""
    output = in_memory("output")
    with in_memory("status") as status:
        number = status.fileno()
        code = process.run_on_files(
            [*gpg, "--status-fd", str(number), *command],
            stdin=stdin,
            stdout=output,
            inherited=[number, *inherited],
            environment=environment,
        )
        status.seek(0)
        lines = status.read(_STATUS_LIMIT).decode("latin-1")
    return _Result(code, lines, output)


# GnuPG: doc/DETAILS for the lines; g10/mainproc.c, proc_encrypted(), for their order.
# In older versions the compliance mode comes earlier.
_RECIPIENTS = ("ENC_TO", "KEY_CONSIDERED", "CARDCTRL", "NO_SECKEY")
_ASKS = ("USERID_HINT", "NEED_PASSPHRASE", "PINENTRY_LAUNCHED")
_COMPLIANCE = status_line("DECRYPTION_COMPLIANCE_MODE")


def _one_layer(*of_recipients: str) -> re.Pattern[str]:
    before = status_line(*of_recipients)
    return re.compile(
        f"(?:{before})*{status_line('DECRYPTION_KEY')}(?:{before})*"
        f"{status_line('BEGIN_DECRYPTION')}(?:{_COMPLIANCE})?{status_line('DECRYPTION_INFO')}"
        f"{status_line('DECRYPTION_OKAY')}{status_line('GOODMDC')}(?:{_COMPLIANCE})?"
        f"{status_line('END_DECRYPTION')}"
    )


_ONE_LAYER = _one_layer(*_RECIPIENTS)
_ONE_LAYER_OF_WHO_MAY_ASK = _one_layer(*_RECIPIENTS, *_ASKS)
_GPG_EXIT = status_line("FAILURE gpg-exit")


def _is_one_layer(result: _Result, lines: re.Pattern[str] = _ONE_LAYER) -> bool:
    """Whether gpg says of exactly one encrypted layer, and of nothing else, that it is whole and ours."""
    status = result.status
    # For each hidden recipient that is not us, gpg 2.2 counts an error, and says so at the end.
    if result.code == 2 and _HIDDEN in _recipients(status):
        status = re.sub(rf"{_GPG_EXIT}\Z", "", status)
    elif result.code != 0:
        return False
    return bool(lines.fullmatch(status))


def _recipients(status: str) -> list[str]:
    """The IDs of the keys that the message is encrypted to, as it names them."""
    return re.findall(r"^\[GNUPG:\] ENC_TO ([0-9A-F]{16}) ", status, re.MULTILINE)


def _why_not(status: str, gpg: Any) -> Refusal:
    """Nothing but what anybody can see in the message, as soon as the private key was used on it."""
    errors = re.findall(r"^\[GNUPG:\] ERROR pkdecrypt_failed ([0-9]+)", status, re.MULTILINE)
    if any(int(code) & 0xFFFF == _NO_PIN_ENTRY for code in errors):
        return Refusal("SX-CONFIG-22", "the image's private key has a passphrase", _BUILD_AGAIN)
    recipients = _recipients(status)
    keys = [
        (identity, capabilities)
        for key in gpg.list_keys()
        for identity, capabilities, *_ in [(key["keyid"], key["cap"]), *key["subkeys"]]
    ]
    if {_HIDDEN, *(identity for identity, _ in keys)} & set(recipients):
        return refused()
    if recipients:
        ours = ", ".join(identity for identity, capabilities in keys if "e" in capabilities)
        return Refusal(
            "SX-CONFIG-23",
            f"the config is encrypted to {', '.join(f'key {name}' for name in recipients)}; "
            f"the image's key is {ours}",
            "encrypt the config to the public key that came with this image",
        )
    if "[GNUPG:] NEED_PASSPHRASE_SYM " in status:
        return Refusal(
            "SX-CONFIG-24",
            "the config is encrypted with a passphrase",
            "encrypt it to the public key that came with this image",
        )
    return refused()


# Encrypting.

_ENCRYPTED = re.compile(
    f"(?:{status_line('KEY_CONSIDERED')})+(?:{status_line('ENCRYPTION_COMPLIANCE_MODE')})?"
    f"{status_line('BEGIN_ENCRYPTION')}{status_line('END_ENCRYPTION')}"
)


def encrypt(plain: bytes, recipients: Sequence[Recipient], work: Path) -> bytes:
    """A message to these, and to nobody else. Its length tells no more than that of ``plain``, and to whom.

    ``work`` as for ``decrypt``. Raises Refusal if a key cannot be encrypted to, as it has expired, say.
    """
    with _home(work) as home, in_memory("plain") as message:
        packets.write(message, plain)
        words = [*_alone(home), "--no-armor", "--compress-algo", "none", "--cipher-algo", "AES256"]
        for number, each in enumerate(recipients):
            file = home / f"recipient-{number}"
            file.write_bytes(each.packets)
            file.chmod(0o644)  # gpg's user cannot read it otherwise; nobody else gets here
            words += ["--recipient-file", str(file)]
        result = _run(words, ["--encrypt"], message, _environment())
    with result.output as output:
        if result.code == 0 and _ENCRYPTED.fullmatch(result.status) and _is_for(output, len(recipients)):
            output.seek(0)
            return output.read()
    raise Refusal(
        "SX-RECOVER-04",
        f"gpg does not encrypt to {', '.join(each.name for each in recipients)}",
        "use a recovery key that has not expired, is not revoked, and is for encryption",
    )


def _is_for(message: BinaryIO, recipients: int) -> bool:
    """Whether the message is one to so many keys, and to no passphrase."""
    walk, tags = Packets(message), []
    while not walk.at_end:
        tags.append(walk.next()[0])
    return tags in ([packets.TO_A_KEY] * recipients + [data] for data in packets.ENCRYPTED_DATA)
