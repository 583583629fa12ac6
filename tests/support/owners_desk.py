"""A workstation of somebody who owns a guest: documents, what proves them, an image's metadata and key."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from harness import pki

from secex_firstboot.builder import config_key
from secex_firstboot.builder.config_key import ConfigKey
from secex_firstboot.cli import secex
from secex_firstboot.contract.metadata import BootEntry, HostKey, Metadata, Partition, Volume
from secex_firstboot.contract.partitions import LAYOUT, VOLUMES

MIB = 1 << 20
HASH = "0123456789abcdef" * 4
CHAIN = pki.make_chain(datetime.now(UTC))
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEq0 ada@example.com"


@dataclass(frozen=True)
class Output:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Desk:
    """Everything lies in ``place``, by the names that ``file`` knows."""

    place: Path
    capture: pytest.CaptureFixture[str]

    def secex(self, *words: str | Path) -> Output:
        self.capture.readouterr()
        try:
            code = secex.main([str(word) for word in words])
        except SystemExit as stopped:
            code = int(str(stopped.code))
        printed = self.capture.readouterr()
        return Output(code, printed.out, printed.err)

    def file(self, name: str, content: bytes | str = b"") -> Path:
        """With ``content``, or as it is already."""
        path = self.place / name
        if content:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def certificates(self) -> list[str]:
        """The directory that has what the image trusts, as an option."""
        directory = self.place / "image-certs"
        directory.mkdir(exist_ok=True)
        (directory / "root.crt").write_bytes(CHAIN.certificates()["root.crt"])
        return [f"--certificates={directory}"]

    def material(self) -> list[str]:
        """A document, what proves it, and an SSH key: options of secex config."""
        document = self.file("host-a.crt", pki.pem(CHAIN.document(pki.host_key("a").public_key())))
        words = [f"--hostkey={document}", f"--ssh-key={self.file('id.pub', SSH_KEY)}"]
        for name, content in {**CHAIN.certificates(), **CHAIN.crls()}.items():
            if name != "root.crt":
                words.append(f"--{'crl' if name.endswith('.crl') else 'cert'}={self.file(name, content)}")
        return words

    def config(self) -> Path:
        """One that secex config has made."""
        path = self.file("config.ign")
        path.unlink(missing_ok=True)
        assert self.secex("config", *self.material(), "--output", path).code == 0
        return path

    @property
    def key(self) -> ConfigKey:
        """The image's."""
        return _key()

    def metadata(self, **changes: Any) -> Path:
        """linux.json, and linux.pub.asc beside it."""
        self.file("linux.pub.asc", self.key.public)
        path = self.file("linux.json")
        metadata(**{"config_key": self.key.fingerprint, **changes}).write(path)
        return path

    def program(self, name: str, script: str) -> None:
        """A stand-in in PATH, see ``stand_ins``."""
        path = self.place / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def stand_ins(self, monkeypatch: pytest.MonkeyPatch, *real: str) -> None:
        """PATH has these real programs, and no other."""
        directory = self.place / "bin"
        directory.mkdir()
        for name in real:
            found = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout
            (directory / name).symlink_to(found.strip())
        monkeypatch.setenv("PATH", str(directory))


@cache
def _key() -> ConfigKey:
    return config_key.key_pair()


def metadata(**changes: Any) -> Metadata:
    at, partitions = MIB, []
    for each in LAYOUT:
        partitions.append(Partition(number=each.number, name=each.name, start=at, size=64 * MIB))
        at += 64 * MIB
    values: dict[str, Any] = {
        "disk_size": at + MIB,
        "partitions": tuple(partitions),
        "volumes": {name: Volume(file_system="ext4", size=32 * MIB, root_hash=HASH) for name in VOLUMES},
        "boot_entry": BootEntry(
            release="6.1", kernel=HASH, initramfs=(HASH,), options="root=/dev/mapper/root"
        ),
        "agent": "0.1.0",
        "host_keys": (HostKey(document="first.crt", hash=HASH),),
    }
    return Metadata(**values | changes)
