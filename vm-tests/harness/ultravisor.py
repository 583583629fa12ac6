"""A software ultravisor: opens a Secure Execution image as the firmware of IBM Z does, or refuses as it does.

It shares no code with the project's image builder, so that each checks the other. It works on a file, because
such an image is laid out as it is loaded (file offset = guest address), and on the RAM of a stopped guest.

Sources: IBM s390-tools, genprotimg/boot (stage3a.c for the arguments and the refusals, stage3b.c) and
rust/pvimg (the header; its version 2 from a fork at 2.44, embedded4ever/s390-tools); QEMU hw/s390x/ipl.h
(the IPL parameter block) and target/s390x/kvm/pv.c (the order of the steps: set secure parameters, unpack,
verify).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from mmap import mmap
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

PAGE = 4096
LOAD_ADDRESS = 0x10000  # of stage3a; zipl's boot map starts an image here
ENTRY_ADDRESS = 0x11000  # where stage3a goes on from LOAD_ADDRESS, and where a direct boot starts it

Memory = bytearray | mmap


@dataclass(frozen=True)
class HybridKey:
    """The halves of a quantum-safe host key."""

    ec: ec.EllipticCurvePrivateKey
    ml_kem: MLKEM1024PrivateKey


HostKey = ec.EllipticCurvePrivateKey | HybridKey


class Reason(Enum):
    """Why an image is refused: RC, RRC and what they mean.

    The codes are those of stage3a.c. It knows none for a failed GCM tag or a wrong magic: these have the RC
    of their kind and RRC 0. 0x0402 is not the ultravisor's but the hypervisor's: DIAG_308_RC_INVALID.
    """

    INVALID_PARAMETERS = 0x0402, 0x0000, "the IPL parameter block or its place is not valid"
    HEADER_VERSION = 0x0104, 0x0001, "the header has another version"
    HEADER_CORRUPT = 0x010A, 0x0000, "the header is corrupt"
    HEADER_SIZE = 0x010A, 0x0031, "the header's size does not match its content"
    ENCRYPTED_AREA_SIZE = 0x010A, 0x0039, "the size of the header's encrypted area is not valid"
    NO_KEY_SLOT = 0x010A, 0x0040, "the header has no key slots"
    PLAINTEXT_FLAG = 0x0106, 0x0030, "an unknown plaintext control flag is set"
    SECRET_FLAG = 0x0109, 0x0000, "an unknown secret control flag is set"
    KEY_SLOT_CORRUPT = 0x0108, 0x0000, "the key slot does not open with the host key it is for"
    HOST_KEY = 0x0108, 0x0005, "no key slot is for this host's key"
    CUSTOMER_KEY = 0x0108, 0x000B, "the customer public key is not a point on secp521r1"
    ALD_MISMATCH = 0x0102, 0x001A, "address list digest mismatch"
    PLD_MISMATCH = 0x0102, 0x001B, "page list digest mismatch"
    TLD_MISMATCH = 0x0102, 0x001C, "tweak list digest mismatch"
    PAGE_COUNT = 0x0102, 0x001D, "the number of encrypted pages does not match"


class Refused(Exception):
    """The ultravisor does not start this image."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        self.rc, self.rrc, self.text = reason.value
        super().__init__(f"{self.text} (RC {self.rc:#06x}, RRC {self.rrc:#06x})")


class Psw(NamedTuple):
    """Program status word: where the guest goes on, and in which mode."""

    mask: int
    address: int


@dataclass(frozen=True)
class Component:
    """A run of encrypted pages, as the IPL parameter block lists it; addresses and lengths in bytes."""

    tweak_prefix: int
    address: int
    length: int

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """Address and tweak of each page."""
        for offset in range(0, self.length, PAGE):
            yield self.address + offset, struct.pack(">QQ", self.tweak_prefix, offset)


@dataclass(frozen=True)
class Decrypted:
    """What the ultravisor knows once an image's components lie decrypted in memory."""

    key: HostKey
    components: tuple[Component, ...]
    psw: Psw
    plaintext_flags: int
    secret_flags: int


@dataclass(frozen=True)
class Unpacked:
    """What is in an image file."""

    kernel: bytes
    command_line: str
    ramdisk: bytes
    stage3b: bytes
    psw: Psw
    kernel_psw: Psw
    plaintext_flags: int
    secret_flags: int


