"""Choosing a builder, and what is left on disk by each.

Few distributions package pvimg and genprotimg, so a stand-in plays them here: of pvimg-create(1) and
genprotimg(1) it takes the options that both have, by exactly these names, and refuses to overwrite. Like them
it takes a document that begins as DER for DER, whatever follows, and makes a key slot a document. Of an image
it makes the SE header alone, with stage3a's arguments before it; what it was asked for lies in front. It
notes down the command lines.
"""

from __future__ import annotations

import json
import resource
import shutil
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support import TEST_VECTORS

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.process import ToolError
from secex_firstboot.hostkeys import document
from secex_firstboot.hostkeys.key import HostKey, key_hash
from secex_firstboot.sdboot import create as create_module
from secex_firstboot.sdboot import image
from secex_firstboot.sdboot.create import create

VECTORS = TEST_VECTORS / "se-image"
KERNEL, RAMDISK = VECTORS / "kernel.bin", VECTORS / "ramdisk.bin"
COMMAND_LINE = (VECTORS / "parmfile").read_text()
HOST_A, HOST_B = VECTORS / "host-a.crt", VECTORS / "host-b.crt"
HOST_KEYS = {path: document.parse(path.name, path.read_bytes()).key for path in (HOST_A, HOST_B)}
IN_FRONT = 0x10000  # bytes before stage3a

STAND_IN = f"""#!{sys.executable}
import argparse, hashlib, json, os, pathlib, stat, struct, sys
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

def certificate(document):
    content = document.read_bytes()
    if content[0] != 0x30:
        return x509.load_pem_x509_certificate(content)
    return x509.load_der_x509_certificate(content[: 4 + int.from_bytes(content[2:4], "big")])

def key_slot(document):
    point = certificate(document).public_key().public_numbers()
    key = point.x.to_bytes(80, "big") + point.y.to_bytes(80, "big")
    if given.hdr_version == "2":
        second = x509.load_pem_x509_certificates(document.read_bytes())[1]
        key += second.public_bytes(Encoding.DER).partition(bytes.fromhex("0403038206210" + "0"))[2][:1568]
        return hashlib.sha512(key).digest() + bytes(48 + 1568)
    return hashlib.sha256(key).digest() + bytes(48)

words = sys.argv[1:]
if pathlib.Path(sys.argv[0]).name == "pvimg" and words.pop(0) != "create":
    sys.exit(2)
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("-i", type=pathlib.Path, required=True)
parser.add_argument("-o", type=pathlib.Path, required=True)
parser.add_argument("-r", type=pathlib.Path)
parser.add_argument("-p", type=pathlib.Path)
parser.add_argument("-k", type=pathlib.Path, action="append", required=True)
parser.add_argument("--no-verify", action="store_true", required=True)
parser.add_argument("--hdr-version", default="1")
given = parser.parse_args(words)
if given.o.exists():
    sys.exit("the output exists")
given.o.write_text("half")
with pathlib.Path(sys.argv[0]).with_name("command lines").open("a") as file:
    print(given.p.read_text(), file=file)
if "fail" in given.p.read_text():
    sys.exit("said the tool")
asked = json.dumps({{
    "kernel": str(given.i),
    "ramdisk": given.r and given.r.read_bytes().hex(),
    "command line": given.p.read_text(),
    "documents": [str(path) for path in given.k],
    "in scratch": {{
        path.name: (oct(stat.S_IMODE(path.stat().st_mode)), oct(stat.S_IMODE(path.parent.stat().st_mode)))
        for path in (given.r, given.p) if path and path.parent.name.startswith("sdboot-")
    }},
}})
slots = b"".join(map(key_slot, given.k))
size = 560 + len(slots)
version = int(given.hdr_version) << 8
head = struct.pack(">8sII12x4xQQ", b"IBMSecEx", version, size, len(given.k), 128)
header = head.ljust(416, b"x") + slots + bytes(128 + 16)
arguments = struct.pack(">QQQ", 24, size, 0)
given.o.write_bytes(asked.encode().ljust({IN_FRONT}, b"\\0") + arguments + header)
given.o.chmod(0o644)
"""


