"""The scanner for secrets finds what it has to: planted ones, in each form and anywhere."""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import secrets_scan
from harness.secrets_scan import Scanner
from support import needs

from secex_firstboot.builder import config_key

SECRET = os.urandom(64)
AROUND = b"\0 some text around it, long enough \xff"


@pytest.mark.parametrize("shift", range(7))
@pytest.mark.parametrize(
    "encode",
    [bytes, lambda content: content.hex().encode(), lambda content: content.hex().upper().encode()],
    ids=["raw", "hex", "HEX"],
)
def test_a_planted_secret_is_found(encode: Callable[[bytes], bytes], shift: int) -> None:
    scanner = Scanner({"key": SECRET})
    assert scanner.found(AROUND[shift:] + encode(SECRET) + AROUND) == ["key"]
    assert scanner.found(AROUND[shift:] + encode(os.urandom(64)) + AROUND) == []


@pytest.mark.parametrize("before", range(4))
def test_a_secret_inside_of_a_message_in_base64_is_found(before: int) -> None:
    scanner = Scanner({"key": SECRET})
    assert scanner.found(base64.b64encode(AROUND[:before] + SECRET + AROUND)) == ["key"]
    assert scanner.found(base64.b64encode(AROUND[:before] + os.urandom(64) + AROUND)) == []


def test_half_of_a_key_is_found() -> None:
    assert Scanner({"key": SECRET}).found(AROUND + SECRET[32:] + AROUND) == ["key"]


def test_a_line_is_found() -> None:
    assert Scanner({}, [b"a line of an armor"]).found(b"x a line of an armor y") == ["a line"]


def test_a_secret_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        Scanner({"pin": b"1234"})


@pytest.mark.parametrize("position", [0, 4096 - 7, (8 << 20) + 3, (16 << 20) - 64])
def test_a_secret_anywhere_in_a_sparse_file_is_found(position: int, tmp_path: Path) -> None:
    file = tmp_path / "disk"
    with file.open("wb") as stream:
        stream.truncate(16 << 20)
        assert Scanner({"key": SECRET}).found_in_file(file) == []
        stream.seek(position)
        stream.write(SECRET)
    assert Scanner({"key": SECRET}).found_in_file(file) == ["key"]


@pytest.mark.parametrize("position", [0, (1 << 20) - 7, (8 << 20) + 3, (16 << 20) - 64])
def test_of_two_disks_what_has_changed_is_looked_through(position: int, tmp_path: Path) -> None:
    before, disk = tmp_path / "before", tmp_path / "disk"
    for path in (before, disk):
        with path.open("wb") as stream:
            stream.truncate(16 << 20)
            stream.seek(5 << 20)
            stream.write(SECRET)
    scanner = Scanner({"key": SECRET})
    assert scanner.found_in_changes(disk, before) == []
    with disk.open("r+b") as stream:
        stream.seek(position)
        stream.write(SECRET.hex().encode()[:64])
    assert scanner.found_in_changes(disk, before) == ["key"]


def test_nothing_is_found_in_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    assert Scanner({"key": SECRET}).found_in_file(tmp_path / "log") == []


@needs.programs("gpg")
def test_a_gpg_keys_secret_numbers_are_known_and_its_public_ones_are_not() -> None:
    pair = config_key.key_pair()
    private, public = pair.private.decode(), pair.public.decode()
    numbers = secrets_scan.private_numbers(private, public)
    assert len(numbers) >= 2
    assert all(len(number) >= 30 for number in numbers)
    scanner = Scanner({f"{at}": number for at, number in enumerate(numbers)},
                      secrets_scan.armored_lines(private, public))  # fmt: skip
    assert scanner.found(private.encode()) == [*map(str, range(len(numbers))), "a line"]
    assert scanner.found(public.encode()) == []


def test_a_secret_split_between_two_packets_is_found() -> None:
    packets = [segment(1000 + len(AROUND), SECRET[:20]), segment(1000, AROUND), segment(1000, AROUND)]
    packets.append(segment(1020 + len(AROUND), SECRET[20:]))
    capture = bytes.fromhex("d4c3b2a1") + bytes(20)
    capture += b"".join(struct.pack("<IIII", 0, 0, len(packet), len(packet)) + packet for packet in packets)
    scanner = Scanner({"key": SECRET})
    assert scanner.found(capture) == ["key"]  # its second part
    assert secrets_scan.tcp_streams(capture) == [AROUND + SECRET]


def segment(sequence: int, content: bytes) -> bytes:
    tcp = struct.pack(">HHIIBBHHH", 40000, 443, sequence, 0, 5 << 4, 0x18, 8192, 0, 0) + content
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, bytes(4), b"\x0a\x00\x02\x64")
    return bytes(12) + b"\x08\x00" + ip + tcp