class Place(NamedTuple):
    """Where stage3a's arguments say the header and the IPL parameter block are; address, bytes, address."""

    header_address: int
    header_size: int
    ipib_address: int
    arguments_address: int


# --- stage3a -----------------------------------------------------------------------------------------------

# LHI %r1,1; SIGP %r1,%r0,SET_ARCHITECTURE; SAM64: head.S and stage3a_init.S both begin so.
_STAGE3A_CODE = bytes.fromhex("a7180001 ae100012 010e")
_STAGE3A_LIMIT = LOAD_ADDRESS + 16 * PAGE
_PVIMGS_HEADER = 0x14000
_STAGE3A_ARGUMENTS = struct.Struct(">QQQ")  # header offset, header size, IPIB offset, from the arguments


def holds_stage3a(memory: Memory) -> bool:
    return all(memory[at : at + 10] == _STAGE3A_CODE for at in (LOAD_ADDRESS, ENTRY_ADDRESS))


def find_place(memory: Memory) -> Place:
    """Find header and IPIB as stage3a does, through the arguments at its end.

    Where stage3a ends is not written anywhere, but its arguments point to the pages that follow it: as
    genprotimg lays an image out, to the next one (IPIB) and the one after (header); as pvimg does, to the
    next one from 0x14000 on (header) and to one behind it (IPIB). No other 24 bytes can be taken for them.
    """
    for address in range(ENTRY_ADDRESS, min(_STAGE3A_LIMIT, len(memory) - _STAGE3A_ARGUMENTS.size), 8):
        header_offset, header_size, ipib_offset = _STAGE3A_ARGUMENTS.unpack_from(memory, address)
        header, ipib = address + header_offset, address + ipib_offset
        following = _whole_pages(address + _STAGE3A_ARGUMENTS.size)
        genprotimgs = (ipib, header) == (following, following + PAGE)
        pvimgs = header == max(following, _PVIMGS_HEADER) < ipib < len(memory) and ipib % PAGE == 0
        if genprotimgs or pvimgs:
            return Place(header, header_size, ipib, address)
    raise Refused(Reason.INVALID_PARAMETERS)


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


# --- the IPL parameter block -------------------------------------------------------------------------------

_IPIB_START = struct.Struct(">I3sB I B")  # length, reserved, version; block 0: length, type
_IPIB_COUNT = struct.Struct(">I")
_IPIB_HEADER = struct.Struct(">QQ")  # header address and size, set at run time
_IPIB_COMPONENT = struct.Struct(">QQQ")
_IPIB_COUNT_OFFSET, _IPIB_HEADER_OFFSET, _IPIB_COMPONENTS_OFFSET = 116, 120, 136
_IPIB_BLOCK_SIZE = 128  # of block 0 without components
_IPIB_TYPE_PV = 5


def _read_components(memory: Memory, ipib_address: int) -> tuple[Component, ...]:
    """The checks are those of QEMU's ipl_valid_pv_components(), and that pages are whole and in memory."""
    if ipib_address % PAGE or ipib_address + _IPIB_COMPONENTS_OFFSET > len(memory):
        raise Refused(Reason.INVALID_PARAMETERS)
    ipib = bytes(memory[ipib_address : ipib_address + PAGE]).ljust(PAGE, b"\0")
    (count,) = _IPIB_COUNT.unpack_from(ipib, _IPIB_COUNT_OFFSET)
    block_size = _IPIB_BLOCK_SIZE + count * _IPIB_COMPONENT.size
    end = _IPIB_COMPONENTS_OFFSET + count * _IPIB_COMPONENT.size
    length, *start = _IPIB_START.unpack_from(ipib)
    if length not in (end, PAGE) or start != [bytes(3), 1, block_size, _IPIB_TYPE_PV]:
        raise Refused(Reason.INVALID_PARAMETERS)
    if not count or end > PAGE:
        raise Refused(Reason.INVALID_PARAMETERS)
    entries = _IPIB_COMPONENT.iter_unpack(ipib[_IPIB_COMPONENTS_OFFSET:end])
    components = tuple(Component(*entry) for entry in entries)
    prefixes = [component.tweak_prefix for component in components]
    if prefixes != sorted(set(prefixes)):
        raise Refused(Reason.INVALID_PARAMETERS)
    if any(c.address % PAGE or c.length % PAGE or c.address + c.length > len(memory) for c in components):
        raise Refused(Reason.INVALID_PARAMETERS)
    return components


