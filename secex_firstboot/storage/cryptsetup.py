"""libcryptsetup, as far as first boot needs it: LUKS2 with dm-integrity, dm-verity, zeroing a range.

A thin ctypes binding in pycryptsetup's spirit: one handle, few methods, errors in the library's own words.
The library is called in this process, so that no key is ever on a command line. Structures and constants are
those of libcryptsetup.h (2.4 to 2.7), under the names they have there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.storage import devicemapper, verity_superblock
from secex_firstboot.storage.verity_superblock import Superblock

CIPHER = ("aes", "xts-plain64")
INTEGRITY = "hmac(sha256)"
XTS_KEY_BYTES = 64  # AES-256-XTS takes two keys of 32 bytes
VOLUME_KEY_BYTES = XTS_KEY_BYTES + 32  # and HMAC-SHA256 one
DATA_OFFSET = 16 << 20  # bytes from the start of the device to the dm-integrity superblock

# Small areas: the header travels inside sdboot. One keyslot takes 96 bytes x 4000 stripes = 376 KiB.
_METADATA_BYTES = 16 << 10
_KEYSLOTS_BYTES = 512 << 10
HEADER_SIZE = 2 * _METADATA_BYTES + _KEYSLOTS_BYTES  # bytes of a detached header, as backup_header writes it
_LEAST_ITERATIONS = 1000  # MIN_PBKDF2_ITERATIONS: more buys nothing for a key of full entropy

_WIPE_STEP = 1 << 20
_SECTOR = 512

# Of keyslots that were written with the owner's key: cryptsetup's default (luks2_keyslot_luks2.c).
_KEYSLOT_CIPHER = ("-".join(CIPHER).encode(), XTS_KEY_BYTES)
_KEYSLOTS = 32  # luks2.h: LUKS2_KEYSLOTS_MAX

CRYPT_LOG_ERROR = 1
CRYPT_ANY_SLOT = -1
CRYPT_PBKDF_NO_BENCHMARK = 1 << 1
CRYPT_ACTIVATE_READONLY = 1 << 0
CRYPT_ACTIVATE_PRIVATE = 1 << 4
CRYPT_ACTIVATE_IGNORE_ZERO_BLOCKS = 1 << 10
CRYPT_ACTIVATE_NO_JOURNAL = 1 << 12
CRYPT_WIPE_ZERO = 0
CRYPT_VERITY_NO_HEADER = 1 << 0


class _PbkdfType(ctypes.Structure):
    """struct crypt_pbkdf_type"""

    _fields_ = (
        ("type", c_char_p),
        ("hash", c_char_p),
        ("time_ms", c_uint32),
        ("iterations", c_uint32),
        ("max_memory_kb", c_uint32),
        ("parallel_threads", c_uint32),
        ("flags", c_uint32),
    )


class _IntegrityParameters(ctypes.Structure):
    """struct crypt_params_integrity"""

    _fields_ = (
        ("journal_size", c_uint64),
        ("journal_watermark", c_uint),
        ("journal_commit_time", c_uint),
        ("interleave_sectors", c_uint32),
        ("tag_size", c_uint32),
        ("sector_size", c_uint32),
        ("buffer_sectors", c_uint32),
        ("integrity", c_char_p),
        ("integrity_key_size", c_uint32),
        ("journal_integrity", c_char_p),
        ("journal_integrity_key", c_char_p),
        ("journal_integrity_key_size", c_uint32),
        ("journal_crypt", c_char_p),
        ("journal_crypt_key", c_char_p),
        ("journal_crypt_key_size", c_uint32),
    )


class _Luks2Parameters(ctypes.Structure):
    """struct crypt_params_luks2"""

    _fields_ = (
        ("pbkdf", POINTER(_PbkdfType)),
        ("integrity", c_char_p),
        ("integrity_params", POINTER(_IntegrityParameters)),
        ("data_alignment", c_size_t),
        ("data_device", c_char_p),
        ("sector_size", c_uint32),
        ("label", c_char_p),
        ("subsystem", c_char_p),
    )


class _VerityParameters(ctypes.Structure):
    """struct crypt_params_verity"""

    _fields_ = (
        ("hash_name", c_char_p),
        ("data_device", c_char_p),
        ("hash_device", c_char_p),
        ("fec_device", c_char_p),
        ("salt", c_void_p),
        ("salt_size", c_uint32),
        ("hash_type", c_uint32),
        ("data_block_size", c_uint32),
        ("hash_block_size", c_uint32),
        ("data_size", c_uint64),
        ("hash_area_offset", c_uint64),
        ("fec_area_offset", c_uint64),
        ("fec_roots", c_uint32),
        ("flags", c_uint32),
    )


_LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
_ProgressCallback = ctypes.CFUNCTYPE(c_int, c_uint64, c_uint64, c_void_p)

# name: result, arguments. c_void_p is the opaque struct crypt_device *.
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "crypt_init_data_device": (c_int, (POINTER(c_void_p), c_char_p, c_char_p)),
    "crypt_free": (None, (c_void_p,)),
    "crypt_set_log_callback": (None, (c_void_p, _LogCallback, c_void_p)),
    "crypt_set_metadata_size": (c_int, (c_void_p, c_uint64, c_uint64)),
    "crypt_set_data_offset": (c_int, (c_void_p, c_uint64)),
    "crypt_set_pbkdf_type": (c_int, (c_void_p, POINTER(_PbkdfType))),
    "crypt_format": (
        c_int,
        (c_void_p, c_char_p, c_char_p, c_char_p, c_char_p, c_char_p, c_size_t, c_void_p),
    ),
    "crypt_load": (c_int, (c_void_p, c_char_p, c_void_p)),
    "crypt_keyslot_add_by_volume_key": (
        c_int,
        (c_void_p, c_int, c_char_p, c_size_t, c_char_p, c_size_t),
    ),
    "crypt_keyslot_get_encryption": (c_char_p, (c_void_p, c_int, POINTER(c_size_t))),
    "crypt_keyslot_get_key_size": (c_int, (c_void_p, c_int)),
    "crypt_volume_key_get": (
        c_int,
        (c_void_p, c_int, c_char_p, POINTER(c_size_t), c_char_p, c_size_t),
    ),
    "crypt_header_backup": (c_int, (c_void_p, c_char_p, c_char_p)),
    "crypt_activate_by_passphrase": (c_int, (c_void_p, c_char_p, c_int, c_char_p, c_size_t, c_uint32)),
    "crypt_activate_by_volume_key": (c_int, (c_void_p, c_char_p, c_char_p, c_size_t, c_uint32)),
    "crypt_deactivate_by_name": (c_int, (c_void_p, c_char_p, c_uint32)),
    "crypt_get_cipher": (c_char_p, (c_void_p,)),
    "crypt_get_cipher_mode": (c_char_p, (c_void_p,)),
    "crypt_get_uuid": (c_char_p, (c_void_p,)),
    "crypt_get_label": (c_char_p, (c_void_p,)),
    "crypt_get_data_offset": (c_uint64, (c_void_p,)),
    "crypt_get_volume_key_size": (c_int, (c_void_p,)),
    "crypt_get_sector_size": (c_int, (c_void_p,)),
    "crypt_get_integrity_info": (c_int, (c_void_p, POINTER(_IntegrityParameters))),
    "crypt_wipe": (
        c_int,
        (
            c_void_p,
            c_char_p,
            c_int,
            c_uint64,
            c_uint64,
            c_size_t,
            c_uint32,
            _ProgressCallback,
            c_void_p,
        ),
    ),
}


class CryptSetupError(FirstbootError):
    """libcryptsetup refused or failed; carries its error lines and ``errno``."""

    def __init__(self, action: str, code: int, words: str = "", cure: str = "") -> None:
        self.errno = code
        super().__init__("SX-DISK-03", f"cannot {action}: {words or os.strerror(code)}", cure)


class _ErrorLines(threading.local):
    """What the library said went wrong, in the thread it said it in."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def take(self) -> str:
        words, self.lines = " ".join(self.lines), []
        return words


