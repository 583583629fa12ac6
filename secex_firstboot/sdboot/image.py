"""The Secure Execution boot image: the format, a builder that streams, a reader of the SE header.

An image is laid out as it is loaded (file offset = guest address): short PSW, what IBM's tools look for,
stage3a, SE header, the encrypted components kernel, ramdisk, command line, stage3b, and the IPIB (IPL
parameter block). IBM's boot loaders stage3a and stage3b are given; everything else is made here. All
integers are big-endian.

Sources: s390-tools, https://github.com/ibm-s390-linux/s390-tools (rust/pvimg, rust/pv, before 2.36
genprotimg/), and https://www.qemu.org/docs/master/system/s390x/protvirt.html. Where these leave a choice
(order of the components, flags), images are made as pvimg 2.43 makes them.

An SE header is of version 1, or, for hybrid host keys, of version 2. That is experimental: its form is from a
fork of s390-tools 2.44, https://github.com/embedded4ever/s390-tools, and no machine has seen one.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import is_regular
from secex_firstboot.contract.key_kind import KeyKind
from secex_firstboot.hostkeys import ml_kem
from secex_firstboot.hostkeys.key import HostKey, coordinates, key_hash, shared_point
from secex_firstboot.sdboot import initramfs

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

PAGE = 4096
_BLOCK = 256 * PAGE  # how much of a component is in memory at a time

# genprotimg/boot/common_memory_layout.h, stage3a.lds: zipl's boot map starts an image at stage3a's load
# address, a direct -kernel boot takes the short PSW at 0.
_STAGE3A_ADDRESS = 0x10000
_STAGE3A_ENTRY = 0x11000
_SHORT_PSW = struct.pack(">II", 0x00080001, 0x80000000 | _STAGE3A_ENTRY)
_PSW_MASK_64_BIT = 0x0000000180000000

# Arguments at the very end of each boot loader: genprotimg/boot/stage3a.h and stage3b.h.
_STAGE3A_ARGUMENTS = struct.Struct(">QQQ")  # SE header offset and size, IPIB offset; from the arguments on
_STAGE3B_ARGUMENTS = struct.Struct(">QQQQQQQQ")  # (address, size) of three components; PSW mask, address
_BOOT_LOADER_LIMIT = 16 * PAGE  # bytes; IBM's are about 10 KiB

# arch/s390/boot/head.S of Linux: the kernel's entry, and where it tells its longest command line
# (COMMAND_LINE_SIZE; older kernels have a zero there and take 896 bytes).
_KERNEL_ENTRY = 0x10000
_COMMAND_LINE_LIMIT_OFFSET = 0x10430
_COMMAND_LINE_LIMIT_LEGACY = 896

# rust/pvimg/src/se_img.rs: pvextract-hdr looks for the SE header from here on. rust/pv/src/brcb.rs, struct
# SeImgMetaData: where pvimg looks for what is where. Magic, place of the SE header, version, of the IPIB.
_LEAST_HEADER_ADDRESS = 0x14000
_METADATA_ADDRESS, _METADATA = 0xC000, struct.Struct(">8sQIQ")
_METADATA_MAGIC, _METADATA_VERSION = b"SeImgLnx", 1

# rust/pvimg/src/se_img_comps/bootloader/ipl.rs: length, version; then the one block, of type PV: its length,
# type, version, number of components, address and size of the SE header.
_IPIB = struct.Struct(">I3xB IB3x8x84x3xB4xIQQ")
_IPIB_ENTRY = struct.Struct(">8sQQ")  # tweak prefix, address, length
_IPIB_VERSION, _IPIB_PV_VERSION = 1, 1
_IPIB_TYPE_PV = 5

_KERNEL, _RAMDISK, _COMMAND_LINE, _STAGE3B = 40, 50, 60, 70  # the first bytes of each tweak

# Plaintext control flags, counted from the left: 56 DEA/TDEA, 57 AES, 58 ECC, 59 HMAC key encryption (PCKMO).
# Dumping (34) stays off.
_PCKMO = tuple(1 << (63 - bit) for bit in (56, 57, 58, 59))
_DUMPING = 1 << (63 - 34)
_SECRET_FLAGS = 0

# The SE header: name and bytes of each field, in order. genprotimg/src/include/pv_hdr_def.h (struct
# pv_hdr_head, pv_hdr_key_slot, pv_hdr_encrypted), rust/pvimg/src/pv_utils/se_hdr/hdr_v1.rs.
_HEAD = (
    ("magic", 8),
    ("version", 4),
    ("header size", 4),
    ("IV", 12),
    ("reserved", 4),
    ("key slots", 8),
    ("encrypted area size", 8),
    ("encrypted pages", 8),
    ("plaintext control flags", 8),
    ("customer public key", 160),
    ("page list digest", 64),  # PLD: SHA-512 over the encrypted pages
    ("address list digest", 64),  # ALD: SHA-512 over the address of each page
    ("tweak list digest", 64),  # TLD: SHA-512 over the tweak of each page
)
_ENCRYPTED_AREA = (
    ("customer communication key", 32),
    ("component key", 64),  # AES-256-XTS
    ("PSW mask", 8),
    ("PSW address", 8),
    ("secret control flags", 8),
    ("optional items", 4),
    ("reserved", 4),
)
_MAGIC = b"IBMSecEx"
_TAG_SIZE = 16
_LARGEST_MADE = 2 * PAGE  # a host's KVM takes no more before Linux 7.0: KVM_PV_SET_SEC_PARMS in kvm-s390.c
_LARGEST_READ = 1 << 20  # from 7.0 on, and pvimg of 2.44


@dataclass(frozen=True)
class _Version:
    """What differs between versions of the SE header.

    ``key_slot``: name and bytes of each field; ``flags``: plaintext control flags, as IBM's tools set them.
    """

    kind: KeyKind
    key_slot: tuple[tuple[str, int], ...]
    flags: int

    @property
    def number(self) -> int:
        return self.kind.header_version

    def header_size(self, host_keys: int) -> int:
        return _length(_HEAD) + host_keys * _length(self.key_slot) + _length(_ENCRYPTED_AREA) + _TAG_SIZE


# rust/pvimg/src/pv_utils/se_hdr/hdr_v1.rs, hdr_v2.rs; rust/pv/src/req/keyslot.rs.
_VERSIONS = {
    version.kind: version
    for version in (
        _Version(
            KeyKind.CLASSICAL,
            (("host key hash", 32), ("wrapped header key", 32), ("wrapping tag", _TAG_SIZE)),
            sum(_PCKMO[:3]),
        ),
        _Version(
            KeyKind.HYBRID,
            (
                *(("host key hash", 64), ("wrapped header key", 32), ("wrapping tag", _TAG_SIZE)),
                ("ciphertext", ml_kem.CIPHERTEXT_SIZE),
            ),
            sum(_PCKMO),
        ),
    )
}
_FORMAT_2 = b"PQC Secure Execution with Format-2 Key Slots KS2"  # what the hash of a hybrid slot ends with


@dataclass(frozen=True)
class BootLoaders:
    """IBM's stage3a.bin and stage3b_reloc.bin, as s390-tools installs them."""

    stage3a: Path
    stage3b: Path