# --- the header --------------------------------------------------------------------------------------------

_MAGIC = b"IBMSecEx"
_MAX_HEADER_SIZE = 2 * PAGE
_TAG_SIZE = 16
_SECRET = struct.Struct(">32s 64s QQ Q II")  # CCK, XTS key, PSW, secret flags, optional items, reserved
_COORDINATE_SIZE = 80  # of a public key's X and Y, big-endian, left-padded


def _from_left(*bits: int) -> int:
    """Control flags are counted from the most significant of 64 bits."""
    return sum(1 << (63 - bit) for bit in bits)


NOT_ENCRYPTED = _from_left(35)
_PLAINTEXT_FLAGS = _from_left(34, 35, 56, 57, 58)  # dumping, not encrypted, PCKMO: DEA-TDEA, AES, ECC
_SECRET_FLAGS = _from_left(1)  # add-secret requests need the extension secret


class _Version(NamedTuple):
    """``slot``: hash of the host's public key; wrapped header key and its tag; ML-KEM ciphertext."""

    slot: struct.Struct
    plaintext_flags: int


_VERSIONS = {
    0x100: _Version(struct.Struct("32s 48s 0s"), _PLAINTEXT_FLAGS),
    0x200: _Version(struct.Struct("64s 48s 1568s"), _PLAINTEXT_FLAGS | _from_left(59)),  # PCKMO: HMAC
}


class _Header(NamedTuple):
    """The fixed part; key slots, encrypted area and tag follow it."""

    magic: bytes
    version: int
    size: int
    iv: bytes
    reserved: int
    slots: int
    encrypted_size: int
    pages: int
    plaintext_flags: int
    customer_key: bytes
    page_digest: bytes
    address_digest: bytes
    tweak_digest: bytes


_HEADER = struct.Struct(">8s I I 12s I Q Q Q Q 160s 64s 64s 64s")


class _Secret(NamedTuple):
    """The header's encrypted area."""

    customer_communication_key: bytes
    xts_key: bytes
    psw_mask: int
    psw_address: int
    flags: int
    optional_items: int
    reserved: int


def _check_header(header: _Header, size: int) -> None:
    if header.magic != _MAGIC or header.reserved:
        raise Refused(Reason.HEADER_CORRUPT)
    version = _VERSIONS.get(header.version)
    if not version:
        raise Refused(Reason.HEADER_VERSION)
    if header.encrypted_size != _SECRET.size:
        raise Refused(Reason.ENCRYPTED_AREA_SIZE)
    if not header.slots:
        raise Refused(Reason.NO_KEY_SLOT)
    expected = _HEADER.size + header.slots * version.slot.size + header.encrypted_size + _TAG_SIZE
    if not header.size == size == expected:
        raise Refused(Reason.HEADER_SIZE)
    if header.plaintext_flags & ~version.plaintext_flags:
        raise Refused(Reason.PLAINTEXT_FLAG)


def host_key_hash(key: HostKey) -> bytes:
    """How a key slot names the host it is for: SHA-256 over the public key, SHA-512 over both of a hybrid."""
    if isinstance(key, HybridKey):
        return hashlib.sha512(b"".join(_public(key))).digest()
    return hashlib.sha256(_point(key.public_key())).digest()


def _public(key: HybridKey) -> tuple[bytes, bytes]:
    return _point(key.ec.public_key()), key.ml_kem.public_key().public_bytes_raw()


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    numbers = key.public_numbers()
    return _coordinates(numbers.x, numbers.y)


def _coordinates(x: int, y: int) -> bytes:
    return x.to_bytes(_COORDINATE_SIZE) + y.to_bytes(_COORDINATE_SIZE)


def _customer_key(coordinates: bytes) -> ec.EllipticCurvePublicKey:
    x, y = (int.from_bytes(half) for half in (coordinates[:_COORDINATE_SIZE], coordinates[_COORDINATE_SIZE:]))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP521R1()).public_key()
    except ValueError:
        raise Refused(Reason.CUSTOMER_KEY) from None