_errors = _ErrorLines()


def _collect(level: int, message: bytes, _: Any) -> None:
    if level == CRYPT_LOG_ERROR:
        _errors.lines.append(message.decode(errors="replace").strip())


_collect_callback = _LogCallback(_collect)  # the library keeps the pointer as long as it is loaded


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libcryptsetup.so.12")
    except OSError:
        raise FirstbootError(
            "SX-DISK-04", "libcryptsetup is not installed", "install libcryptsetup12"
        ) from None
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.crypt_set_log_callback(None, _collect_callback, None)
    return library


def _check(result: int, action: str) -> None:
    """The library returns a negative errno on failure, zero or a keyslot number on success."""
    words = _errors.take()
    if result < 0:
        raise CryptSetupError(action, -result, words)


def _text(found: bytes | None) -> str:
    """What the library says; a header may hold any bytes."""
    return (found or b"").decode(errors="replace")


def _in_place(key: bytearray) -> ctypes.Array[ctypes.c_char]:
    """The key where it lies, for the library: no copy stays behind when it is overwritten."""
    return (ctypes.c_char * len(key)).from_buffer(key)


@dataclass(frozen=True)
class VolumeDescription:
    """What a LUKS2 header says about its volume. Sizes in bytes."""

    uuid: str
    label: str
    cipher: str
    integrity: str
    tag_size: int
    volume_key_size: int
    sector_size: int
    data_offset: int