@dataclass(frozen=True)
class _Component:
    prefix: bytes  # tweak prefix: component number (u16), 6 random bytes
    address: int
    size: int  # without padding

    @property
    def padded_size(self) -> int:
        return _whole_pages(self.size)


_NO_COMPONENT = _Component(bytes(8), 0, 0)


@dataclass(frozen=True)
class Kept:
    """What whoever made an image can do with it later, besides its ``header``, which is in it for all to see.

    ``communication_key`` is the customer communication key (CCK): for attestation, secrets, dumps. With the
    ``header_key`` the header's encrypted area is opened, and so the whole image.
    """

    header: bytes
    communication_key: bytes
    header_key: bytes


def _silent(done: int, total: int) -> None:
    pass


def build(
    output: BinaryIO,
    *,
    kernel: Path,
    ramdisk: Sequence[Path],
    command_line: str,
    host_keys: Sequence[HostKey],
    boot_loaders: BootLoaders,
    progress: Progress = _silent,
) -> Kept:
    """Write an image for the hosts of ``host_keys`` to ``output``, a seekable file.

    ``ramdisk`` is a sequence of initramfs archives that become one; it may be empty. No component is ever
    whole in memory. Raises Refusal, before anything is written, if an input cannot make a bootable image.
    """
    version = check_host_keys(host_keys)
    line = command_line_component(command_line, kernel)
    stage3a = _boot_loader(boot_loaders.stage3a, _STAGE3A_ARGUMENTS)
    stage3b = _boot_loader(boot_loaders.stage3b, _STAGE3B_ARGUMENTS)
    total = _size(kernel) + len(line) + check_ramdisk(ramdisk) + len(stage3b)

    header_address = max(_STAGE3A_ADDRESS + _whole_pages(len(stage3a)), _LEAST_HEADER_ADDRESS)
    component_key = secrets.token_bytes(64)
    with ThreadPoolExecutor(1) as writer:
        components = _Components(
            output,
            writer,
            address=header_address + _whole_pages(version.header_size(len(host_keys))),
            key=component_key,
            report=lambda done: progress(done, total),
        )
        added = components.add(_KERNEL, initramfs.joined([kernel]))
        archives = components.add(_RAMDISK, initramfs.joined(ramdisk)) if ramdisk else _NO_COMPONENT
        plain = (added, components.add(_COMMAND_LINE, [line]), archives)
        loader = components.add(_STAGE3B, [_with_stage3b_arguments(stage3b, plain)])
        components.finish()

    kept = _header(version, host_keys, components, component_key, start=loader.address)
    header = kept.header
    ipib_address = loader.address + loader.padded_size
    output.write(_ipib(components.written, header_address, len(header)))
    output.truncate()
    stage3a = _with_stage3a_arguments(stage3a, header_address, len(header), ipib_address)
    metadata = _METADATA.pack(_METADATA_MAGIC, header_address, _METADATA_VERSION, ipib_address)
    output.seek(0)
    output.write(_SHORT_PSW.ljust(_METADATA_ADDRESS, b"\0"))
    output.write(metadata.ljust(_STAGE3A_ADDRESS - _METADATA_ADDRESS, b"\0"))
    output.write(stage3a.ljust(header_address - _STAGE3A_ADDRESS, b"\0"))
    output.write(_padded(header))
    return kept