def asked_for(output: Path) -> dict[str, Any]:
    """What the stand-in was."""
    found: dict[str, Any] = json.loads(output.read_bytes()[:IN_FRONT].rstrip(b"\0"))
    return found


Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A machine with no builder at all, and a way to install the stand-in on it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(
        create_module, "BOOT_LOADER_DIRECTORIES", (tmp_path / "pvimg", tmp_path / "genprotimg")
    )

    def install(name: str) -> None:
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)

    return install


def install_boot_loaders(directory: Path) -> None:
    directory.mkdir()
    (directory / "stage3a.bin").write_bytes(b"stage3a" * 1000)
    (directory / "stage3b_reloc.bin").write_bytes(b"stage3b" * 500)


def make(
    tmp_path: Path,
    *,
    ramdisk: Sequence[Path] = (RAMDISK,),
    command_line: str = COMMAND_LINE,
    host_keys: Mapping[Path, HostKey] = HOST_KEYS,
    kernel: Path = KERNEL,
) -> tuple[str, Path]:
    output, scratch = tmp_path / "se" / "sdboot", tmp_path / "scratch"
    output.parent.mkdir(exist_ok=True)
    scratch.mkdir(exist_ok=True)
    builder = create(
        output,
        kernel=kernel,
        ramdisk=ramdisk,
        command_line=command_line,
        host_keys=host_keys,
        progress=lambda done, total: None,
        scratch=scratch,
    )
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert_nothing_else_is_left(tmp_path, ["sdboot"])
    return builder, output


def assert_nothing_else_is_left(tmp_path: Path, names: list[str]) -> None:
    assert [path.name for path in (tmp_path / "se").iterdir()] == names
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("name", ["pvimg", "genprotimg"])
def test_ibms_tool_gets_everything_it_needs(tmp_path: Path, install: Install, name: str) -> None:
    install(name)
    builder, output = make(tmp_path)
    assert builder == name
    assert asked_for(output) == {
        "kernel": str(KERNEL),
        "ramdisk": RAMDISK.read_bytes().hex(),
        "command line": COMMAND_LINE,
        "documents": [str(path) for path in HOST_KEYS],
        "in scratch": {"parmfile": ["0o600", "0o700"]},
    }


def test_ibms_tool_gets_several_initramfs_archives_as_one_private_file(
    tmp_path: Path, install: Install
) -> None:
    install("pvimg")
    (tmp_path / "second").write_bytes(b"second")
    _, output = make(tmp_path, ramdisk=[RAMDISK, tmp_path / "second"])
    seen = asked_for(output)
    assert bytes.fromhex(seen["ramdisk"]) == RAMDISK.read_bytes() + bytes(3) + b"second"
    assert seen["in scratch"]["ramdisk"] == ["0o600", "0o700"]


def test_ibms_tool_gets_no_ramdisk_where_there_is_none(tmp_path: Path, install: Install) -> None:
    install("pvimg")
    _, output = make(tmp_path, ramdisk=[])
    assert asked_for(output)["ramdisk"] is None


def test_pvimg_comes_before_genprotimg_and_both_before_the_built_in_builder(
    tmp_path: Path, install: Install
) -> None:
    install_boot_loaders(tmp_path / "genprotimg")
    assert make(tmp_path)[0] == "built-in"
    install("genprotimg")
    assert make(tmp_path)[0] == "genprotimg"
    install("pvimg")
    assert make(tmp_path)[0] == "pvimg"


@pytest.mark.parametrize("directory", ["pvimg", "genprotimg"])
def test_the_built_in_builder_makes_an_image_for_both_hosts(
    tmp_path: Path, install: Install, directory: str
) -> None:
    install_boot_loaders(tmp_path / directory)
    builder, output = make(tmp_path)
    assert builder == "built-in"
    data = output.read_bytes()
    header = data.index(b"IBMSecEx")
    assert data[header + 32 : header + 40] == (2).to_bytes(8, "big")


def test_a_machine_with_no_builder_is_refused(tmp_path: Path, install: Install) -> None:
    (tmp_path / "pvimg").mkdir()
    (tmp_path / "pvimg/stage3a.bin").write_bytes(bytes(100))  # one of two
    with pytest.raises(Refusal, match="neither pvimg nor genprotimg"):
        make(tmp_path)
    assert_nothing_else_is_left(tmp_path, [])


def test_a_failed_tool_leaves_the_old_image_and_nothing_else(tmp_path: Path, install: Install) -> None:
    install("pvimg")
    _, output = make(tmp_path)
    old = output.read_bytes()
    with pytest.raises(ToolError, match="said the tool"):
        make(tmp_path, command_line="fail")
    assert output.read_bytes() == old
    assert_nothing_else_is_left(tmp_path, ["sdboot"])


