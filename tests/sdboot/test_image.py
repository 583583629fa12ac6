"""The built-in image builder, its content against images that IBM's genprotimg 2.35.0 made, its layout
against pvimg's of 2.43; and the reader of an image's key slots.
"""

from __future__ import annotations

import hashlib
import io
import struct
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from harness import pki, ultravisor
from support import TEST_VECTORS

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.hostkeys import document, ml_kem
from secex_firstboot.hostkeys.key import HostKey, key_hash
from secex_firstboot.sdboot import image

VECTORS = TEST_VECTORS / "se-image"
KERNEL, RAMDISK = VECTORS / "kernel.bin", VECTORS / "ramdisk.bin"
COMMAND_LINE = (VECTORS / "parmfile").read_text()

# Where the vectors' boot loader (11,224 bytes of stage3a) puts things: the first and the third in any layout,
# the second in genprotimg's.
STAGE3A, IPIB, HEADER, PAGE = 0x10000, 0x13000, 0x14000, 4096
ARGUMENTS = STAGE3A + 11224 - 24  # of stage3a: how far from here header (bytes, too) and IPIB lie
KERNEL_TAKES = 0x10430  # offset of the longest command line in a kernel
# Component numbers: genprotimg's, pvimg's.
NAMES = {0: "kernel", 1: "command line", 2: "ramdisk", 3: "stage3b"}
NAMES |= {40: "kernel", 60: "command line", 50: "ramdisk", 70: "stage3b"}