def command_line_component(command_line: str, kernel: Path) -> bytes:
    """The command line as the kernel gets it, NUL-terminated. Raises Refusal if it cannot take it."""
    line = command_line.encode()
    if b"\0" in line:
        raise Refusal(
            "SX-SDBOOT-13",
            "the kernel command line has a NUL in it",
            "remove it: the kernel would stop reading there",
        )
    limit = _command_line_limit(kernel)
    if len(line) + 1 > limit:
        raise Refusal(
            "SX-SDBOOT-14",
            f"the kernel command line has {len(line)} bytes, the kernel {kernel.name} takes {limit - 1}",
            "use a shorter one",
        )
    return line + b"\0"


def check_host_keys(host_keys: Sequence[HostKey]) -> _Version:
    """The version for them. Raises Refusal unless an image can be made for exactly these hosts."""
    if not host_keys:
        raise Refusal(
            "SX-SDBOOT-15",
            "no host key is given",
            "name at least one host-key document: no host could start the image",
        )
    for key in host_keys:
        if not isinstance(key.ec.curve, ec.SECP521R1):
            raise Refusal(
                "SX-SDBOOT-16",
                f"a host key is on the curve {key.ec.curve.name}, not secp521r1",
                "use IBM Z host-key documents",
            )
    kinds = {key.kind for key in host_keys}
    if len(kinds) > 1:
        raise Refusal(
            "SX-SDBOOT-33",
            "host keys of two kinds are given, classical and hybrid, and an SE header has slots of one",
            "use documents of the same kind for all hosts",
        )
    version = _VERSIONS[kinds.pop()]
    most = (_LARGEST_MADE - version.header_size(0)) // _length(version.key_slot)
    if len(host_keys) > most:
        raise Refusal(
            "SX-SDBOOT-17",
            f"{len(host_keys)} {version.kind} host keys are given, an image takes {most}: KVM of a host"
            f" before Linux 7.0 starts none with an SE header larger than {_LARGEST_MADE >> 10} KiB",
            "name fewer host-key documents",
        )
    return version


def check_ramdisk(ramdisk: Sequence[Path]) -> int:
    """The size of the ramdisk in bytes. Raises Refusal if a part of it is missing or empty."""
    for part in ramdisk:
        if _size(part) == 0:
            raise Refusal("SX-SDBOOT-18", f"the initramfs {part} is empty", "build the initramfs again")
    return initramfs.joined_size(ramdisk)


