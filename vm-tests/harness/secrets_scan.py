"""Looking for secrets in whatever the host gets to see: disks, consoles, packets.

A secret is looked for in parts of 32 bytes, each as it is, in hexadecimal digits and in base64 at all three
alignments: a part of a key is found, too, and a secret inside of a larger message.
"""

from __future__ import annotations

import base64
import mmap
import os
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from secex_firstboot.contract.partitions import VOLUMES
from secex_firstboot.storage.cryptsetup import HEADER_SIZE

PART = 32  # bytes
_LONGEST = 2 * PART  # bytes; in hexadecimal
_CHUNK = 1 << 20  # bytes
_LEAST = 12  # bytes; shorter ones would be found by chance


def encodings(secret: bytes) -> set[bytes]:
    """The bytes in which ``secret`` shows; at the ends of its base64, characters that it alone does not fix
    are left out.
    """
    hexadecimal = secret.hex().encode()
    forms = {secret, hexadecimal, hexadecimal.upper()}
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + secret)
        forms.add(text[-(-shift * 8 // 6) : (shift + len(secret)) * 8 // 6])
    return forms


class Scanner:
    """Knows secrets by name; ``lines`` are looked for as they are."""

    def __init__(self, secrets: Mapping[str, bytes], lines: Sequence[bytes] = ()) -> None:
        self._needles: dict[bytes, str] = {}
        for name, secret in secrets.items():
            if len(secret) < _LEAST:
                raise ValueError(f"{name} is too short to be looked for")
            for at in range(0, len(secret), PART):
                part = secret[min(at, max(0, len(secret) - PART)) :][:PART]
                self._needles |= dict.fromkeys(encodings(part), name)
        self._needles |= dict.fromkeys(lines, "a line")

    def found(self, content: bytes | mmap.mmap, start: int = 0, end: int | None = None) -> list[str]:
        """The names of the secrets in ``content``."""
        stop = len(content) if end is None else min(end, len(content))
        # Python before 3.11.4 looks at the byte behind the end (gh-105235); a mapping may have none there.
        last = content[max(start, stop - _LONGEST) : stop]
        return sorted(
            {
                name
                for needle, name in self._needles.items()
                if needle in last or content.find(needle, start, stop - 1) >= 0
            }
        )

    def found_in_file(self, path: Path) -> list[str]:
        """The same for a file of any size; the holes of a sparse one are skipped."""
        names: set[str] = set()
        with path.open("rb") as stream:
            if not os.fstat(stream.fileno()).st_size:
                return []
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for start, end in _extents(stream.fileno()):
                    names.update(self.found(content, start, end))
        return sorted(names)

    def found_in_changes(self, path: Path, before: Path) -> list[str]:
        """The same for what has changed in a raw disk since it was ``before``, which is as large."""
        names: set[str] = set()
        with (
            path.open("rb") as stream,
            before.open("rb") as other,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
            mmap.mmap(other.fileno(), 0, access=mmap.ACCESS_READ) as old,
        ):
            for extent in (*_extents(stream.fileno()), *_extents(other.fileno())):
                for at in range(*extent, _CHUNK):
                    end = min(at + _CHUNK, extent[1])
                    if content[at:end] != old[at:end]:
                        names.update(self.found(content, max(0, at - _LONGEST), end + _LONGEST))
        return sorted(names)


def _extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what a sparse file holds; see lseek(2)."""
    size, at = os.fstat(descriptor).st_size, 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            return
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, at


# --- what is secret ----------------------------------------------------------------------------------------


def of_volumes(files: Mapping[str, bytes], work: Path) -> dict[str, bytes]:
    """Passphrases and volume keys of boot and root, by their names, from the files that open both."""
    secrets = {}
    for name in VOLUMES:
        file = files[f"/etc/luks/{name}"]
        header, passphrase = file[:HEADER_SIZE], file[HEADER_SIZE:]
        secrets[f"passphrase of {name}"] = passphrase
        secrets[f"volume key of {name}"] = volume_key(header, passphrase, work)
    return secrets


def volume_key(header: bytes, passphrase: bytes, work: Path) -> bytes:
    """The volume key that a detached LUKS2 header holds."""
    paths = {name: work / name for name in ("header", "passphrase", "key")}
    paths["header"].write_bytes(header)
    paths["passphrase"].write_bytes(passphrase)
    paths["key"].unlink(missing_ok=True)
    subprocess.run(
        [
            *("cryptsetup", "luksDump", "--batch-mode", "--dump-volume-key"),
            *(f"--key-file={paths['passphrase']}", f"--volume-key-file={paths['key']}", paths["header"]),
        ],
        check=True,
        capture_output=True,
    )
    return paths["key"].read_bytes()


def armored_lines(private: str, public: str) -> list[bytes]:
    """The whole lines of the armor that only the private key has."""
    known = set(public.split())
    return [line.encode() for line in private.split() if len(line) == 64 and line not in known]


def private_numbers(private: str, public: str) -> list[bytes]:
    """The secret numbers of an unprotected OpenPGP key: what a secret packet has beyond its public twin.

    RFC 4880, 5.5.3: after the public part an octet 0 (no protection), the numbers, each after the count of
    its bits, and a checksum of two octets.
    """
    twins = [body for tag, body in _packets(_dearmor(public)) if tag in (6, 14)]
    numbers: list[bytes] = []
    for tag, body in _packets(_dearmor(private)):
        if tag in (5, 7):
            (twin,) = (twin for twin in twins if body.startswith(twin))
            secret = body[len(twin) :]
            if secret[0]:
                raise ValueError("the private key is protected by a passphrase")
            numbers += _numbers(secret[1:-2])
    return numbers


def _numbers(content: bytes) -> Iterator[bytes]:
    while content:
        size = -(-int.from_bytes(content[:2]) // 8)
        yield content[2 : 2 + size]
        content = content[2 + size :]


def _dearmor(text: str) -> bytes:
    """RFC 4880, 6.2: armor header lines, an empty line, base64, a checksum that begins with "="."""
    body = text.split("\n\n", 1)[1].split("-----END")[0].split("\n=")[0]
    return base64.b64decode(body)


def _packets(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, body) of OpenPGP packets; RFC 4880, 4.2, without partial and indeterminate lengths."""
    while content:
        first, second = content[0], content[1]
        if first & 0x40:
            tag, start, size = first & 0x3F, 2, second
            if second == 255:
                start, size = 6, int.from_bytes(content[2:6])
            elif second >= 192:
                start, size = 3, ((second - 192) << 8) + content[2] + 192
        else:
            tag, start = first >> 2 & 0xF, 1 + (1 << (first & 3))
            size = int.from_bytes(content[1:start])
        yield tag, content[start : start + size]
        content = content[start + size :]


# --- packets -----------------------------------------------------------------------------------------------


def tcp_streams(capture: bytes) -> list[bytes]:
    """What went over each TCP connection in each direction, from a pcap file of IPv4 over Ethernet.

    A segment sent twice counts once.
    """
    streams: dict[bytes, dict[int, bytes]] = {}
    for packet in _captured(capture):
        if packet[12:14] != b"\x08\x00" or packet[23] != 6:
            continue
        header = (packet[14] & 0xF) * 4
        segment = packet[14 + header : 14 + int.from_bytes(packet[16:18])]
        ends, sequence = packet[26:34] + segment[:4], int.from_bytes(segment[4:8])
        if content := segment[(segment[12] >> 4) * 4 :]:
            known = streams.setdefault(ends, {})
            known[sequence] = max(known.get(sequence, b""), content, key=len)
    return [b"".join(content for _, content in sorted(parts.items())) for parts in streams.values()]


def _captured(capture: bytes) -> Iterator[bytes]:
    """https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html: a header of 24 bytes, then records."""
    order = "<" if capture[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    at = 24
    while at + 16 <= len(capture):
        (size,) = struct.unpack_from(f"{order}I", capture, at + 8)
        yield capture[at + 16 : at + 16 + size]
        at += 16 + size
