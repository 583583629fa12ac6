"""Hostile input for everything that reads what comes from a disk, a config or the network.

Each reader gets an equal share of the time.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key
from hypothesis import strategies as st
from support import TEST_VECTORS, fuzzing, gpt_disks, needs

from secex_firstboot.basic import process
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.contract import parameters
from secex_firstboot.contract.command_line import loosely, name, value_of
from secex_firstboot.contract.metadata import BootEntry, Metadata, Partition, Volume
from secex_firstboot.contract.partitions import LAYOUT, VOLUMES
from secex_firstboot.hostkeys import document
from secex_firstboot.ignition import config, kernel_arguments, merge, openpgp, ownership, transport, validity
from secex_firstboot.owner import console_log, domain, domain_check
from secex_firstboot.owner.console_log import Outcome
from secex_firstboot.owner.domain import Guest
from secex_firstboot.roots import crypttab
from secex_firstboot.sdboot import boot_map, image
from secex_firstboot.sdboot.boot_map import Extent
from secex_firstboot.storage import gpt, verity_superblock


def edited(sample: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, gone, new in edits:
        sample = sample[:place] + new + sample[place + gone :]
    return sample


def mutated(samples: list[bytes]) -> st.SearchStrategy[bytes]:
    """A sample in some places of which bytes were replaced, cut out or put in."""
    place = st.integers(0, max(map(len, samples)))
    edit = st.tuples(place, st.integers(0, 16), st.binary(max_size=16))
    return st.builds(edited, st.sampled_from(samples), st.lists(edit, min_size=1, max_size=6))


# config and ownership

PIECES = [
    "etc",
    "luks",
    "boot",
    "root",
    "dev",
    "disk",
    "mapper",
    "by-label",
    "dm-0",
    "..",
    "\0",
    "\ud800",
    ".",
    "",
    "crypttab",
    "a",
]
json_paths = st.lists(st.sampled_from(PIECES), max_size=8).map("/".join) | st.text()


def entries(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(st.fixed_dictionaries(fields), max_size=3)


storages = st.fixed_dictionaries(
    {},
    optional={
        "disks": entries(device=json_paths, partitions=entries(label=json_paths)),
        "raid": entries(devices=st.lists(json_paths, max_size=3)),
        "luks": entries(name=json_paths, device=json_paths, label=json_paths),
        "filesystems": entries(device=json_paths, path=json_paths, label=json_paths),
        "files": entries(path=json_paths, overwrite=st.booleans()),
        "directories": entries(path=json_paths, overwrite=st.booleans()),
        "links": entries(path=json_paths, target=json_paths),
    },
)
units = entries(name=json_paths, dropins=entries(name=json_paths), mask=st.booleans())
users = entries(name=json_paths, homeDir=json_paths, sshAuthorizedKeys=st.lists(json_paths, max_size=2))
configs = st.fixed_dictionaries(
    {"ignition": st.just({"version": "3.3.0"}), "storage": storages},
    optional={
        "systemd": st.fixed_dictionaries({"units": units}),
        "passwd": st.fixed_dictionaries({"users": users}),
    },
).map(lambda value: json.dumps(value).encode())
KEYS = [
    "ignition",
    "version",
    "storage",
    "files",
    "path",
    "contents",
    "kernelArguments",
    "shouldExist",
    "links",
]
objects = st.recursive(
    json_paths | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.just("3.3.0"),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner),
).map(lambda value: json.dumps(value).encode())
CONFIG = json.dumps(
    {
        "ignition": {
            "version": "3.3.0",
            "timeouts": {"httpTotal": 7},
            "config": {"merge": [{"source": "data:,%7B%22ignition%22:%7B%22version%22:%223.3.0%22%7D%7D"}]},
        },
        "storage": {
            "files": [{"path": "/etc/se-hostkeys/ibm-z-hostkey-a", "contents": {"source": "data:,x"}}],
            "links": [{"path": "/a", "target": "../b", "hard": True}],
            "filesystems": [{"device": "/dev/a", "format": "xfs", "path": "/var"}],
            "luks": [{"name": "a", "device": "/dev/a", "keyFile": {"source": "data:;base64,YQ=="}}],
        },
        "systemd": {"units": [{"name": "a.service", "mask": True, "dropins": [{"name": "a.conf"}]}]},
        "passwd": {"users": [{"name": "a", "homeDir": "/a", "uid": 7}], "groups": [{"name": "a"}]},
        "kernelArguments": {"shouldExist": ["a=1"]},
    }
).encode()


def read_config(text: bytes) -> None:
    parsed = config.parse(text)
    config.host_keys(parsed)
    read, _ = merge.read(text)
    validity.check(read)
    transport.check(parsed, lambda line: None)


def check_ownership(text: bytes) -> None:
    parsed = config.parse(text)
    with contextlib.suppress(FirstbootError):
        validity.check(parsed)
    ownership.check(parsed, {ownership.device_number("/dev/vda") or 1})


# kernel arguments

WORDS = [
    '"init=/x"',
    "init=/x",
    "rd.break",
    "quiet",
    "a=1",
    "single",
    "--",
    "-b",
    "systemd.unit=x",
    '"',
    "'",
    " ",
    "\\",
    "a-b",
    "=",
]
command_lines = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=6).map("".join)


def edit_command_line(lists: tuple[str, list[str], list[str]]) -> None:
    options, exist, absent = lists
    arguments = config.KernelArguments(should_exist=exist, should_not_exist=absent)
    result = kernel_arguments.apply(options, arguments)
    added = set(result.replace('"', "").split()) - set(options.replace('"', "").split())
    names = {word.partition("=")[0] for word in added}
    assert not any(family.has(name) for family in kernel_arguments.FAMILIES for name in names)


# kernel parameters

OF_AN_IMAGE = [f"{row.name}={word}" for row in parameters.ALL for word in row.values]
OF_AN_IMAGE += ["secex.headroom=64", "secex.headroom=", "secex.grow", "ignition.firstboot"]
parameter_lines = st.tuples(
    st.lists(st.sampled_from([*OF_AN_IMAGE, *WORDS]) | st.text(max_size=4), max_size=6),
    st.sampled_from(["", " "]),
).map(lambda line: " ".join(map(str, parameters.NEEDED)) + " " + line[1].join(line[0]))


def read_parameters(line: str) -> None:
    """What is taken, all who read it find: systemd and the scripts of the initramfs, too."""
    rows = [*parameters.NEEDED, *parameters.OURS]
    parameters.check(line, rows)
    words = loosely(line)
    for row in rows:
        written = {value_of(word) for word in words if name(word) == row.name}
        assert len(written) <= 1
        assert parameters.value(line, row) == (row.read(*written) if written else row.default)
    assert parameters.value(line, parameters.EMERGENCY) == ("secex.emergency=shell" in line.split())


# message

MESSAGE = base64.b64decode(
    b"hF4DxTBsNmQShrsSAQdAELkobdbpuBDokDQdjvj70+gEveAHur6OYx3JsksJlX0wejJcAqnKKLyb+48leFqdbbHGv4wIWTO2z1oR"
    b"LAc3RGEuaDmrOrnrpiGXodAEezDzhF4DMbIBAdIMUrUSAQdA7pak/Y7AvGYO9C2gJxPJbTOUnQOCSs936WxvZqWQ7yMwMWpZjAgY"
    b"tYi4Sp45CoOto4X89kzunmx+X9LtedvzEXJyO2turTUcYmMVdzDDokN/0lkBK1Zd7UttE9/Ohk5x6q10JCxacM5/J2P8WyVfJ5pb"
    b"Dfc73Z+U3wwYl5esOJ4+OqHOPzilhex1sTAplSL7oJ3LmaxL1bhwKxcLsxHcJWcieCxPZTbK/HIYwg=="
)
ARMORED = b"-----BEGIN PGP MESSAGE-----\n\n" + base64.encodebytes(MESSAGE) + b"-----END PGP MESSAGE-----\n"


def read_message(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        disk = Path(directory) / "disk"
        disk.write_bytes(content)
        with openpgp.read_message(disk) as message:
            assert 0 < len(message.read()) <= len(content)


# crypttab

crypttab_lines = st.lists(
    st.sampled_from([b"root", b"boot", b"data", b" ", b"\t", b"#", b"\n", b"\0", b"\xff"])
)


def merge_crypttab(existing: bytes) -> None:
    ours = ["boot a b c", "root a b c"]
    merged = crypttab.merge(existing, ours)
    assert crypttab.merge(merged, ours) == merged


# host-key document

VECTORS = TEST_VECTORS
PEM = [(VECTORS / f"se-image/host-{name}.crt").read_bytes() for name in "ab"]
DER = [x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER) for pem in PEM]
HYBRID = (VECTORS / "se-header-v2/host-hybrid.crt").read_bytes()
BETWEEN = [
    b"",
    b"\n",
    b" \r\n\t",
    b"\0",
    b"text\n",
    b"-----BEGIN EC PARAMETERS-----\nBgUrgQQAIw==\n-----END EC PARAMETERS-----\n",
    b"-----BEGIN CERTIFICATE-----\n",
    b"\n-----END CERTIFICATE-----\n",
    PEM[0].replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE"),
    PEM[0].replace(b" CERTIFICATE", b" X509 CERTIFICATE"),
    DER[0][:40],
    HYBRID[: HYBRID.rindex(b"-----BEGIN")],
    HYBRID[HYBRID.rindex(b"-----BEGIN") :],
]
several_faces = st.lists(st.sampled_from(PEM + DER + BETWEEN), min_size=1, max_size=4).map(b"".join)


def read_document(content: bytes) -> None:
    """What is accepted is one certificate, or a hybrid document's two, and nothing else, and OpenSSL reads
    the first one's key in what we hand on.
    """
    parsed = document.parse("a", content)
    der = parsed.certificates[0].public_bytes(Encoding.DER)
    assert content == der or b"".join(content.split()) == b"".join(parsed.pem.split())
    assert x509.load_pem_x509_certificates(parsed.pem) == list(parsed.certificates)
    shown = process.run(["openssl", "x509", "-pubkey", "-noout"], stdin=parsed.pem.decode())
    key = load_pem_public_key(shown.encode())
    assert isinstance(key, EllipticCurvePublicKey)
    assert key == parsed.key.ec
    assert len(document.key_hash(parsed)) == 32 * len(parsed.certificates)


# key slots of an image

LOADER, END = 0x10000, 0x15000
IMAGES = [(VECTORS / f"se-image/{name}.img").read_bytes()[LOADER:END] for name in ("two-keys", "no-ramdisk")]
IMAGES.append(
    edited(
        IMAGES[1],
        [(11208, 8, (2240).to_bytes(8, "big")), (0x4008, 8, bytes.fromhex("00000200000008c0"))],
    )
)
fields = st.tuples(
    st.sampled_from([11200, 11208, 11216, *(0x4000 + at for at in (0, 8, 12, 32, 40, 64, 416, 496))]),
    st.integers(0, 4).map(lambda size: size * 2),
    st.binary(max_size=8),
)
broken_headers = st.builds(edited, st.sampled_from(IMAGES), st.lists(fields, max_size=3))


def read_key_slots(content: bytes) -> None:
    header = image.header(io.BytesIO(bytes(LOADER) + content))
    assert len(header.key_slots) >= 1
    size, slot = {0x100: (32, 80), 0x200: (64, 1680)}[header.version]
    assert {len(each) for each in header.key_slots} == {size}
    assert header.size == 560 + slot * len(header.key_slots) <= 1 << 20


THIS_MACHINE = "".join(f"{digit * 64}\n" for digit in "a000b0000000000").encode()


def read_this_machine(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "all")
        file.write_bytes(content)
        keys = document.this_host_key_hashes(Path(directory))
        parsed = document.parse("a", PEM[0])
        with contextlib.suppress(Refusal):
            document.check_this_host([parsed], keys)
        document.check_header_version([parsed], file)
    assert all(len(each) == 32 and any(each) for each in keys)


# partition table

PARTS = [gpt_disks.part(number, f"p{number}", 40 * number, 40 * number + 39) for number in (1, 3, 4, 128)]
TABLE, TABLE_4K = gpt_disks.GptDisk(PARTS, blocks=8192), gpt_disks.GptDisk(PARTS, 8192, 4096)
blocks = st.integers(0, 2**64 - 1) | st.sampled_from(
    [0, 1, 2, 33, 34, 100, 8157, 8158, 8190, 8191, 8192, 2**64 - 1]
)
numbers = st.integers(0, 2**32 - 1) | st.sampled_from([0, 91, 92, 127, 128, 129, 512])
parts = st.builds(
    gpt_disks.Part,
    st.integers(1, 128),
    st.binary(max_size=72),
    blocks,
    blocks,
    st.none() | st.binary(min_size=16, max_size=16),
    st.sampled_from([bytes(16), b"t" * 16]),
)
header_fields = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("own", "other", "first", "last", "entries_at"), blocks),
        **dict.fromkeys(("revision", "size", "reserved", "number", "entry_size"), numbers),
    },
)
tables = st.builds(
    lambda disk, parts, fields: replace(disk, parts=parts).saying(**fields),
    st.sampled_from([TABLE, TABLE_4K]),
    st.lists(parts, max_size=4),
    header_fields | st.just({}),
)
copies = st.builds(
    lambda disk, backup: (disk.block_size, backup, b"".join(disk.copy(backup=backup))), tables, st.booleans()
) | st.builds(
    lambda backup, edits: (512, backup, edited(b"".join(TABLE.copy(backup=backup)), edits)),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 2 << 13), st.integers(0, 16), st.binary(max_size=16)), max_size=3),
)


def read_table(copy: tuple[int, bool, bytes]) -> None:
    """What is taken lies within the disk, apart from everything else on it."""
    block_size, is_backup, content = copy
    own = 8191 if is_backup else 1
    header, entries = content[:block_size], content[block_size:]
    found = gpt.parse(header, entries, own=own, blocks=8192, block_size=block_size)
    room = gpt.ENTRIES_SIZE // block_size
    edges = [(0, (2 + room) * block_size), ((8191 - room) * block_size, 8192 * block_size)]
    if is_backup:
        assert found.other == 1
    else:
        edges[1] = ((found.other - room) * block_size, 8192 * block_size)
    spans = sorted([*edges, *((each.start, each.end) for each in found.entries)])
    assert all(start < end for start, end in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    assert all(each.name.encode("utf-8") is not None for each in found.entries)


# dm-verity superblock

SUPERBLOCK = struct.pack(
    "<8sII16s32sIIQH6s256s168s",
    *(b"verity\0\0", 1, 1, b"u" * 16, b"sha256", 4096, 4096, 8192, 32, b"", b"s" * 32, b""),
)
superblock_fields = st.tuples(
    st.sampled_from([0, 8, 12, 16, 32, 64, 68, 72, 80, 82, 88, 120, 344]),
    st.integers(0, 4).map(lambda size: size * 2),
    st.binary(max_size=8),
)
superblocks = st.builds(edited, st.just(SUPERBLOCK), st.lists(superblock_fields, max_size=3))


def read_superblock(content: bytes) -> None:
    data_room, tree_room = 64 << 20, 1 << 20
    found = verity_superblock.parse(content[:512], "x", tree_room=tree_room, data_room=data_room)
    assert 0 < found.data_bytes <= data_room
    assert verity_superblock.HASHES_AT <= found.tree_bytes <= tree_room
    assert len(found.salt) <= 256


# boot map

BLOCK, BLOCKS, MAP_AT = 512, 4096, 100
_IMAGE = [Extent(2000, 90), Extent(3000, 8)]
_MAP, _RECORD = boot_map.write(
    b"stage3" * 100, _IMAGE, 50_000, boot_map=[Extent(MAP_AT, 200)], block_size=BLOCK
)
BOOT_DISK = _RECORD.ljust(MAP_AT * BLOCK, b"\0") + _MAP
map_fields = st.tuples(
    st.sampled_from([0, 4, 16, 24]) | st.integers(MAP_AT * BLOCK, len(BOOT_DISK) - 16),
    st.integers(0, 4).map(lambda size: size * 2),
    st.binary(max_size=16),
)
boot_disks = st.builds(edited, st.just(BOOT_DISK), st.lists(map_fields, max_size=4))


def read_boot_map(content: bytes) -> None:
    def read(at: int, size: int) -> bytes:
        return content[at : at + size].ljust(size, b"\0")

    for program in boot_map.read(read, blocks=BLOCKS, block_size=BLOCK).values():
        for part in program.components:
            assert all(0 < each.block <= BLOCKS - each.count for each in part.extents)


# metadata of an image

METADATA = Metadata(
    disk_size=6 << 28,
    partitions=tuple(
        Partition(number=each.number, name=each.name, start=(1 << 20) + (at << 28), size=1 << 28)
        for at, each in enumerate(LAYOUT)
    ),
    volumes={name: Volume(file_system="ext4", size=1 << 20, root_hash="0" * 64) for name in VOLUMES},
    boot_entry=BootEntry(release="7.1", kernel="0" * 64, initramfs=("0" * 64,), options="quiet"),
    agent="0.1.0",
).model_dump_json()


def read_metadata(content: bytes) -> None:
    with written(content) as path:
        found = Metadata.load(path)
    assert all(each.size > 0 for each in found.volumes.values())


# a domain of libvirt, a console log

DOMAIN = domain.xml(Guest("guest", Path("/none"), "raw", Path("/none"), Path("/none"), loadparm="1")).encode()
LOG_LINES = [
    b"LOADPARM=[        ]\r\n",
    b"[    2.6] Linux version 6.12 (x) #1\r\n",
    b"[   83.8] secex-firstboot[339]: [2/12] config: done in 5.2 s: it has\n",
    b"\x1b[0;32msecex-firstboot: it broke: mend it [SX-DISK-11]\x1b[0m\n",
    b"what failed:  secex-firstboot.service\n",
    b"why:          it broke\n",
    b"Protected boot failed: 0xa02, KVM_PV_VERIFY - RC: 0x102, RRC:0x1a\n",
    b"Kernel panic - not syncing: WHAT\n",
]
logs = st.lists(st.sampled_from(LOG_LINES) | mutated(LOG_LINES)).map(b"".join)


def check_domain(content: bytes) -> None:
    with written(content) as path:
        found = domain_check.check(path)
    assert all(1 <= each.line <= content.count(b"\n") + 1 for each in found.findings if each.line is not None)


def explain_log(content: bytes) -> None:
    with written(content) as path:
        found = console_log.explain(path)
    told = [found.cause, *found.also] if found.cause else found.also
    assert all(each.said.isprintable() for each in told if each)
    assert (found.outcome is Outcome.UNKNOWN) <= (not found.starts)


@contextlib.contextmanager
def written(content: bytes) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield Path(file.name)


READERS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
    "config": (st.binary() | mutated([CONFIG]) | objects, read_config),
    "ownership": (configs, check_ownership),
    "kernel arguments": (
        st.tuples(command_lines, st.lists(command_lines), st.lists(command_lines)),
        edit_command_line,
    ),
    "kernel parameters": (parameter_lines, read_parameters),
    "message": (st.binary() | mutated([MESSAGE, ARMORED]), read_message),
    "crypttab": (st.binary() | crypttab_lines.map(b"".join), merge_crypttab),
    "document": (st.binary() | mutated([*PEM, *DER, HYBRID]) | several_faces, read_document),
    "partition table": (copies, read_table),
    "verity superblock": (st.binary() | mutated([SUPERBLOCK]) | superblocks, read_superblock),
    "boot map": (st.binary() | mutated([BOOT_DISK]) | boot_disks, read_boot_map),
    "metadata": (st.binary() | mutated([METADATA.encode()]), read_metadata),
    "domain": (st.binary() | mutated([DOMAIN]), check_domain),
    "console log": (st.binary() | logs, explain_log),
    "key slots": (st.binary() | mutated(IMAGES) | broken_headers, read_key_slots),
    "this machine": (st.binary() | mutated([THIS_MACHINE, b"c000000000000000\n"]), read_this_machine),
}


@pytest.mark.parametrize("name", READERS)
def test_nothing_but_a_refusal_comes_of_hostile_input(name: str) -> None:
    if name == "document":
        needs.require("openssl")
    strategy, read = READERS[name]

    def survives(value: Any) -> None:
        with contextlib.suppress(FirstbootError):
            read(value)

    fuzzing.run(strategy, survives, share=1 / len(READERS))