@dataclass(frozen=True)
class Header:
    """What an SE header says to all who read it. ``at``: byte of the image, ``size``: bytes.

    ``kind``: of the host keys that the image is for; ``key_slots``: their hashes, in order; ``pages``: those
    that are encrypted.
    """

    at: int
    size: int
    kind: KeyKind
    key_slots: tuple[bytes, ...]
    pages: int
    flags: int

    @property
    def version(self) -> int:
        return self.kind.header_version

    @property
    def dumping_allowed(self) -> bool:
        return bool(self.flags & _DUMPING)


def header(image: BinaryIO) -> Header:
    """The SE header of a finished image of any builder.

    It is found as stage3a finds it, who hands it to the ultravisor: through its arguments, which are the same
    in genprotimg's layout and in pvimg's. Raises FirstbootError unless exactly one is found, of a known
    version, and its size is what its fields say.
    """
    image.seek(_STAGE3A_ADDRESS)
    memory = image.read(_BOOT_LOADER_LIMIT + PAGE + _LARGEST_READ)  # the IPIB may lie between
    found = {place for at in range(0, _BOOT_LOADER_LIMIT, 8) if (place := _header_place(memory, at))}
    if len(found) != 1:
        raise _no_image(f"{len(found)} SE headers instead of one")
    start, size = found.pop()
    return _parsed(memory[start : start + size], _STAGE3A_ADDRESS + start)


def header_of(header: bytes) -> Header:
    """The same of a header's bytes alone."""
    return _parsed(header, 0)


def header_bytes(image: Path) -> bytes:
    """The SE header of a finished image, as it stands there. Raises FirstbootError as ``header`` does."""
    with image.open("rb") as stream:
        found = header(stream)
        stream.seek(found.at)
        return stream.read(found.size)


def key_slots(image: BinaryIO) -> list[bytes]:
    """Those of its header, see there."""
    return list(header(image).key_slots)


def _header_place(memory: bytes, at: int) -> tuple[int, int] | None:
    """Start and size of the SE header, if stage3a's arguments are ``at`` this place."""
    if len(memory) < at + _STAGE3A_ARGUMENTS.size:
        return None
    offset, size, _ = _STAGE3A_ARGUMENTS.unpack_from(memory, at)
    start = at + offset
    whole = _STAGE3A_ARGUMENTS.size <= offset and size <= _LARGEST_READ and start + size <= len(memory)
    return (start, size) if whole and memory.startswith(_MAGIC, start) else None


def _parsed(header: bytes, at: int) -> Header:
    fields = {name: int.from_bytes(value, "big") for name, value in _unpack(_HEAD, header).items()}
    number, size, count, area = (
        fields[name] for name in ("version", "header size", "key slots", "encrypted area size")
    )
    version = next((each for each in _VERSIONS.values() if each.number == number), None)
    if not version:
        known = " or ".join(f"{each.number:#x}" for each in _VERSIONS.values())
        raise _no_image(f"an SE header of version {number:#x}, not {known}")
    if not count or area != _length(_ENCRYPTED_AREA) or not len(header) == size == version.header_size(count):
        raise _no_image("an SE header whose size does not match its content")
    first, each = _length(_HEAD), _length(version.key_slot)
    starts = range(first, first + count * each, each)
    slots = tuple(_unpack(version.key_slot, header[start:])["host key hash"] for start in starts)
    return Header(at, size, version.kind, slots, fields["encrypted pages"], fields["plaintext control flags"])


def _no_image(what: str) -> FirstbootError:
    return FirstbootError(
        "SX-SDBOOT-19", f"the new image has {what}", "use s390-tools 2.35 or newer, unchanged"
    )