def _header_key(header: _Header, slots: bytes, keys: Sequence[HostKey]) -> tuple[HostKey, bytes]:
    """The first of the host's keys that a slot is for, and the header key from that slot."""
    by_hash = {slot: rest for slot, *rest in _VERSIONS[header.version].slot.iter_unpack(slots)}
    for key in keys:
        if rest := by_hash.get(host_key_hash(key)):
            wrapped, ciphertext = rest
            agreed = _agreed(key, header.customer_key, ciphertext)
            wrapping_key = hashlib.sha256(agreed).digest()
            return key, _open(wrapping_key, bytes(12), wrapped, b"", Reason.KEY_SLOT_CORRUPT)
    raise Refused(Reason.HOST_KEY)


_COUNTER = bytes((0, 0, 0, 1))


def _agreed(key: HostKey, customer: bytes, ciphertext: bytes) -> bytes:
    """What both sides know."""
    theirs = _customer_key(customer)
    if not isinstance(key, HybridKey):
        return key.exchange(ec.ECDH(), theirs) + _COUNTER
    numbers = theirs.public_numbers()
    shared = _multiply(key.ec.private_numbers().private_value, (numbers.x, numbers.y))
    secret = key.ml_kem.decapsulate(ciphertext)
    text = b"PQC Secure Execution with Format-2 Key Slots KS2"
    return b"".join((_COUNTER, _coordinates(*shared), secret, customer, ciphertext, *_public(key), text))


_FIELD = 2**521 - 1
_Point = tuple[int, int]


def _multiply(number: int, point: _Point) -> _Point:
    """On secp521r1, digit by digit: of the point, the library's key agreement gives X alone."""
    product = None
    for digit in f"{number:b}":
        product = _add(product, product) if product else None
        if digit == "1":
            product = _add(product, point) if product else point
    assert product
    return product


def _add(one: _Point, other: _Point) -> _Point:
    """Two of which none is the negative of the other."""
    (x1, y1), (x2, y2) = one, other
    rise, run = (3 * x1 * x1 - 3, 2 * y1) if one == other else (y2 - y1, x2 - x1)
    slope = rise * pow(run, -1, _FIELD)
    x = (slope * slope - x1 - x2) % _FIELD
    return x, (slope * (x1 - x) - y1) % _FIELD


def _open(key: bytes, iv: bytes, data: bytes, authenticated: bytes, otherwise: Reason) -> bytes:
    try:
        return AESGCM(key).decrypt(iv, data, authenticated)
    except InvalidTag:
        raise Refused(otherwise) from None


def _open_header(raw: bytes, keys: Sequence[HostKey]) -> tuple[HostKey, _Header, _Secret]:
    if not _HEADER.size <= len(raw) <= _MAX_HEADER_SIZE:
        raise Refused(Reason.HEADER_SIZE)
    header = _Header._make(_HEADER.unpack_from(raw))
    _check_header(header, len(raw))
    encrypted_at = len(raw) - _TAG_SIZE - header.encrypted_size
    key, header_key = _header_key(header, raw[_HEADER.size : encrypted_at], keys)
    area = _open(header_key, header.iv, raw[encrypted_at:], raw[:encrypted_at], Reason.HEADER_CORRUPT)
    secret = _Secret._make(_SECRET.unpack(area))
    if secret.flags & ~_SECRET_FLAGS:
        raise Refused(Reason.SECRET_FLAG)
    if secret.optional_items or secret.reserved:
        raise Refused(Reason.ENCRYPTED_AREA_SIZE)
    return key, header, secret


# --- unpack and verify -------------------------------------------------------------------------------------


def _verify(memory: Memory, header: _Header, components: Sequence[Component]) -> None:
    """The count comes first: with another number of pages no digest could match either."""
    if sum(component.length for component in components) != header.pages * PAGE:
        raise Refused(Reason.PAGE_COUNT)
    addresses, pages, tweaks = hashlib.sha512(), hashlib.sha512(), hashlib.sha512()
    for component in components:
        pages.update(memory[component.address : component.address + component.length])
        for address, tweak in component.pages():
            addresses.update(address.to_bytes(8))
            tweaks.update(tweak)
    if addresses.digest() != header.address_digest:
        raise Refused(Reason.ALD_MISMATCH)
    if pages.digest() != header.page_digest:
        raise Refused(Reason.PLD_MISMATCH)
    if tweaks.digest() != header.tweak_digest:
        raise Refused(Reason.TLD_MISMATCH)


