"""Power cuts: a disk whose every write is noted, and the disk as a cut at any moment would have left it.

What the guest has flushed is on stable storage. Of what it wrote since, a host may have kept everything (as
when only QEMU is killed), nothing, or some sectors of some writes, in any order. So the disk that a cut
leaves is made of the disk before, the log of writes and a seed.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from random import Random

from harness.guest import Disk

_SERVER = Path(__file__).with_name("volatile_disk.py")
_HEADER = struct.Struct(">cQQ")  # as there
_SECTOR = 512  # bytes; what a disk writes whole or not at all
_START_TIMEOUT = 30.0  # seconds


class Loss(StrEnum):
    """What a cut takes of the writes that were not flushed."""

    NOTHING = "nothing"
    EVERYTHING = "everything"
    SOME = "some sectors"
    EARLIER = "all but the last write"


@dataclass(frozen=True)
class Event:
    """A write of ``length`` bytes whose content stands in the log at ``content_at``; or a flush."""

    flush: bool
    position: int
    length: int
    content_at: int


@dataclass(frozen=True)
class Recording:
    """The disk ``before`` the guest ran, and the ``log`` of what it did."""

    before: Path
    log: Path

    def events(self) -> list[Event]:
        events, at, size = [], 0, self.log.stat().st_size
        with self.log.open("rb") as stream:
            while at + _HEADER.size <= size:
                stream.seek(at)
                kind, position, length = _HEADER.unpack(stream.read(_HEADER.size))
                at += _HEADER.size + length
                if at <= size:  # else QEMU's server was killed in mid-write
                    events.append(Event(kind == b"F", position, length, at - length))
        return events

    def event_at(self, events: list[Event], log_size: int) -> int:
        """How many events had been noted when the log had ``log_size`` bytes."""
        return bisect_right([event.content_at + event.length for event in events], log_size)

    def first_write_of(self, content: bytes, events: list[Event]) -> int:
        """How many events there were before the first write that has ``content``."""
        with self.log.open("rb") as log:
            for number, event in enumerate(events):
                log.seek(event.content_at)
                if content in log.read(event.length):
                    return number
        raise ValueError("nothing of the kind was written")

    def cut(self, events: list[Event], output: Path, *, loss: Loss, seed: int) -> None:
        """The disk that a power cut after ``events`` leaves, as the raw file ``output``."""
        subprocess.run(["cp", "--sparse=always", self.before, output], check=True)
        stable = max((number for number, event in enumerate(events) if event.flush), default=-1)
        last = len(events) - 1
        random = Random(seed)  # noqa: S311
        with self.log.open("rb") as log, output.open("r+b") as disk:
            for number, event in enumerate(events):
                lost = loss is Loss.EVERYTHING or (loss is Loss.EARLIER and number < last)
                if event.flush or (number > stable and lost):
                    continue
                log.seek(event.content_at)
                content = log.read(event.length)
                if number <= stable or loss is not Loss.SOME:
                    disk.seek(event.position)
                    disk.write(content)
                else:
                    _write_some(disk.fileno(), event.position, content, random)


def _write_some(disk: int, position: int, content: bytes, random: Random) -> None:
    """A third of the writes arrives whole, a third not at all, and of a third some sectors."""
    share = random.choice([0.0, random.random(), 1.0])
    for at in range(0, len(content), _SECTOR):
        if random.random() < share:
            os.pwrite(disk, content[at : at + _SECTOR], position + at)


@contextmanager
def recorded(disk: Path, serial: str = "system") -> Iterator[tuple[Disk, Recording]]:
    """The raw file ``disk`` for a guest, behind a server that notes what is written to it."""
    before, log = disk.with_suffix(".before"), disk.with_suffix(".log")
    subprocess.run(["cp", "--sparse=always", disk, before], check=True)
    with tempfile.TemporaryDirectory(prefix="nbd-") as directory:
        socket, listening = Path(directory, "socket"), Path(directory, "pid")
        server = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig=KILL", "nbdkit", "--foreground"),
                *("--unix", socket, "--pidfile", listening),
                *("python", _SERVER, f"file={disk}", f"log={log}"),
            ]
        )
        try:
            _wait_for(listening, server)
            yield (
                Disk(f"nbd+unix:///?socket={socket}", serial, format="raw", cache="writeback"),
                Recording(before, log),
            )
        finally:
            server.kill()
            server.wait()


def _wait_for(listening: Path, server: subprocess.Popen[bytes]) -> None:
    """nbdkit(1) writes its process's number there once it accepts connections."""
    deadline = time.monotonic() + _START_TIMEOUT
    while not listening.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("nbdkit did not start")
        time.sleep(0.01)