def test_a_full_partition_is_told_and_leaves_the_old_image(tmp_path: Path, install: Install) -> None:
    install_boot_loaders(tmp_path / "pvimg")
    _, output = make(tmp_path)
    old = output.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) - 1, limits[1]))
    try:
        with pytest.raises(FirstbootError, match=r"sdboot cannot be made: .*room"):
            make(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert output.read_bytes() == old
    assert_nothing_else_is_left(tmp_path, ["sdboot"])


def test_what_a_crash_left_behind_is_in_nobodys_way(tmp_path: Path, install: Install) -> None:
    install("pvimg")
    _, output = make(tmp_path)
    output.with_name("sdboot.unfinished").write_text("half an image")
    make(tmp_path)


@pytest.mark.parametrize("name", ["pvimg", "built-in"])
def test_every_builder_is_spared_what_cannot_boot(tmp_path: Path, install: Install, name: str) -> None:
    install_boot_loaders(tmp_path / "pvimg")
    if name == "pvimg":
        install(name)
    (tmp_path / "small").write_bytes(bytes(0x10000))
    with pytest.raises(Refusal, match="NUL"):
        make(tmp_path, command_line="quiet\0rootfs.roothash=00")
    with pytest.raises(Refusal, match=r"4096 bytes.* takes 4095"):
        make(tmp_path, command_line="x" * 4096)
    with pytest.raises(Refusal, match="no s390x kernel"):
        make(tmp_path, kernel=tmp_path / "small")
    with pytest.raises(Refusal, match="no host key"):
        make(tmp_path, host_keys={})
    with pytest.raises(Refusal, match="missing"):
        make(tmp_path, ramdisk=[tmp_path / "nothing"])
    assert make(tmp_path, command_line="x" * 4095)[0] == name


def test_a_ramdisk_that_does_not_fit_in_memory_is_told_in_mebibytes(tmp_path: Path, install: Install) -> None:
    install("pvimg")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(FirstbootError, match="the ramdisk needs 4194304 MiB"):
        make(tmp_path, ramdisk=[RAMDISK, tmp_path / "huge"])
    assert_nothing_else_is_left(tmp_path, [])


# The finished image is for the proven keys.


class Builder:
    """One of the builders on a machine, and a copy of the documents to change."""

    def __init__(self, name: str, tmp_path: Path, install: Install) -> None:
        self.tmp_path = tmp_path
        if name == "built-in":
            install_boot_loaders(tmp_path / "pvimg")
        else:
            install(name)
        self.documents = tmp_path / "documents"
        self.documents.mkdir()
        for path in HOST_KEYS:
            shutil.copy(path, self.documents)

    def command_lines(self) -> list[str]:
        """Of the images that were asked for, from first to last."""
        return (self.tmp_path / "bin" / "command lines").read_text().splitlines()

    def make(self, *names: str) -> list[bytes]:
        """The key slots of the image for the keys that were proven by these documents."""
        _, output = make(self.tmp_path, host_keys={self.documents / name: PROVEN[name] for name in names})
        with output.open("rb") as file:
            return image.key_slots(file)


PROVEN = {path.name: key for path, key in HOST_KEYS.items()}
HASHES = {name: key_hash(key) for name, key in PROVEN.items()}


@pytest.mark.parametrize("name", ["pvimg", "genprotimg", "built-in"])
def test_the_image_of_every_builder_is_for_the_proven_keys(
    tmp_path: Path, install: Install, name: str
) -> None:
    builder = Builder(name, tmp_path, install)
    assert builder.make(HOST_A.name) == [HASHES[HOST_A.name]]
    assert builder.make(HOST_A.name, HOST_B.name) == list(HASHES.values())


@pytest.mark.parametrize("name", ["pvimg", "genprotimg"])
def test_a_document_in_which_the_tool_reads_another_key_is_refused_in_the_image(
    tmp_path: Path, install: Install, name: str
) -> None:
    """A file with two faces: the tool reads the DER, and what was proven is the PEM behind it."""
    builder = Builder(name, tmp_path, install)
    a, b = (x509.load_pem_x509_certificate(path.read_bytes()) for path in (HOST_A, HOST_B))
    file = builder.documents / HOST_A.name
    file.write_bytes(a.public_bytes(Encoding.DER) + a.public_bytes(Encoding.PEM))
    assert builder.make(HOST_A.name)
    before = (tmp_path / "se" / "sdboot").read_bytes()
    assert builder.command_lines() == ["rehearsal", COMMAND_LINE]
    file.write_bytes(b.public_bytes(Encoding.DER) + a.public_bytes(Encoding.PEM))
    with pytest.raises(FirstbootError, match=f"the image that {name} made is not for exactly") as refused:
        builder.make(HOST_A.name)
    assert refused.value.cure
    with pytest.raises(FirstbootError, match="not for exactly"):
        builder.make(HOST_A.name, HOST_B.name)
    assert builder.command_lines()[2:] == ["rehearsal"] * 2  # nothing secret was in any
    assert (tmp_path / "se" / "sdboot").read_bytes() == before
    assert_nothing_else_is_left(tmp_path, ["sdboot"])


@pytest.mark.parametrize(
    "slots",
    [
        [HOST_A.name],
        [HOST_A.name, HOST_A.name],
        [HOST_A.name, HOST_B.name, HOST_B.name],
        [HOST_B.name, HOST_B.name, HOST_A.name, HOST_A.name],
    ],
)
def test_a_slot_too_few_or_too_many_is_refused(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch, slots: list[str]
) -> None:
    builder = Builder("pvimg", tmp_path, install)
    both = (HOST_A.name, HOST_B.name)
    monkeypatch.setattr(image, "key_slots", lambda file: [HASHES[name] for name in reversed(both)])
    assert builder.make(*both)
    monkeypatch.setattr(image, "key_slots", lambda file: [HASHES[name] for name in slots])
    with pytest.raises(FirstbootError, match="not for exactly"):
        builder.make(*both)
    assert_nothing_else_is_left(tmp_path, ["sdboot"])


def test_what_is_no_image_is_refused(tmp_path: Path, install: Install) -> None:
    builder = Builder("pvimg", tmp_path, install)
    tool = tmp_path / "bin" / "pvimg"
    tool.write_text(tool.read_text().replace("IBMSecEx", "IBMSecEy"))
    with pytest.raises(FirstbootError, match="0 SE headers"):
        builder.make(HOST_A.name)
    assert_nothing_else_is_left(tmp_path, [])


# Images for hybrid host keys.

HYBRID = TEST_VECTORS / "se-header-v2" / "host-hybrid.crt"
HYBRID_KEYS = {HYBRID: document.parse("h", HYBRID.read_bytes()).key}


@pytest.mark.parametrize("name", ["pvimg", "genprotimg", "built-in"])
def test_every_builder_that_can_makes_an_image_for_hybrid_keys(
    tmp_path: Path, install: Install, name: str
) -> None:
    """IBM's, from s390-tools 2.44 on, with its option for the version of the header."""
    Builder(name, tmp_path, install)
    builder, output = make(tmp_path, host_keys=HYBRID_KEYS)
    assert builder == name
    with output.open("rb") as file:
        header = image.header(file)
    assert header.version == 0x200
    assert list(header.key_slots) == [key_hash(key) for key in HYBRID_KEYS.values()]


def test_a_tool_that_knows_no_hybrid_keys_makes_no_image_for_them(tmp_path: Path, install: Install) -> None:
    Builder("pvimg", tmp_path, install)
    tool = tmp_path / "bin" / "pvimg"
    older = tool.read_text().replace('parser.add_argument("--hdr-version", default="1")', "")
    tool.write_text(older.replace("given.hdr_version", "'1'"))
    with pytest.raises(Refusal, match="neither pvimg nor genprotimg"):
        make(tmp_path, host_keys=HYBRID_KEYS)
    install_boot_loaders(tmp_path / "pvimg")
    assert make(tmp_path, host_keys=HYBRID_KEYS)[0] == "built-in"
    assert make(tmp_path)[0] == "pvimg"


def test_keys_of_two_kinds_reach_no_builder(tmp_path: Path, install: Install) -> None:
    Builder("pvimg", tmp_path, install)
    with pytest.raises(Refusal, match="of two kinds"):
        make(tmp_path, host_keys=HYBRID_KEYS | HOST_KEYS)
    assert not (tmp_path / "bin" / "command lines").exists()