class CryptSetup:
    """A handle on ``device``; ``header`` is where its metadata lies, if not on the device itself.

    For LUKS2, ``header`` is the file or device with the detached header; for dm-verity, the hash device.
    Paths may name regular files: the library then attaches a loop device by itself.
    """

    def __init__(self, device: Path, header: Path | None = None) -> None:
        self._device = device
        self._handle = c_void_p()
        _check(
            _library().crypt_init_data_device(
                byref(self._handle), os.fsencode(header or device), os.fsencode(device) if header else None
            ),
            f"open {device}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the handle; active mappings stay."""
        _library().crypt_free(self._handle)
        self._handle = c_void_p()

    def format_luks2(
        self,
        *,
        label: str,
        sector_size: int,
        key: bytearray,
        journal_bytes: int,
        data_offset: int = DATA_OFFSET,
    ) -> None:
        """Write a LUKS2 header with one keyslot that ``key`` opens, dm-integrity superblock and journal.

        The volume key is the library's own random choice. Nothing is wiped: a sector never written
        cannot be read. ``sector_size`` is 512 or 4096; ``data_offset`` and ``journal_bytes`` are bytes.
        """
        integrity = _IntegrityParameters(journal_size=journal_bytes)
        parameters = _Luks2Parameters(
            integrity=INTEGRITY.encode(),
            integrity_params=ctypes.pointer(integrity),
            sector_size=sector_size,
            label=label.encode(),
        )
        self._format(parameters, key, data_offset=data_offset)

    def format_luks2_for(
        self, volume_key: bytearray, *, key: bytearray, uuid: str, sector_size: int, data_offset: int
    ) -> None:
        """Write a LUKS2 header for data that ``volume_key`` (64 bytes) encrypts, without dm-integrity.

        ``sector_size`` and ``data_offset`` are bytes; ``key`` opens the one keyslot.
        """
        parameters = _Luks2Parameters(sector_size=sector_size)
        self._format(parameters, key, data_offset=data_offset, volume_key=volume_key, uuid=uuid)

    def _format(
        self,
        parameters: _Luks2Parameters,
        key: bytearray,
        *,
        data_offset: int,
        volume_key: bytearray | None = None,
        uuid: str | None = None,
    ) -> None:
        action = f"format {self._device}"
        pbkdf = _PbkdfType(
            type=b"pbkdf2", hash=b"sha256", iterations=_LEAST_ITERATIONS, flags=CRYPT_PBKDF_NO_BENCHMARK
        )
        cipher, mode = (word.encode() for word in CIPHER)
        library, handle = _library(), self._handle
        _check(library.crypt_set_metadata_size(handle, _METADATA_BYTES, _KEYSLOTS_BYTES), action)
        _check(library.crypt_set_data_offset(handle, data_offset // _SECTOR), action)
        _check(library.crypt_set_pbkdf_type(handle, byref(pbkdf)), action)
        _check(
            library.crypt_format(
                handle,
                b"LUKS2",
                cipher,
                mode,
                uuid.encode() if uuid else None,
                _in_place(volume_key) if volume_key else None,
                len(volume_key) if volume_key else VOLUME_KEY_BYTES,
                byref(parameters),
            ),
            action,
        )
        _check(
            library.crypt_keyslot_add_by_volume_key(
                handle, CRYPT_ANY_SLOT, None, 0, _in_place(key), len(key)
            ),
            action,
        )

    def load_luks2(self) -> VolumeDescription:
        """Read the LUKS2 header; needed before ``activate`` and ``backup_header`` unless just formatted."""
        library, handle = _library(), self._handle
        _check(library.crypt_load(handle, b"LUKS2", None), f"read the LUKS2 header of {self._device}")
        info = _IntegrityParameters()
        _check(library.crypt_get_integrity_info(handle, byref(info)), f"describe {self._device}")
        return VolumeDescription(
            uuid=_text(library.crypt_get_uuid(handle)),
            label=_text(library.crypt_get_label(handle)),
            cipher=f"{_text(library.crypt_get_cipher(handle))}-{_text(library.crypt_get_cipher_mode(handle))}",
            integrity=_text(info.integrity or b"none"),
            tag_size=info.tag_size,
            volume_key_size=library.crypt_get_volume_key_size(handle),
            sector_size=library.crypt_get_sector_size(handle),
            data_offset=library.crypt_get_data_offset(handle) * _SECTOR,
        )

    @contextmanager
    def volume_key(self, key: bytearray) -> Iterator[bytearray]:
        """The volume key (64 bytes) of a keyslot that ``key`` opens, overwritten at the end of the block.

        Only of one that is encrypted with what is derived from ``key``, as cryptsetup does it: nobody else
        can have written that, as there is a digest of what has to come out. A keyslot with a null cipher
        opens for every key, to what its writer has chosen. The header has to be in memory, where nobody
        changes it meanwhile. Raises CryptSetupError if there is none.
        """
        library, handle, size = _library(), self._handle, c_size_t()
        secret = bytearray(XTS_KEY_BYTES)
        try:
            for slot in range(_KEYSLOTS):
                encryption = library.crypt_keyslot_get_encryption(handle, slot, byref(size))
                if (encryption, size.value) != _KEYSLOT_CIPHER:
                    continue
                # What a slot says of itself, since that is how much is written to the buffer.
                if library.crypt_keyslot_get_key_size(handle, slot) != len(secret):
                    continue
                size.value = len(secret)
                result = library.crypt_volume_key_get(
                    handle, slot, _in_place(secret), byref(size), _in_place(key), len(key)
                )
                if result >= 0:
                    break
                _errors.take()
            else:
                raise CryptSetupError(
                    f"find the volume key of {self._device}",
                    errno.EPERM,
                    "the key opens no keyslot of its own",
                )
            yield secret
        finally:
            secret[:] = bytes(len(secret))

    def backup_header(self, path: Path) -> None:
        """Write the header to the new file ``path``, from which it also serves as a detached header."""
        _check(
            _library().crypt_header_backup(self._handle, b"LUKS2", os.fsencode(path)),
            f"save the LUKS2 header of {self._device}",
        )

    def activate(self, name: str, key: bytearray, *, no_journal: bool = False, private: bool = False) -> Path:
        """Open the volume as /dev/mapper/``name`` (and /dev/mapper/``name``_dif below it).

        ``private``: udev's rules do not look what is on it, and systemd does not see it.
        """
        action = f"open the volume {name} on {self._device}"
        flags = no_journal * CRYPT_ACTIVATE_NO_JOURNAL | private * CRYPT_ACTIVATE_PRIVATE
        result = _library().crypt_activate_by_passphrase(
            self._handle, name.encode(), CRYPT_ANY_SLOT, _in_place(key), len(key), flags
        )
        if result == -errno.EPERM:
            raise CryptSetupError(action, errno.EPERM, f"the key opens no keyslot {_errors.take()}")
        _check(result, action)
        return devicemapper.MAPPER / name

    def use_verity(self, superblock: Superblock) -> None:
        """What the hash device (``header`` of the constructor) was found to hold, needed before
        ``activate_verity``. The library does not read it again: its disk may answer otherwise now.
        """
        salt = ctypes.create_string_buffer(superblock.salt, len(superblock.salt) or 1)
        parameters = _VerityParameters(
            hash_name=verity_superblock.ALGORITHM.encode(),
            salt=ctypes.addressof(salt),
            salt_size=len(superblock.salt),
            hash_type=verity_superblock.HASH_TYPE,
            data_block_size=verity_superblock.BLOCK_SIZE,
            hash_block_size=verity_superblock.BLOCK_SIZE,
            data_size=superblock.data_blocks,
            hash_area_offset=verity_superblock.HASHES_AT,
            flags=CRYPT_VERITY_NO_HEADER,
        )
        _check(
            _library().crypt_format(self._handle, b"VERITY", None, None, None, None, 0, byref(parameters)),
            f"use dm-verity for {self._device}",
        )

    def activate_verity(self, name: str, root_hash: bytes) -> Path:
        """Open the device read-only through dm-verity as /dev/mapper/``name``.

        A block that the hash tree knows as zeros is zeros, whatever the device holds there: what is free on
        an image's file system costs no hash.

        The kernel first looks at the root hash when a block is read, and the library only logs what it
        sees then (VERITY_activate in verity.c): so one block is read here, and a failure closes the
        mapping again.
        """
        _check(
            _library().crypt_activate_by_volume_key(
                self._handle,
                name.encode(),
                root_hash,
                len(root_hash),
                CRYPT_ACTIVATE_READONLY | CRYPT_ACTIVATE_IGNORE_ZERO_BLOCKS,
            ),
            f"open {self._device} through dm-verity",
        )
        try:
            with (devicemapper.MAPPER / name).open("rb", buffering=0) as device:
                device.read(4096)
        except OSError as error:
            _deactivate(name)
            raise CryptSetupError(
                f"open {self._device} through dm-verity",
                error.errno or 0,
                "its content does not match the root hash",
                "the disk was damaged or changed: start again from the image",
            ) from None
        return devicemapper.MAPPER / name

    def wipe_zero(self, offset: int, length: int, progress: Callable[[int, int], None] | None = None) -> None:
        """Write zeros to ``length`` bytes from ``offset``; ``progress`` hears (bytes done, ``length``)."""
        raised: list[BaseException] = []

        def report(_: int, position: int, __: Any) -> int:
            try:
                if progress:
                    progress(position - offset, length)
            except BaseException as error:  # must not be lost in the C frames between here and the caller
                raised.append(error)
                return 1
            return 0

        result = _library().crypt_wipe(
            self._handle,
            None,
            CRYPT_WIPE_ZERO,
            offset,
            length,
            _WIPE_STEP,
            0,
            _ProgressCallback(report),
            None,
        )
        if raised:
            _errors.take()
            raise raised[0]
        _check(result, f"write zeros to {self._device}")


def describe(header: bytes) -> VolumeDescription:
    """What a detached LUKS2 header says. The library gets a copy, as it mends a damaged one where it lies."""
    with os.fdopen(os.memfd_create("header", os.MFD_CLOEXEC), "wb", buffering=0) as copy:
        copy.write(header)
        with CryptSetup(Path(f"/proc/self/fd/{copy.fileno()}")) as volume:
            return volume.load_luks2()


def luks2_uuid(header: Path) -> str:
    """The UUID in a LUKS2 header: LUKS2 On-Disk Format Specification, 2.1, binary header."""
    with header.open("rb") as stream:
        binary = stream.read(512)
    return binary[168:208].split(b"\0")[0].decode("ascii", errors="replace")


def close(name: str) -> None:
    """Close the mapping ``name``, if there is one, and what the library opened below it."""
    if devicemapper.exists(name):
        _deactivate(name)


def _deactivate(name: str) -> None:
    _check(_library().crypt_deactivate_by_name(None, name.encode(), 0), f"close {name}")