class _Components:
    """Encrypts components to ``output``, one after the other, and keeps the books the SE header needs.

    What is encrypted is written and hashed by the thread of ``writer``, while the next block is encrypted.
    """

    def __init__(
        self,
        output: BinaryIO,
        writer: ThreadPoolExecutor,
        *,
        address: int,
        key: bytes,
        report: Callable[[int], None],
    ) -> None:
        self.written: list[_Component] = []
        self.pages = 0
        self.page_digest, self.address_digest, self.tweak_digest = (hashlib.sha512() for _ in range(3))
        self._output, self._address, self._algorithm, self._report = output, address, AES(key), report
        self._done = 0
        self._writer = writer
        self._before: Future[None] | None = None
        output.seek(address)

    def add(self, number: int, content: Iterable[bytes]) -> _Component:
        prefix = struct.pack(">H", number) + secrets.token_bytes(6)
        start, size = self._address, 0
        for block in _blocks(content):
            self._write(_padded(block), prefix, start + size, size)
            size += len(block)
            self._done += len(block)
            self._report(self._done)
        component = _Component(prefix, start, size)
        self._address += component.padded_size
        self.written.append(component)
        return component

    def finish(self) -> None:
        """Wait until all is written. Raises what writing did."""
        if self._before:
            self._before.result()

    def _write(self, block: bytes, prefix: bytes, address: int, offset: int) -> None:
        """Encrypt whole pages, each a data unit whose tweak is the prefix and its offset in the component."""
        starts = range(0, len(block), PAGE)
        tweaks = [prefix + struct.pack(">Q", offset + start) for start in starts]
        view = memoryview(block)
        # A new context for each page is the only way to a new tweak in the cryptography library; it costs
        # about as much as hashing the page (0.9 GB/s on x86).
        encrypted = b"".join(
            [
                Cipher(self._algorithm, modes.XTS(tweak)).encryptor().update(view[start : start + PAGE])
                for start, tweak in zip(starts, tweaks, strict=True)
            ]
        )
        self.finish()
        self._before = self._writer.submit(self._put, encrypted)
        self.address_digest.update(b"".join([struct.pack(">Q", address + start) for start in starts]))
        self.tweak_digest.update(b"".join(tweaks))
        self.pages += len(starts)

    def _put(self, encrypted: bytes) -> None:
        self._output.write(encrypted)
        self.page_digest.update(encrypted)


def _header(
    version: _Version,
    host_keys: Sequence[HostKey],
    components: _Components,
    component_key: bytes,
    *,
    start: int,
) -> Kept:
    """The SE header; its encrypted area can be opened by the owner of any of the host keys."""
    customer = ec.generate_private_key(ec.SECP521R1())
    header_key, iv = secrets.token_bytes(32), secrets.token_bytes(12)
    communication_key = secrets.token_bytes(32)
    head = _pack(
        _HEAD,
        {
            "magic": _MAGIC,
            "version": version.number,
            "header size": version.header_size(len(host_keys)),
            "IV": iv,
            "reserved": 0,
            "key slots": len(host_keys),
            "encrypted area size": _length(_ENCRYPTED_AREA),
            "encrypted pages": components.pages,
            "plaintext control flags": version.flags,
            "customer public key": coordinates(customer.public_key()),
            "page list digest": components.page_digest.digest(),
            "address list digest": components.address_digest.digest(),
            "tweak list digest": components.tweak_digest.digest(),
        },
    )
    area = _pack(
        _ENCRYPTED_AREA,
        {
            "customer communication key": communication_key,
            "component key": component_key,
            "PSW mask": _PSW_MASK_64_BIT,
            "PSW address": start,
            "secret control flags": _SECRET_FLAGS,
            "optional items": 0,
            "reserved": 0,
        },
    )
    public = head + b"".join(_key_slot(version, customer, host, header_key) for host in host_keys)
    header = public + AESGCM(header_key).encrypt(iv, area, public)
    return Kept(header, communication_key, header_key)


def _key_slot(
    version: _Version, customer: ec.EllipticCurvePrivateKey, host: HostKey, header_key: bytes
) -> bytes:
    """The header key, wrapped for one host. The wrapping key is used once, hence the fixed IV."""
    hashed, ciphertext = _agree(customer, host)
    wrapped = AESGCM(hashlib.sha256(hashed).digest()).encrypt(bytes(12), header_key, None)
    return _pack(
        version.key_slot,
        {
            "host key hash": key_hash(host),
            "wrapped header key": wrapped[:-_TAG_SIZE],
            "wrapping tag": wrapped[-_TAG_SIZE:],
            "ciphertext": ciphertext,
        },
    )