def private_key(name: str) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key((VECTORS / f"{name}.key").read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


HOST_A, HOST_B = private_key("host-a"), private_key("host-b")


@dataclass(frozen=True)
class Opened:
    """An image taken apart as the ultravisor takes it, by the name of the component."""

    header: bytes  # random bytes and digests zeroed
    area: bytes  # the encrypted area, keys zeroed
    places: dict[str, tuple[int, int]]  # address and length, in the order of the IPIB
    components: dict[str, bytes]
    randoms: list[bytes]


def ipib_of(data: bytes) -> int:
    return ARGUMENTS + int(struct.unpack_from(">Q", data, ARGUMENTS + 16)[0])


def open_image(data: bytes, host: ec.EllipticCurvePrivateKey) -> Opened:
    """Open an image made with the vectors' boot loader as the host that owns the key would."""
    ipib, header = ipib_of(data), data[HEADER:]
    slots, area_size = struct.unpack(">QQ", header[32:48])
    area_at = 416 + 80 * slots
    aad, iv = header[:area_at], header[16:28]
    x, y = (int.from_bytes(header[at : at + 80], "big") for at in (64, 144))
    customer = ec.EllipticCurvePublicNumbers(x, y, ec.SECP521R1()).public_key()
    wrapping = hashlib.sha256(host.exchange(ec.ECDH(), customer) + b"\0\0\0\1").digest()
    point = host.public_key().public_numbers()
    mine = hashlib.sha256(point.x.to_bytes(80, "big") + point.y.to_bytes(80, "big")).digest()
    (slot,) = (aad[at : at + 80] for at in range(416, area_at, 80) if aad[at : at + 32] == mine)
    header_key = AESGCM(wrapping).decrypt(bytes(12), slot[32:], None)
    area = AESGCM(header_key).decrypt(iv, header[area_at : area_at + area_size + 16], aad)

    places, components, prefixes = {}, {}, []
    pages, addresses, tweaks = b"", b"", b""
    (count,) = struct.unpack(">I", data[ipib + 0x74 : ipib + 0x78])
    for at in range(ipib + 0x88, ipib + 0x88 + 24 * count, 24):
        prefix, address, length = struct.unpack(">8sQQ", data[at : at + 24])
        plain = b""
        for offset in range(0, length, PAGE):
            page = data[address + offset : address + offset + PAGE]
            tweak = prefix + offset.to_bytes(8, "big")
            plain += Cipher(AES(area[32:96]), modes.XTS(tweak)).decryptor().update(page)
            pages, tweaks = pages + page, tweaks + tweak
            addresses += (address + offset).to_bytes(8, "big")
        name = NAMES[int.from_bytes(prefix[:2], "big")]
        places[name], components[name] = (address, length), plain
        prefixes.append(prefix)
    assert header[48:56] == (len(pages) // PAGE).to_bytes(8, "big")
    for at, listed in ((224, pages), (288, addresses), (352, tweaks)):
        assert header[at : at + 64] == hashlib.sha512(listed).digest()

    blanked = bytearray(header[: area_at + area_size + 16])
    for start, end in ((16, 28), (64 + 14, 144), (144 + 14, 224), (224, len(blanked))):
        blanked[start:end] = bytes(end - start)
    return Opened(
        header=bytes(blanked),
        area=bytes(96) + area[96:],
        places=places,
        components=components,
        randoms=[iv, header[64:224], header_key, area[:32], area[32:64], area[64:96], *prefixes],
    )


@pytest.fixture(scope="session")
def boot_loaders(tmp_path_factory: pytest.TempPathFactory) -> image.BootLoaders:
    """IBM's own boot loaders, taken out of a vector, their arguments blank again."""
    data = (VECTORS / "two-keys.img").read_bytes()
    stage3a = data[STAGE3A:IPIB].rstrip(b"\0")  # its last byte is an address that ends in 0x40
    stage3b = open_image(data, HOST_A).components["stage3b"]
    end = stage3b.rindex(struct.pack(">QQ", 0x180000000, 0x10000)) + 16
    directory = tmp_path_factory.mktemp("s390-tools")
    found = image.BootLoaders(directory / "stage3a.bin", directory / "stage3b_reloc.bin")
    found.stage3a.write_bytes(stage3a[:-24] + bytes(24))
    found.stage3b.write_bytes(stage3b[: end - 64] + bytes(64))
    return found


def build(
    boot_loaders: image.BootLoaders,
    *,
    kernel: Path = KERNEL,
    ramdisk: Sequence[Path] = (RAMDISK,),
    command_line: str = COMMAND_LINE,
    hosts: Sequence[ec.EllipticCurvePrivateKey] = (HOST_A, HOST_B),
) -> bytes:
    output = io.BytesIO()
    image.build(
        output,
        kernel=kernel,
        ramdisk=ramdisk,
        command_line=command_line,
        host_keys=[HostKey(host.public_key()) for host in hosts],
        boot_loaders=boot_loaders,
    )
    return output.getvalue()


def kernel_that_takes(path: Path, limit: int) -> Path:
    kernel = bytearray(KERNEL.read_bytes())
    kernel[KERNEL_TAKES : KERNEL_TAKES + 8] = limit.to_bytes(8, "big")
    path.write_bytes(kernel)
    return path


VECTOR_IMAGES = {"two-keys.img": ((RAMDISK,), [HOST_A, HOST_B]), "no-ramdisk.img": ((), [HOST_B])}


@pytest.mark.parametrize("name", VECTOR_IMAGES)
def test_an_image_opens_as_ibms_does_to_the_same_content(boot_loaders: image.BootLoaders, name: str) -> None:
    """genprotimg's, whose layout was another one."""
    ramdisk, hosts = VECTOR_IMAGES[name]
    ours, ibms = build(boot_loaders, ramdisk=ramdisk, hosts=hosts), (VECTORS / name).read_bytes()
    for host in hosts:
        opened, expected = open_image(ours, host), open_image(ibms, host)
        assert opened.header == expected.header
        assert opened.components.keys() == expected.components.keys()
        for part in opened.components.keys() - {"stage3b"}:
            assert opened.components[part] == expected.components[part]
        assert (opened.area[:104], opened.area[112:]) == (expected.area[:104], expected.area[112:])


def test_an_image_is_laid_out_as_pvimg_does_it(boot_loaders: image.BootLoaders) -> None:
    """rust/pvimg/src/se_img.rs of s390-tools 2.43."""
    data = build(boot_loaders)
    opened, ipib = open_image(data, HOST_A), ipib_of(data)
    assert data[:8] == bytes.fromhex("0008000180011000")
    assert not any(data[8:0xC000])
    assert data[0xC000:][:28] == struct.pack(">8sQIQ", b"SeImgLnx", HEADER, 1, ipib)
    assert not any(data[0xC000 + 28 : STAGE3A])
    assert data[STAGE3A:ARGUMENTS] == boot_loaders.stage3a.read_bytes()[:-24]
    assert struct.unpack_from(">QQQ", data, ARGUMENTS) == (HEADER - ARGUMENTS, 720, ipib - ARGUMENTS)
    assert data[HEADER : HEADER + 8] == b"IBMSecEx"
    assert list(opened.places) == ["kernel", "ramdisk", "command line", "stage3b"]
    at = HEADER + PAGE
    for address, length in opened.places.values():
        assert address == at
        at += length
    assert ipib == at
    head = struct.pack(">I3xB IB3x8x84x3xB4xIQQ", 232, 1, 224, 5, 1, 4, HEADER, 720)
    assert data[ipib:][: len(head)] == head
    assert len(data) == ipib + 232
    entries = [struct.unpack_from(">H6xQQ", data, ipib + 136 + 24 * number) for number in range(4)]
    assert entries == [(40 + 10 * number, *place) for number, place in enumerate(opened.places.values())]


def test_a_large_loader_moves_the_header_behind_it(boot_loaders: image.BootLoaders, tmp_path: Path) -> None:
    stage3a = tmp_path / "stage3a.bin"
    stage3a.write_bytes(boot_loaders.stage3a.read_bytes().rjust(5 * PAGE - 8, b"\1"))
    data = build(image.BootLoaders(stage3a, boot_loaders.stage3b))
    assert image.header(io.BytesIO(data)).at == 0x15000
    assert struct.unpack_from(">8sQ", data, 0xC000) == (b"SeImgLnx", 0x15000)


def test_the_blanked_bytes_do_not_hide_a_field(boot_loaders: image.BootLoaders) -> None:
    """The comparison with IBM's sees magic, sizes, flags, and where it begins."""
    opened = open_image(build(boot_loaders), HOST_A)
    assert opened.header[:16] == b"IBMSecEx" + struct.pack(">II", 0x100, 720)
    assert opened.header[56:64] == struct.pack(">Q", 0xE0)
    start, _ = opened.places["stage3b"]
    assert struct.unpack(">QQQII", opened.area[96:]) == (0x180000000, start, 0, 0, 0)


def test_stage3b_is_told_where_everything_is(boot_loaders: image.BootLoaders) -> None:
    opened, loader = open_image(build(boot_loaders), HOST_A), boot_loaders.stage3b.read_bytes()
    stage3b = opened.components["stage3b"][: len(loader)]
    assert stage3b[:-64] == loader[:-64]
    sizes = {
        "kernel": KERNEL.stat().st_size,
        "command line": len(COMMAND_LINE) + 1,
        "ramdisk": RAMDISK.stat().st_size,
    }
    areas = [value for name, size in sizes.items() for value in (opened.places[name][0], size)]
    assert struct.unpack(">8Q", stage3b[-64:]) == (*areas, 0x180000000, 0x10000)


def test_a_key_of_another_host_does_not_open_an_image(boot_loaders: image.BootLoaders) -> None:
    data = bytearray(build(boot_loaders, hosts=[HOST_A]))
    with pytest.raises(ValueError, match="not enough values"):  # no slot
        open_image(bytes(data), HOST_B)
    assert open_image(bytes(data), HOST_A).components


def test_a_flipped_bit_in_the_header_is_seen(boot_loaders: image.BootLoaders) -> None:
    data = bytearray(build(boot_loaders))
    data[HEADER + 63] ^= 1  # a control flag
    with pytest.raises(InvalidTag):
        open_image(bytes(data), HOST_A)


def test_two_images_share_no_random_value(boot_loaders: image.BootLoaders) -> None:
    randoms = [value for _ in range(2) for value in open_image(build(boot_loaders), HOST_A).randoms]
    assert len(set(randoms)) == len(randoms)
    assert not any(value[2:] == bytes(len(value) - 2) for value in randoms)


def test_initramfs_archives_are_joined_at_multiples_of_four(
    boot_loaders: image.BootLoaders, tmp_path: Path
) -> None:
    parts = []
    for index, content in enumerate((b"a" * 4097, b"b" * 5, b"c" * 8, b"d")):
        parts.append(tmp_path / str(index))
        parts[-1].write_bytes(content)
    opened = open_image(build(boot_loaders, ramdisk=parts), HOST_A)
    whole = b"a" * 4097 + bytes(3) + b"b" * 5 + bytes(3) + b"c" * 8 + b"d"
    assert opened.components["ramdisk"] == whole.ljust(2 * PAGE, b"\0")
    stage3b = opened.components["stage3b"][: boot_loaders.stage3b.stat().st_size]
    assert struct.unpack(">QQ", stage3b[-32:-16]) == (opened.places["ramdisk"][0], len(whole))


@pytest.mark.parametrize("size", [256 * PAGE - 1, 256 * PAGE, 256 * PAGE + 1, 600 * PAGE + 7])
def test_a_ramdisk_longer_than_a_block_keeps_every_page(
    boot_loaders: image.BootLoaders, tmp_path: Path, size: int
) -> None:
    content = hashlib.shake_128(b"ramdisk").digest(size)
    (tmp_path / "ramdisk").write_bytes(content)
    opened = open_image(build(boot_loaders, ramdisk=[tmp_path / "ramdisk"]), HOST_A)
    assert opened.components["ramdisk"] == content + bytes(-size % PAGE)


def test_a_large_ramdisk_is_never_whole_in_memory(boot_loaders: image.BootLoaders, tmp_path: Path) -> None:
    ramdisk = tmp_path / "ramdisk"
    with ramdisk.open("wb") as file:
        file.truncate(32 << 20)
    calls: list[tuple[int, int]] = []
    with (tmp_path / "image").open("wb") as output:
        tracemalloc.start()
        image.build(
            output,
            kernel=KERNEL,
            ramdisk=[ramdisk],
            command_line=COMMAND_LINE,
            host_keys=[HostKey(HOST_A.public_key())],
            boot_loaders=boot_loaders,
            progress=lambda done, total: calls.append((done, total)),
        )
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 << 20
    assert calls == sorted(calls)
    assert len({total for _, total in calls}) == 1
    assert calls[-1][0] == calls[-1][1]


def test_what_an_output_held_before_is_gone(boot_loaders: image.BootLoaders) -> None:
    output = io.BytesIO(b"\xff" * (1 << 20))
    image.build(
        output,
        kernel=KERNEL,
        ramdisk=[RAMDISK],
        command_line=COMMAND_LINE,
        host_keys=[HostKey(HOST_A.public_key())],
        boot_loaders=boot_loaders,
    )
    assert len(output.getvalue()) == len(build(boot_loaders, hosts=[HOST_A]))
    assert not any(output.getvalue()[8:0xC000] + output.getvalue()[0xC000 + 28 : STAGE3A])


def test_a_command_line_longer_than_the_kernel_takes_is_refused(
    boot_loaders: image.BootLoaders, tmp_path: Path
) -> None:
    kernel = kernel_that_takes(tmp_path / "kernel", 100)
    opened = open_image(build(boot_loaders, kernel=kernel, command_line="x" * 99), HOST_A)
    assert opened.components["command line"] == (b"x" * 99).ljust(PAGE, b"\0")
    with pytest.raises(Refusal, match=r"100 bytes.* takes 99"):
        build(boot_loaders, kernel=kernel, command_line="x" * 100)


def test_a_kernel_that_tells_no_limit_takes_896_bytes(
    boot_loaders: image.BootLoaders, tmp_path: Path
) -> None:
    kernel = kernel_that_takes(tmp_path / "kernel", 0)
    assert build(boot_loaders, kernel=kernel, command_line="x" * 895)
    with pytest.raises(Refusal, match=r"896 bytes.* takes 895"):
        build(boot_loaders, kernel=kernel, command_line="x" * 896)


def test_a_nul_in_the_command_line_is_refused(boot_loaders: image.BootLoaders) -> None:
    assert build(boot_loaders, command_line="quiet rootfs.roothash=00")
    with pytest.raises(Refusal, match="NUL"):
        build(boot_loaders, command_line="quiet\0rootfs.roothash=00")


def test_a_kernel_of_nothing_but_the_part_that_is_cut_off_is_refused(
    boot_loaders: image.BootLoaders, tmp_path: Path
) -> None:
    content = kernel_that_takes(tmp_path / "kernel", 4096).read_bytes()
    for size in (0, 0x10000, KERNEL_TAKES + 7):
        (tmp_path / "kernel").write_bytes(content[:size])
        with pytest.raises(Refusal, match="no s390x kernel"):
            build(boot_loaders, kernel=tmp_path / "kernel")
    (tmp_path / "kernel").write_bytes(content[: KERNEL_TAKES + 8])
    assert build(boot_loaders, kernel=tmp_path / "kernel")


def test_missing_or_empty_input_files_are_refused(boot_loaders: image.BootLoaders, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(Refusal, match="missing"):
        build(boot_loaders, kernel=tmp_path / "nothing")
    with pytest.raises(Refusal, match="missing"):
        build(boot_loaders, ramdisk=[RAMDISK, tmp_path / "nothing"])
    with pytest.raises(Refusal, match="empty"):
        build(boot_loaders, ramdisk=[RAMDISK, tmp_path / "empty"])
    assert build(boot_loaders, ramdisk=[RAMDISK, RAMDISK])


def test_missing_or_truncated_boot_loaders_are_refused(
    boot_loaders: image.BootLoaders, tmp_path: Path
) -> None:
    with pytest.raises(Refusal, match=r"stage3a\.bin is missing"):
        build(image.BootLoaders(tmp_path / "stage3a.bin", boot_loaders.stage3b))
    (tmp_path / "stage3b.bin").write_bytes(bytes(64))
    with pytest.raises(Refusal, match="no boot loader"):
        build(image.BootLoaders(boot_loaders.stage3a, tmp_path / "stage3b.bin"))


def test_no_host_key_is_refused(boot_loaders: image.BootLoaders) -> None:
    with pytest.raises(Refusal, match="no host key"):
        build(boot_loaders, hosts=[])


def test_a_host_key_on_another_curve_is_refused(boot_loaders: image.BootLoaders) -> None:
    with pytest.raises(Refusal, match="secp384r1"):
        build(boot_loaders, hosts=[HOST_A, ec.generate_private_key(ec.SECP384R1())])


def test_more_host_keys_than_a_header_holds_are_refused(boot_loaders: image.BootLoaders) -> None:
    data = build(boot_loaders, hosts=[HOST_A] * 95)
    (header_size,) = struct.unpack(">I", data[HEADER + 12 : HEADER + 16])
    assert header_size == 416 + 95 * 80 + 128 + 16
    assert header_size <= 2 * PAGE
    assert struct.unpack_from(">Q", data, ipib_of(data) + 0x90) == (HEADER + 2 * PAGE,)
    with pytest.raises(
        Refusal, match=r"96 classical host keys are given, an image takes 95: KVM .* 7\.0 .* 8 KiB"
    ):
        build(boot_loaders, hosts=[HOST_A] * 96)


# Reading the key slots.

HASH_A, HASH_B = (key_hash(HostKey(host.public_key())) for host in (HOST_A, HOST_B))


def key_slots(data: bytes) -> list[bytes]:
    return image.key_slots(io.BytesIO(data))


def changed(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    for place, new in changes:
        data = data[:place] + new + data[place + len(new) :]
    return data


@pytest.mark.parametrize(
    ("name", "expected"), [("two-keys.img", [HASH_A, HASH_B]), ("no-ramdisk.img", [HASH_B])]
)
def test_the_key_slots_of_genprotimgs_images_are_read(name: str, expected: list[bytes]) -> None:
    assert key_slots((VECTORS / name).read_bytes()) == expected


@pytest.mark.parametrize("count", [1, 2, 95])
def test_the_key_slots_of_our_own_images_are_read(boot_loaders: image.BootLoaders, count: int) -> None:
    hosts = [HOST_B, HOST_A, *[HOST_B] * 93][:count]
    assert key_slots(build(boot_loaders, hosts=hosts)) == [HASH_B, HASH_A, *[HASH_B] * 93][:count]


@pytest.mark.parametrize("header", [0x14000, 0x15000])
def test_the_key_slots_of_an_image_in_pvimgs_layout_are_read(header: int) -> None:
    """Built by its description, as pvimg does not run here: header behind stage3a, IPIB behind everything."""
    data = (VECTORS / "two-keys.img").read_bytes()
    ipib, rest = data[IPIB:HEADER], data[HEADER:]
    arguments = struct.pack(">QQQ", header - ARGUMENTS, 720, header + len(rest) - ARGUMENTS)
    moved = changed(data[:IPIB], (ARGUMENTS, arguments)).ljust(header, b"\0") + rest + ipib
    metadata = struct.pack(">8sQIQ", b"SeImgLnx", header, 1, header + len(rest))
    assert key_slots(changed(moved, (0xC000, metadata))) == [HASH_A, HASH_B]


def test_a_header_to_which_no_loader_points_does_not_count() -> None:
    data = (VECTORS / "no-ramdisk.img").read_bytes()
    other = (VECTORS / "two-keys.img").read_bytes()[HEADER : HEADER + 720]
    assert key_slots(changed(data, (IPIB - PAGE, other))) == [HASH_B]
    assert key_slots(changed(data, (0x8000, other))) == [HASH_B]
    with pytest.raises(FirstbootError, match="0 SE headers"):
        key_slots(changed(data, (ARGUMENTS, struct.pack(">Q", HEADER + 8 - ARGUMENTS))))


def test_two_headers_are_refused() -> None:
    data = (VECTORS / "no-ramdisk.img").read_bytes()
    other = (VECTORS / "two-keys.img").read_bytes()[HEADER : HEADER + 720]
    second = (ARGUMENTS - 24, struct.pack(">QQQ", HEADER + PAGE - ARGUMENTS + 24, 720, 0))
    with pytest.raises(FirstbootError, match="2 SE headers") as refused:
        key_slots(changed(data, second, (HEADER + PAGE, other)))
    assert refused.value.cure


@pytest.mark.parametrize(
    ("place", "new"),
    [
        (HEADER + 8, struct.pack(">I", 0x200)),
        (HEADER + 8, struct.pack(">I", 0x300)),
        (HEADER + 12, struct.pack(">I", 719)),
        (HEADER + 12, struct.pack(">I", 800)),
        (HEADER + 32, struct.pack(">Q", 0)),
        (HEADER + 32, struct.pack(">Q", 1)),
        (HEADER + 32, struct.pack(">Q", 3)),
        (HEADER + 32, struct.pack(">Q", 2**64 - 1)),
        (HEADER + 40, struct.pack(">Q", 48)),  # with four slots' worth of bytes for two
        (ARGUMENTS + 8, struct.pack(">Q", 640)),
        (ARGUMENTS + 8, struct.pack(">Q", 800)),
        (ARGUMENTS + 8, struct.pack(">Q", 2 * PAGE + 1)),
        (ARGUMENTS + 8, struct.pack(">Q", (1 << 20) + 1)),
        (ARGUMENTS + 8, struct.pack(">Q", 2**64 - 720)),
        (ARGUMENTS, struct.pack(">Q", 2**64 - 8)),
    ],
)
def test_a_header_that_is_not_what_it_says_is_refused(place: int, new: bytes) -> None:
    data = (VECTORS / "two-keys.img").read_bytes()
    with pytest.raises(FirstbootError, match="the new image has") as refused:
        key_slots(changed(data, (place, new)))
    assert refused.value.cure


@pytest.mark.parametrize("size", [0, STAGE3A, ARGUMENTS, HEADER, HEADER + 719])
def test_half_an_image_has_no_key_slots(size: int) -> None:
    data = (VECTORS / "two-keys.img").read_bytes()
    assert key_slots(data[: HEADER + 720]) == [HASH_A, HASH_B]
    with pytest.raises(FirstbootError, match="0 SE headers"):
        key_slots(data[:size])


# Headers of version 2, for hybrid host keys. Known answers of s390-tools 2.44: vectors/se-header-v2.

HYBRID_VECTORS = TEST_VECTORS / "se-header-v2"


@cache
def hybrid(who: str) -> ultravisor.HybridKey:
    return ultravisor.HybridKey(pki.host_key(who), pki.ml_kem_key(who))


def public(key: ultravisor.HybridKey) -> HostKey:
    return HostKey(key.ec.public_key(), key.ml_kem.public_key().public_bytes_raw())


def build_hybrid(boot_loaders: image.BootLoaders, host_keys: Sequence[HostKey]) -> bytes:
    output = io.BytesIO()
    image.build(
        output,
        kernel=KERNEL,
        ramdisk=[RAMDISK],
        command_line=COMMAND_LINE,
        host_keys=host_keys,
        boot_loaders=boot_loaders,
    )
    return output.getvalue()


def known_ml_kem() -> MLKEM1024PrivateKey:
    return MLKEM1024PrivateKey.from_seed_bytes((HYBRID_VECTORS / "host-mlkem.seed.bin").read_bytes())


def known_host() -> HostKey:
    point = document.parse("ec", (HYBRID_VECTORS / "host-ec.crt").read_bytes()).key.ec
    return HostKey(point, known_ml_kem().public_key().public_bytes_raw())


def test_a_key_slot_is_the_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the vector's random bytes: the ciphertext, and the shared secret in it."""
    vector = (HYBRID_VECTORS / "keyslot-v2.bin").read_bytes()
    host, secret = known_host(), known_ml_kem().decapsulate(vector[112:])
    assert secret == (HYBRID_VECTORS / "kdf-input.bin").read_bytes()[164:196]
    monkeypatch.setattr(ml_kem, "encapsulate", lambda key: (secret, vector[112:]))
    private = int.from_bytes((HYBRID_VECTORS / "customer-private.bin").read_bytes(), "big")
    customer = ec.derive_private_key(private, ec.SECP521R1())
    version = image.check_host_keys([host])
    assert image._agree(customer, host)[0] == (HYBRID_VECTORS / "kdf-input.bin").read_bytes()
    assert image._key_slot(version, customer, host, b"\x17" * 32) == vector


def test_a_header_begins_as_the_known_one(boot_loaders: image.BootLoaders) -> None:
    """But for IV, number of pages, flags (which pvimg sets by default), digests, and the customer's key."""
    known = (HYBRID_VECTORS / "header-v2-start.bin").read_bytes()
    data = build_hybrid(boot_loaders, [known_host()])[HEADER:]
    for start, end in ((0, 16), (28, 48), (416, 480)):
        assert data[start:end] == known[start:end]
    assert data[56:64] == struct.pack(">Q", 0xF0)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_an_image_for_hybrid_keys_is_opened_by_each_of_its_hosts(
    boot_loaders: image.BootLoaders, count: int
) -> None:
    keys = [hybrid(f"host {number}") for number in range(count)]
    data = build_hybrid(boot_loaders, [public(key) for key in keys])
    header = image.header(io.BytesIO(data))
    assert (header.version, header.size) == (0x200, 560 + 1680 * count)
    assert list(header.key_slots) == [key_hash(public(key)) for key in keys]
    assert struct.unpack_from(">Q", data, ipib_of(data) + 0x90) == (HEADER + -(-header.size // PAGE) * PAGE,)
    for key in keys:
        unpacked = ultravisor.unpack(data, key)
        assert unpacked.kernel == KERNEL.read_bytes()
        assert unpacked.command_line == COMMAND_LINE
        assert unpacked.plaintext_flags == 0xF0
    with pytest.raises(ultravisor.Refused) as refused:
        ultravisor.unpack(data, hybrid("another"))
    assert refused.value.reason is ultravisor.Reason.HOST_KEY
    with pytest.raises(ultravisor.Refused) as refused:
        ultravisor.unpack(data, keys[0].ec)
    assert refused.value.reason is ultravisor.Reason.HOST_KEY


def test_two_slots_share_no_secret(boot_loaders: image.BootLoaders) -> None:
    """Not even two of the same host."""
    host = public(hybrid("host 0"))
    data = build_hybrid(boot_loaders, [host, host])[HEADER + 416 :]
    first, second = data[:1680], data[1680:3360]
    assert first[:64] == second[:64]
    assert first[64:112] != second[64:112]
    assert first[112:] != second[112:]


def test_more_hybrid_keys_than_a_host_takes_are_refused(boot_loaders: image.BootLoaders) -> None:
    hosts = [public(hybrid("host 0"))] * 5
    with pytest.raises(
        Refusal, match=r"5 hybrid host keys are given, an image takes 4: KVM .* 7\.0 .* 8 KiB"
    ):
        build_hybrid(boot_loaders, hosts)
    assert build_hybrid(boot_loaders, hosts[:4])


def test_keys_of_two_kinds_are_refused(boot_loaders: image.BootLoaders) -> None:
    key = public(hybrid("host 0"))
    with pytest.raises(Refusal, match="of two kinds") as refused:
        build_hybrid(boot_loaders, [key, HostKey(HOST_A.public_key())])
    assert refused.value.cure
    with pytest.raises(Refusal, match="secp384r1"):
        build_hybrid(
            boot_loaders, [HostKey(ec.generate_private_key(ec.SECP384R1()).public_key(), key.ml_kem)]
        )


def with_slots(count: int) -> bytes:
    """As pvimg may make it for a host that takes more: no content, and slots of nothing."""
    size = 560 + 1680 * count
    head = b"IBMSecEx" + struct.pack(">II16xQQ", 0x200, size, count, 128)
    return bytes(STAGE3A) + struct.pack(">QQQ", 24, size, 0) + head.ljust(size, b"\1")


def test_a_header_of_a_mebibyte_is_read_and_no_larger_one() -> None:
    assert key_slots(with_slots(623)) == [b"\1" * 64] * 623
    with pytest.raises(FirstbootError, match="0 SE headers"):
        key_slots(with_slots(624))


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (8, struct.pack(">I", 0x100)),
        (12, struct.pack(">I", 560 + 2 * 1680)),
        (32, struct.pack(">Q", 0)),
        (32, struct.pack(">Q", 1)),
        (32, struct.pack(">Q", 4)),
        (40, struct.pack(">Q", 1680)),
    ],
)
def test_a_hybrid_header_that_is_not_what_it_says_is_refused(at: int, new: bytes) -> None:
    data = with_slots(3)
    assert len(key_slots(data)) == 3
    with pytest.raises(FirstbootError, match="the new image has"):
        key_slots(changed(data, (STAGE3A + 24 + at, new)))
