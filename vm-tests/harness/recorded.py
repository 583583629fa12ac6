"""One first boot, recorded write by write, from which many guests start; made once for a test run."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from harness import firstboot, once, powercut, raw_disk, site, started
from harness.firstboot import Owner, Served
from harness.guest import SERVICES_ADDRESS, Disk, Guest, Network, Saved
from harness.powercut import Event, Loss, Recording
from harness.se_ready import SMALL
from harness.site import Host
from harness.started import Started

ROOT = SMALL.root_content or ()
PARTS = (*ROOT, "./boot")
USER_FILE = "./etc/user-file"
MERGED = "/more.ign"
_DISK_SIZE = 1 << 30

Span = tuple[int, int]
Marks = dict[str, list[int]]  # the sizes of the log when the agent said something of a step
Manifest = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Markers:
    """Words of the config that only the guest, and the server they are for, may see."""

    file: str = field(default_factory=lambda: f"marker-in-a-file-{secrets.token_hex(16)}")
    query: str = field(default_factory=lambda: f"marker-in-a-query-{secrets.token_hex(16)}")
    header: str = field(default_factory=lambda: f"marker-in-a-header-{secrets.token_hex(16)}")

    def config(self, owner: Owner) -> Served:
        """One document inline, one from a server over https that wants to see two markers; and from there a
        config that is merged, in which a file is appended to: once, however often first boot starts.
        """
        tls = site.make_tls(SERVICES_ADDRESS)
        path = f"/customer-2.crt?token={self.query}"
        fetched = site.host_key_file(owner.hosts["customer-2"], url=f"https://{SERVICES_ADDRESS}{path}")
        fetched["contents"]["httpHeaders"] = [{"name": "Authorization", "value": f"Bearer {self.header}"}]
        certificates = owner.chain.certificates() | owner.chain.crls()
        proof = {name: content for name, content in certificates.items() if name != "root.crt"}
        part = {"source": site.data_url(b"\nappended\n")}
        user_file = {
            "path": USER_FILE[1:],
            "contents": {"source": site.data_url(self.file.encode())},
            "append": [part],
        }
        more = {"storage": {"files": [{"path": USER_FILE[1:], "append": [part]}]}}
        config = {
            "ignition": {
                "version": "3.3.0",
                "config": {"merge": [{"source": f"https://{SERVICES_ADDRESS}{MERGED}"}]},
                "security": {"tls": {"certificateAuthorities": [{"source": site.data_url(tls.authority)}]}},
            },
            "storage": {
                "files": [
                    user_file,
                    site.host_key_file(owner.hosts["customer-1"]),
                    fetched,
                    *site.certificate_files(proof),
                ]
            },
        }
        https = {path: owner.hosts["customer-2"].document.read_bytes(), MERGED: _config(more)}
        return Served(config, https=https, tls=tls)


def _config(sections: dict[str, Any]) -> bytes:
    return json.dumps({"ignition": {"version": "3.3.0"}} | sections).encode()


@dataclass(frozen=True)
class Machine:
    """A host that can open any sdboot of this site, and the user's config."""

    directory: Path
    hosts: dict[str, Host]
    config_disk: Path

    def start(
        self,
        disk: Disk,
        log: Path,
        network: Network,
        *,
        saved: Saved | None = None,
        config_disk: Path | None = None,
        others: Sequence[Disk] = (),
        **options: Any,
    ) -> Guest:
        """Beside the console's ``log`` comes what goes over the network."""
        return Guest(
            disks=[
                disk,
                Disk(config_disk or self.config_disk, "ignition_crypted", format="raw", read_only=True),
                *others,
            ],
            host_keys=[self.hosts[name].key for name in ("universal", "customer-1")],
            network=replace(network, capture=log.with_suffix(".pcap")),
            console_log=log,
            memory_mib=1024,
            saved=saved,
            **options,
        )