def _agree(customer: ec.EllipticCurvePrivateKey, host: HostKey) -> tuple[bytes, bytes]:
    """What both sides know, of which the wrapping key is the SHA-256; and a hybrid slot's ciphertext."""
    counter = struct.pack(">I", 1)
    if host.kind is KeyKind.CLASSICAL:
        return customer.exchange(ec.ECDH(), host.ec) + counter, b""
    secret, ciphertext = ml_kem.encapsulate(host.ml_kem)
    shared, ours = shared_point(customer, host.ec), coordinates(customer.public_key())
    return b"".join(
        (counter, shared, secret, ours, ciphertext, coordinates(host.ec), host.ml_kem, _FORMAT_2)
    ), ciphertext


def _ipib(components: Sequence[_Component], header: int, header_size: int) -> bytes:
    """The IPL parameter block, less than a page."""
    size = _IPIB.size + _IPIB_ENTRY.size * len(components)
    head = _IPIB.pack(
        *(size, _IPIB_VERSION, size - 8, _IPIB_TYPE_PV, _IPIB_PV_VERSION),
        *(len(components), header, header_size),
    )
    return head + b"".join(_IPIB_ENTRY.pack(c.prefix, c.address, c.padded_size) for c in components)


def _with_stage3a_arguments(stage3a: bytes, header: int, header_size: int, ipib: int) -> bytes:
    code = stage3a[: -_STAGE3A_ARGUMENTS.size]
    here = _STAGE3A_ADDRESS + len(code)
    return code + _STAGE3A_ARGUMENTS.pack(header - here, header_size, ipib - here)


def _with_stage3b_arguments(stage3b: bytes, components: Sequence[_Component]) -> bytes:
    areas = [value for component in components for value in (component.address, component.size)]
    arguments = _STAGE3B_ARGUMENTS.pack(*areas, _PSW_MASK_64_BIT, _KERNEL_ENTRY)
    return stage3b[: -_STAGE3B_ARGUMENTS.size] + arguments


def _boot_loader(path: Path, arguments: struct.Struct) -> bytes:
    cure = "install IBM's boot loaders (package s390-tools) again"
    size = _size(path, cure)
    if not arguments.size < size <= _BOOT_LOADER_LIMIT:
        raise Refusal("SX-SDBOOT-20", f"{path} has {size} bytes and is no boot loader", cure)
    return path.read_bytes()


def _command_line_limit(kernel: Path) -> int:
    """The bytes of the longest command line this kernel takes, its NUL included."""
    _size(kernel)
    with kernel.open("rb") as file:
        file.seek(_COMMAND_LINE_LIMIT_OFFSET)
        limit = file.read(8)
    if len(limit) < 8:
        raise Refusal(
            "SX-SDBOOT-21",
            f"{kernel} is no s390x kernel: nothing is there behind its first {_KERNEL_ENTRY:#x} bytes",
            "use the distribution's vmlinuz",
        )
    return int.from_bytes(limit, "big") or _COMMAND_LINE_LIMIT_LEGACY


def _size(path: Path, cure: str = "check that it is on the boot partition") -> int:
    if not is_regular(path):
        raise Refusal("SX-SDBOOT-22", f"{path} is missing or no regular file", cure)
    return path.stat().st_size


def _length(fields: Sequence[tuple[str, int]]) -> int:
    return sum(size for _, size in fields)


def _pack(fields: Sequence[tuple[str, int]], values: Mapping[str, int | bytes]) -> bytes:
    packed = bytearray()
    for name, size in fields:
        value = values[name]
        field = value.to_bytes(size, "big") if isinstance(value, int) else value
        if len(field) != size:
            raise ValueError(f"{name} has {len(field)} bytes instead of {size}")
        packed += field
    return bytes(packed)


def _unpack(fields: Sequence[tuple[str, int]], packed: bytes) -> dict[str, bytes]:
    """The fields that ``packed`` begins with; those beyond its end are short or empty."""
    unpacked, at = {}, 0
    for name, size in fields:
        unpacked[name] = packed[at : at + size]
        at += size
    return unpacked


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _padded(content: bytes) -> bytes:
    return content.ljust(_whole_pages(len(content)), b"\0")


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in whole pages (but for the last one), about _BLOCK of them at a time."""
    pending = b""  # joined with whole pages it is these themselves: nothing is copied
    for piece in pieces:
        pending += piece
        if len(pending) >= _BLOCK:
            whole = len(pending) // PAGE * PAGE
            yield pending[:whole]
            pending = pending[whole:]
    if pending:
        yield pending