def _decrypt(memory: Memory, components: Sequence[Component], xts_key: bytes) -> None:
    algorithm = AES(xts_key)
    for component in components:
        for address, tweak in component.pages():
            page = slice(address, address + PAGE)
            memory[page] = Cipher(algorithm, XTS(tweak)).decryptor().update(bytes(memory[page]))


def decrypt_in_place(
    memory: Memory, header_address: int, header_size: int, ipib_address: int, keys: Sequence[HostKey]
) -> Decrypted:
    """Verify an image that lies in ``memory`` and decrypt its components there; ``keys`` are the host's.

    Nothing is written unless everything is right; otherwise Refused is raised.
    """
    components = _read_components(memory, ipib_address)
    if header_address % PAGE or header_address + header_size > len(memory):
        raise Refused(Reason.INVALID_PARAMETERS)
    raw = bytes(memory[header_address : header_address + header_size])
    key, header, secret = _open_header(raw, keys)
    _verify(memory, header, components)
    if not header.plaintext_flags & NOT_ENCRYPTED:
        _decrypt(memory, components, secret.xts_key)
    _IPIB_HEADER.pack_into(memory, ipib_address + _IPIB_HEADER_OFFSET, header_address, header_size)
    psw = Psw(secret.psw_mask, secret.psw_address)
    return Decrypted(key, components, psw, header.plaintext_flags, secret.flags)


def start(memory: Memory, keys: Sequence[HostKey]) -> Decrypted:
    """Do what stage3a asks the firmware for. The guest has to go on at the PSW of the answer."""
    place = find_place(memory)
    return decrypt_in_place(memory, place.header_address, place.header_size, place.ipib_address, keys)


# --- taking a file apart -----------------------------------------------------------------------------------

# Kernel, command line, ramdisk: address and size each; then the kernel's PSW.
_STAGE3B_ARGUMENTS = struct.Struct(">QQ QQ QQ QQ")


def unpack(image: bytes | mmap, key: HostKey) -> Unpacked:
    """Open an image file with a host's private key. Raises Refused where that host would not start it."""
    memory = bytearray(image[:])
    if not holds_stage3a(memory):
        raise Refused(Reason.INVALID_PARAMETERS)
    opened = start(memory, [key])
    stage3b = _stage3b(memory, opened.components)
    *places, mask, entry = _STAGE3B_ARGUMENTS.unpack(stage3b[-_STAGE3B_ARGUMENTS.size :])
    kernel, command_line, ramdisk = (
        bytes(memory[address : address + size])
        for address, size in zip(places[::2], places[1::2], strict=True)
    )
    if command_line[-1:] != b"\0":
        raise ValueError("the command line does not end in a NUL")
    return Unpacked(
        kernel=kernel,
        command_line=command_line[:-1].decode(),
        ramdisk=ramdisk,
        stage3b=stage3b,
        psw=opened.psw,
        kernel_psw=Psw(mask, entry),
        plaintext_flags=opened.plaintext_flags,
        secret_flags=opened.secret_flags,
    )


def _stage3b(memory: Memory, components: Sequence[Component]) -> bytes:
    """stage3b without the zeros that fill its last page; it ends with its arguments.

    These are found by the two addresses in them that the IPL parameter block also knows.
    """
    kernel, *others, stage3b = components
    content = bytes(memory[stage3b.address : stage3b.address + stage3b.length])
    first, *rest = (re.escape(struct.pack(">Q", each.address)) for each in (kernel, *others))
    starts = re.finditer(first + b".{8}(?:" + b"|".join(rest) + b")", content, re.DOTALL)
    ends = [found.start() + _STAGE3B_ARGUMENTS.size for found in starts]
    if not ends or any(content[ends[-1] :]):
        raise ValueError("stage3b does not end with its arguments")
    return content[: ends[-1]]