@dataclass(frozen=True)
class FirstBoot:
    """``spans`` are the events of each step: from, to. ``provisioned`` lists every file it ended with.
    ``kept`` are guests just before the agent starts: of the image, of the personalised one, with root grown.
    """

    where: Machine
    public_key: Path
    served: Served
    markers: Markers
    recording: Recording
    spans: dict[str, Span]
    provisioned: Manifest
    kept: list[Started]

    @cached_property
    def events(self) -> list[Event]:
        return self.recording.events()

    @property
    def log(self) -> Path:
        return self.where.directory / "first-boot.log"

    @property
    def served_later(self) -> Served:
        """Another config to merge than the one that first boot, behind its commit point, has merged."""
        other = _config({"storage": {"files": [{"path": "/etc/other-file"}]}})
        return replace(self.served, https=self.served.https | {MERGED: other})

    def switch(self, step: str) -> int:
        """How many events there are when the step has just written the boot record."""
        begin, end = self.spans[step]
        writes = [at for at in range(begin, end) if not self.events[at].flush]
        return max(at for at in writes if self.events[at].position == 0) + 1

    def start(self, file: Path, log: Path, network: Network, disk: Disk | None = None) -> Guest:
        """On the raw ``file``, or the disk that it is behind."""
        disk = disk or Disk(file, "system", format="raw")
        return self.where.start(disk, log, network, saved=started.find(file, self.kept))


def first_boot(factory: pytest.TempPathFactory) -> FirstBoot:
    """The record of this test run."""
    return once.made(factory, "recorded", _record)


def _record(directory: Path) -> FirstBoot:
    markers = Markers()
    disk = directory / "disk.raw"
    with firstboot.make_site(directory, SMALL, configure=markers.config) as (made, network):
        where = Machine(directory, made.hosts, made.config_disk)
        raw_disk.make(made.image, disk, _DISK_SIZE)
        with powercut.recorded(disk) as (served, recording):
            starting = where.start(served, directory / "image.log", network)
            kept = [started.keep(disk, starting, directory / "image")]
            marks, provisioned = _run(where, served, network, recording, kept[0])
        built = firstboot.manifest_of(made.tree, PARTS)
        assert firstboot.differences(built, provisioned, only=PARTS)["unexplained"] == []
        spans = spans_of(recording, marks)
        for step in ("personalise", "partition"):
            disk = directory / f"{step}.raw"
            recording.cut(recording.events()[: spans[step][1]], disk, loss=Loss.NOTHING, seed=0)
            starting = where.start(
                Disk(disk, "system", format="raw"), directory / f"after-{step}.log", network
            )
            kept.append(started.keep(disk, starting, directory / step))
    return FirstBoot(
        where=where,
        public_key=made.public_key,
        served=made.served,
        markers=markers,
        recording=recording,
        spans=spans,
        provisioned=provisioned,
        kept=kept,
    )


def _run(
    where: Machine, disk: Disk, network: Network, recording: Recording, image: Started
) -> tuple[Marks, Manifest]:
    """What its lines mark, and what the guest ended with."""
    marks: Marks = {}
    log = where.directory / "first-boot.log"
    with where.start(disk, log, network, saved=image.saved, on_line=marking(recording, marks)) as guest:
        provisioned = firstboot.wait_for_manifest(guest)
        guest.kill()
    return marks, provisioned


def marking(recording: Recording, marks: Marks) -> Callable[[str], None]:
    """For a guest's ``on_line``: note in ``marks`` what the agent says of its steps."""

    def mark(line: str) -> None:
        if found := re.search(r"secex-firstboot\[\d+\]: \[\d+/\d+\] ([a-z ]+): ", line):
            marks.setdefault(found[1], []).append(recording.log.stat().st_size)

    return mark


def spans_of(recording: Recording, marks: Marks) -> dict[str, Span]:
    """Between encrypt root and files, systemd mounts and Ignition writes: that is called mount."""
    events = recording.events()
    spans = {
        step: (recording.event_at(events, sizes[0]), recording.event_at(events, sizes[-1]))
        for step, sizes in marks.items()
    }
    return spans | {"mount": (spans["encrypt root"][1], spans["files"][0])}
