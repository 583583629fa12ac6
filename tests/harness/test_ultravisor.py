"""The software ultravisor against images made by IBM's genprotimg (vectors/se-image)."""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from harness import ultravisor
from harness.ultravisor import HostKey, HybridKey, Reason, Refused
from support import TEST_VECTORS

VECTORS = TEST_VECTORS / "se-image"

# Where things lie in two-keys.img, see its header and IPL parameter block.
STAGE3A_ARGUMENTS, IPIB, HEADER = 0x12BC0, 0x13000, 0x14000
KERNEL, COMMAND_LINE, RAMDISK, STAGE3B = 0x15000, 0x28000, 0x29000, 0x2C000
SLOTS, ENCRYPTED_AREA, TAG = HEADER + 416, HEADER + 416 + 160, HEADER + 416 + 160 + 128
IPIB_ENTRIES = IPIB + 136  # tweak prefix, address, length of each component


def private_key(name: str) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key((VECTORS / f"{name}.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


@pytest.fixture(scope="module")
def host_a() -> ec.EllipticCurvePrivateKey:
    return private_key("host-a")


@pytest.fixture(scope="module")
def host_b() -> ec.EllipticCurvePrivateKey:
    return private_key("host-b")


@pytest.fixture
def image() -> bytearray:
    return bytearray((VECTORS / "two-keys.img").read_bytes())


def refusal(image: bytes | bytearray, key: HostKey) -> Reason:
    with pytest.raises(Refused) as refused:
        ultravisor.unpack(bytes(image), key)
    return refused.value.reason


@pytest.mark.parametrize("name", ["host-a", "host-b"])
def test_each_host_of_an_image_opens_it(image: bytearray, name: str) -> None:
    unpacked = ultravisor.unpack(bytes(image), private_key(name))
    assert unpacked.kernel == (VECTORS / "kernel.bin").read_bytes()
    assert unpacked.command_line == (VECTORS / "parmfile").read_text()
    assert unpacked.ramdisk == (VECTORS / "ramdisk.bin").read_bytes()
    assert unpacked.psw == (0x180000000, STAGE3B)
    assert unpacked.kernel_psw == (0x180000000, 0x10000)
    assert unpacked.plaintext_flags == 0xE0
    assert unpacked.secret_flags == 0


def test_an_image_without_ramdisk_opens(host_b: HostKey) -> None:
    unpacked = ultravisor.unpack((VECTORS / "no-ramdisk.img").read_bytes(), host_b)
    assert unpacked.kernel == (VECTORS / "kernel.bin").read_bytes()
    assert unpacked.ramdisk == b""


def test_a_host_without_a_key_slot_is_refused_with_the_firmware_s_codes(host_a: HostKey) -> None:
    with pytest.raises(Refused, match="0x0108, RRC 0x0005") as refused:
        ultravisor.unpack((VECTORS / "no-ramdisk.img").read_bytes(), host_a)
    assert (refused.value.rc, refused.value.rrc) == (0x0108, 0x0005)


def test_a_host_uses_whichever_of_its_keys_has_a_slot(host_a: HostKey, host_b: HostKey) -> None:
    memory = bytearray((VECTORS / "no-ramdisk.img").read_bytes())
    assert ultravisor.start(memory, [host_a, host_b]).key is host_b


def test_memory_is_decrypted_in_place_and_the_ipib_names_the_header(
    image: bytearray, host_a: HostKey
) -> None:
    kernel = (VECTORS / "kernel.bin").read_bytes()
    ultravisor.start(image, [host_a])
    assert image[KERNEL : KERNEL + len(kernel)] == kernel
    assert struct.unpack_from(">QQ", image, IPIB + 120) == (HEADER, 0x2D0)


@pytest.mark.parametrize(
    ("address", "mask", "reason"),
    [
        pytest.param(0x10000, 1, Reason.INVALID_PARAMETERS, id="stage3a code"),
        pytest.param(STAGE3A_ARGUMENTS + 6, 1, Reason.INVALID_PARAMETERS, id="stage3a header offset"),
        pytest.param(STAGE3A_ARGUMENTS + 15, 1, Reason.HEADER_SIZE, id="stage3a header size"),
        pytest.param(STAGE3A_ARGUMENTS + 23, 1, Reason.INVALID_PARAMETERS, id="stage3a IPIB offset"),
        pytest.param(IPIB + 2, 1, Reason.INVALID_PARAMETERS, id="IPIB length"),
        pytest.param(IPIB + 7, 1, Reason.INVALID_PARAMETERS, id="IPIB version"),
        pytest.param(IPIB + 12, 1, Reason.INVALID_PARAMETERS, id="IPIB type"),
        pytest.param(IPIB + 119, 1, Reason.INVALID_PARAMETERS, id="IPIB component count"),
        pytest.param(IPIB_ENTRIES + 7, 1, Reason.TLD_MISMATCH, id="IPIB tweak prefix"),
        pytest.param(IPIB_ENTRIES + 1, 4, Reason.INVALID_PARAMETERS, id="IPIB order of tweak prefixes"),
        pytest.param(IPIB_ENTRIES + 8 + 6, 0x10, Reason.ALD_MISMATCH, id="IPIB component address"),
        pytest.param(IPIB_ENTRIES + 8 + 7, 1, Reason.INVALID_PARAMETERS, id="IPIB part of a page"),
        pytest.param(IPIB_ENTRIES + 8 + 2, 1, Reason.INVALID_PARAMETERS, id="IPIB address outside memory"),
        pytest.param(IPIB_ENTRIES + 16 + 6, 0x10, Reason.PAGE_COUNT, id="IPIB component length"),
        pytest.param(HEADER, 1, Reason.HEADER_CORRUPT, id="magic"),
        pytest.param(HEADER + 11, 1, Reason.HEADER_VERSION, id="version"),
        pytest.param(HEADER + 15, 1, Reason.HEADER_SIZE, id="header size"),
        pytest.param(HEADER + 16, 1, Reason.HEADER_CORRUPT, id="IV"),
        pytest.param(HEADER + 31, 1, Reason.HEADER_CORRUPT, id="reserved"),
        pytest.param(HEADER + 39, 1, Reason.HEADER_SIZE, id="number of slots"),
        pytest.param(HEADER + 39, 2, Reason.NO_KEY_SLOT, id="no slots"),
        pytest.param(HEADER + 47, 1, Reason.ENCRYPTED_AREA_SIZE, id="encrypted area size"),
        pytest.param(HEADER + 55, 1, Reason.HEADER_CORRUPT, id="number of pages"),
        pytest.param(HEADER + 63, 1, Reason.PLAINTEXT_FLAG, id="unknown plaintext flag"),
        pytest.param(HEADER + 63, 0x80, Reason.HEADER_CORRUPT, id="known plaintext flag"),
        pytest.param(HEADER + 64 + 79, 1, Reason.CUSTOMER_KEY, id="customer key"),
        pytest.param(HEADER + 224, 1, Reason.HEADER_CORRUPT, id="PLD"),
        pytest.param(HEADER + 288, 1, Reason.HEADER_CORRUPT, id="ALD"),
        pytest.param(HEADER + 352, 1, Reason.HEADER_CORRUPT, id="TLD"),
        pytest.param(SLOTS, 1, Reason.HOST_KEY, id="slot's host key hash"),
        pytest.param(SLOTS + 32, 1, Reason.KEY_SLOT_CORRUPT, id="slot's wrapped key"),
        pytest.param(SLOTS + 79, 1, Reason.KEY_SLOT_CORRUPT, id="slot's tag"),
        pytest.param(SLOTS + 80 + 40, 1, Reason.HEADER_CORRUPT, id="another host's slot"),
        pytest.param(ENCRYPTED_AREA, 1, Reason.HEADER_CORRUPT, id="encrypted area"),
        pytest.param(TAG + 15, 1, Reason.HEADER_CORRUPT, id="tag"),
        pytest.param(KERNEL, 1, Reason.PLD_MISMATCH, id="kernel"),
        pytest.param(COMMAND_LINE + 4095, 0x80, Reason.PLD_MISMATCH, id="command line"),
        pytest.param(RAMDISK + 0x1000, 1, Reason.PLD_MISMATCH, id="ramdisk"),
        pytest.param(STAGE3B + 0x1FFF, 1, Reason.PLD_MISMATCH, id="stage3b, last bit"),
    ],
)
def test_one_flipped_bit_is_refused(
    image: bytearray, host_a: HostKey, address: int, mask: int, reason: Reason
) -> None:
    image[address] ^= mask
    assert refusal(image, host_a) is reason


def test_a_refused_image_stays_as_it_was(image: bytearray, host_a: HostKey) -> None:
    image[STAGE3B] ^= 1
    before = bytes(image)
    with pytest.raises(Refused):
        ultravisor.start(image, [host_a])
    assert image == before


def test_a_truncated_image_is_refused(image: bytearray, host_a: HostKey) -> None:
    assert refusal(image[:-4096], host_a) is Reason.INVALID_PARAMETERS
    assert refusal(image[:HEADER], host_a) is Reason.INVALID_PARAMETERS
    assert refusal(b"", host_a) is Reason.INVALID_PARAMETERS


def test_a_plain_kernel_is_not_taken_for_stage3a(image: bytearray) -> None:
    assert ultravisor.holds_stage3a(image)
    assert not ultravisor.holds_stage3a(bytearray((VECTORS / "kernel.bin").read_bytes()))


def test_the_host_key_hash_is_what_the_key_slots_say(
    image: bytearray, host_a: HostKey, host_b: HostKey
) -> None:
    slots = {bytes(image[at : at + 32]) for at in (SLOTS, SLOTS + 80)}
    assert {ultravisor.host_key_hash(host_a), ultravisor.host_key_hash(host_b)} == slots


# Headers of version 2, for hybrid host keys.

HYBRID_VECTORS = TEST_VECTORS / "se-header-v2"


def known_hybrid() -> HybridKey:
    key = load_pem_private_key((HYBRID_VECTORS / "host-ec.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    seed = (HYBRID_VECTORS / "host-mlkem.seed.bin").read_bytes()
    return HybridKey(key, MLKEM1024PrivateKey.from_seed_bytes(seed))


def header_key(slot: bytes, keys: Sequence[HostKey]) -> bytes:
    """From one slot, for the known customer."""
    start = (HYBRID_VECTORS / "header-v2-start.bin").read_bytes()
    header = ultravisor._Header._make(ultravisor._HEADER.unpack_from(start))
    assert header.version == 0x200
    private = int.from_bytes((HYBRID_VECTORS / "customer-private.bin").read_bytes())
    customer = ultravisor._point(ec.derive_private_key(private, ec.SECP521R1()).public_key())
    key, found = ultravisor._header_key(header._replace(customer_key=customer), slot, keys)
    assert key is keys[-1]
    return found


def test_the_known_slot_opens_with_the_hosts_two_keys() -> None:
    """A vector of s390-tools 2.44."""
    host, slot = known_hybrid(), (HYBRID_VECTORS / "keyslot-v2.bin").read_bytes()
    assert ultravisor.host_key_hash(host) == slot[:64]
    assert header_key(slot, [host.ec, host]) == b"\x17" * 32
    for other in (host.ec, HybridKey(host.ec, MLKEM1024PrivateKey.generate())):
        with pytest.raises(Refused) as refused:
            header_key(slot, [other])
        assert refused.value.reason is Reason.HOST_KEY


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [(0, 64, Reason.HOST_KEY), (64, 112, Reason.KEY_SLOT_CORRUPT), (112, 1680, Reason.KEY_SLOT_CORRUPT)],
)
def test_every_flipped_bit_of_a_hybrid_slot_is_seen(
    start: int, end: int, reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agreement of the EC keys, which has no part in the slot, is made once."""
    monkeypatch.setattr(ultravisor, "_multiply", functools.cache(ultravisor._multiply))
    monkeypatch.setattr(ultravisor, "_public", functools.cache(ultravisor._public))
    host, slot = known_hybrid(), bytearray((HYBRID_VECTORS / "keyslot-v2.bin").read_bytes())
    for at in range(start, end):
        for bit in range(8):
            slot[at] ^= 1 << bit
            with pytest.raises(Refused) as refused:
                header_key(bytes(slot), [host])
            assert refused.value.reason is reason, (at, bit)
            slot[at] ^= 1 << bit
    assert header_key(bytes(slot), [host]) == b"\x17" * 32
