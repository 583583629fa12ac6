"""A LUKS volume of the owner's on a second disk (storage.luks), and a host that writes to its header."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import firstboot, site
from harness.firstboot import Owner, Served
from harness.guest import Disk, Guest

NAME = "my-data"  # with a dash, which systemd escapes
SERIAL, WHERE, CONTENT = "data", "/var/data", "of the owner's volume"
WRITTEN_LATER = "written with the host's header on the disk"
_SIZE = 64 << 20
_DEVICE, _MAPPING = f"/dev/disk/by-id/virtio-{SERIAL}", f"/dev/mapper/{NAME}"
_MOUNT = f"[Mount]\nWhat={_MAPPING}\nWhere={WHERE}\nType=ext4\n\n[Install]\nRequiredBy=local-fs.target\n"
_UNIT = r"'systemd-cryptsetup@my\x2ddata.service'"


def disk(directory: Path) -> Disk:
    path = directory / "data.raw"
    if not path.exists():
        with path.open("wb") as stream:
            stream.truncate(_SIZE)
    return Disk(path, SERIAL, format="raw")


def configure(owner: Owner) -> Served:
    """A key of Ignition's making, a file system, a file in it."""
    served = firstboot.plain_config(owner)
    config: dict[str, Any] = served.config
    content = site.data_url(CONTENT.encode())
    config["storage"] |= {
        "luks": [{"name": NAME, "device": _DEVICE, "wipeVolume": True}],
        "filesystems": [{"device": _MAPPING, "format": "ext4", "path": WHERE, "wipeFilesystem": True}],
        "files": [*config["storage"]["files"], {"path": f"{WHERE}/file", "contents": {"source": content}}],
    }
    config["systemd"]["units"].append({"name": "var-data.mount", "enabled": True, "contents": _MOUNT})
    return replace(served, config=config)


def look(guest: Guest, identity: Path) -> dict[str, Any]:
    """At a later boot, on such a disk; then with a foreign header on it, and with another mode on record."""

    def shell(command: str) -> str:
        return guest.ssh(command, identity).stdout.strip()

    def restarted() -> str:
        return shell(
            f"systemctl stop var-data.mount {_UNIT}; systemctl start {_UNIT}; systemctl is-active {_UNIT};"
            f" test -e {_MAPPING} && echo open"
        )

    dump = f"cryptsetup luksDump {_DEVICE} | grep -m 1 'cipher:'"
    opens = f"cryptsetup open --test-passphrase --key-file /etc/luks/{NAME} {_DEVICE} && echo yes"
    found: dict[str, Any] = {
        "cipher on the disk": shell(dump).split()[-1],
        "opens by itself": shell(opens),
        "cipher": shell(f"dmsetup table {NAME}").split()[3],
        "content": shell(f"cat {WHERE}/file"),
        "unit": shell(f'systemctl cat {_UNIT} | grep -o "luks,headless=yes,header=[^\']*"'),
        "secrets": shell(f"stat -c '%a' /etc/luks/{NAME} /etc/luks/{NAME}.header"),
    }
    shell(f"echo -n {WRITTEN_LATER!r} > {WHERE}/later; sync {WHERE}/later")
    shell(f"systemctl stop var-data.mount {_UNIT}")
    uuid = shell(f"cryptsetup luksUUID {_DEVICE}")
    foreign = "--batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file -"
    shell(f"echo x | cryptsetup luksFormat {foreign} --uuid {uuid} {_DEVICE}; udevadm settle")
    found["with a foreign header"] = [
        restarted(),
        shell(f"systemctl start var-data.mount; cat {WHERE}/later"),
    ]
    shell(f"sed -i '/^# secex-firstboot {NAME}: /s/xts/cbc/' /etc/crypttab")
    found["with another mode on record"] = restarted()
    return found


def holds(path: Path, text: str) -> bool:
    """Whether the host finds it on the disk."""
    return subprocess.run(["grep", "--quiet", "--fixed-strings", "--text", text, path]).returncode == 0
