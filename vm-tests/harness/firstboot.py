"""A first boot from beginning to end, as a user has it, and what can be seen of it from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import debian, se_image, site, ultravisor
from harness.guest import Disk, Guest, Network
from harness.se_image import Builder, Recipe
from harness.site import Host

MIB = 1 << 20
FIRST_BOOT_TIMEOUT = 2400.0  # seconds; bounds a guest that hangs, measures nothing
BOOT_TIMEOUT = 900.0
FAILED = r"Emergency Shell|emergency\.service|emergency mode"


@dataclass(frozen=True)
class Site:
    """Everything a first boot needs, in one directory."""

    directory: Path
    tree: Path
    image: Path
    root_size: int  # bytes, as the image was made
    config_disk: Path
    identity: Path
    hosts: dict[str, Host]

    @property
    def disk(self) -> Path:
        return self.directory / "disk.qcow2"


@contextmanager
def make_site(directory: Path, recipe: Recipe = Recipe()) -> Iterator[tuple[Site, Network]]:  # noqa: B008
    """Build the image, encrypt the config, serve a host key inside the ``with`` block."""
    directory.mkdir(parents=True, exist_ok=True)
    hosts = {name: site.make_host(name, directory / "hostkeys") for name in site.HOSTS}
    tree = debian.build()
    image = directory / "se-ready.qcow2"
    identity = site.make_ssh_identity(directory)
    ssh_key = identity.with_suffix(".pub").read_text().strip()
    with tempfile.TemporaryDirectory(prefix="se-image-", dir=directory) as work:
        private, public = se_image.make_key_pair(Path(work))
        debian.say("making the SE-ready image")
        builder = Builder(tree, Path(work), recipe)
        builder.build(image, host_key_document=hosts["universal"].document, private_key=private)
        public = public.rename(directory / public.name)
    with site.web_server({"/customer-2.crt": hosts["customer-2"].document.read_bytes()}) as port:
        config = site.ignition_config(
            ssh_key,
            [
                site.host_key_file(hosts["customer-1"]),
                site.host_key_file(hosts["customer-2"], url="http://10.0.2.100/customer-2.crt"),
            ],
        )
        config_disk = directory / "ignition_crypted.asc"
        se_image.encrypt_config(config, public, config_disk)
        yield (
            Site(directory, tree, image, builder.root_size, config_disk, identity, hosts),
            Network({80: port}),
        )


def enlarge(image: Path, disk: Path, gib: int) -> None:
    """A copy of ``image`` as a user makes it: ``qemu-img convert`` and ``qemu-img resize``."""
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", image, disk], check=True)
    subprocess.run(["qemu-img", "resize", "-q", disk, f"{gib}G"], check=True)


def start(
    where: Site,
    network: Network | None,
    *,
    host_keys: list[ultravisor.HostKey],
    log: Path,
    with_config: bool = True,
    memory_mib: int = 1024,
    disk: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Guest:
    disks = [Disk(disk or where.disk, "system")]
    if with_config:
        disks.append(Disk(where.config_disk, "ignition_crypted", format="raw"))
    return Guest(
        disks=disks,
        host_keys=host_keys,
        network=network,
        console_log=log,
        memory_mib=memory_mib,
        on_line=on_line,
    )


def wait_for_system(guest: Guest, timeout: float) -> None:
    """Wait until the system is up; raises GuestError at once if the guest ends in the emergency shell.

    Either line may be missing: under load the login prompt's device comes too late, and once a login prompt
    has the console, systemd says no more there.
    """
    found = guest.wait_for(rf"Reached target .*multi-user\.target|login: |{FAILED}", timeout)
    if re.fullmatch(FAILED, found[0]):
        raise guest.error("ended in the emergency shell")


@dataclass(frozen=True)
class System:
    """What the running guest shows of itself."""

    lsblk: dict[str, Any]
    command_line: str
    user: str
    file: str
    unit: str
    headers: dict[str, str]
    root_size: int


def look(guest: Guest, identity: Path) -> System:
    def shell(command: str, user: str = "root") -> str:
        done = guest.ssh(command, identity, timeout=300, user=user)
        if done.returncode:
            raise AssertionError(f"{command!r} in the guest: {done.stderr}")
        return done.stdout.strip()

    headers = {
        name: shell(f'systemctl cat systemd-cryptsetup@{name} | grep -o "header=[^, \']*" | sort -u')
        for name in ("boot", "root")
    }
    return System(
        lsblk=json.loads(shell("lsblk --json --bytes -o NAME,TYPE,SIZE,FSTYPE,LABEL,PARTLABEL,MOUNTPOINTS")),
        command_line=shell("cat /proc/cmdline"),
        user=shell("id -un", user="core"),
        file=shell("stat -c %a /etc/user-file; cat /etc/user-file"),
        unit=shell("systemctl is-active user.service; cat /run/user-unit"),
        headers=headers,
        root_size=int(shell("findmnt --noheadings --bytes --output SIZE /")),
    )


def chain(lsblk: dict[str, Any], partition: str) -> list[str]:
    """From a partition up: its name, then of each mapping its name and type, then the mount point."""
    for disk in lsblk["blockdevices"]:
        for part in disk.get("children", []):
            if part.get("partlabel") == partition:
                names, device = [partition], part
                while children := device.get("children"):
                    (device,) = children
                    names.append(f"{device['name']} ({device['type']})")
                return [*names, *[point for point in device["mountpoints"] if point]]
    return []


def partitions(lsblk: dict[str, Any]) -> list[str]:
    return [
        part["partlabel"]
        for disk in lsblk["blockdevices"]
        for part in disk.get("children", [])
        if part.get("partlabel")
    ]


def partition_start(raw: Path, name: str) -> int:
    """Where the partition with this GPT name begins in a raw image, in bytes."""
    done = subprocess.run(["sfdisk", "--json", raw], check=True, capture_output=True, text=True)
    table = json.loads(done.stdout)["partitiontable"]
    start = next(part["start"] for part in table["partitions"] if part.get("name") == name)
    return int(start) * int(table["sectorsize"])


def read_sdboot(disk: Path, work: Path) -> bytes:
    """The ``sdboot`` file of a powered-off disk."""
    raw = work / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, raw], check=True)
    start = partition_start(raw, "se")
    output = work / "sdboot"
    subprocess.run(
        ["debugfs", "-R", f"dump /sdboot {output}", f"{raw}?offset={start}"],
        check=True,
        capture_output=True,
    )
    raw.unlink()
    return output.read_bytes()


def overlay_files(ramdisk: bytes, initramfs: Path, work: Path) -> dict[str, bytes]:
    """What the image's ramdisk holds beyond the initramfs of /boot: path -> content."""
    base = initramfs.read_bytes()
    if not ramdisk.startswith(base):
        raise AssertionError("the ramdisk does not begin with the initramfs of /boot")
    where = work / "overlay"
    where.mkdir()
    subprocess.run(
        ["cpio", "--extract", "--make-directories", "--quiet", "--no-absolute-filenames"],
        cwd=where,
        input=ramdisk[len(base) + -len(base) % 4 :],
        check=True,
    )
    files = [Path(folder, name) for folder, _, names in os.walk(where) for name in names]
    return {f"/{path.relative_to(where)}": path.read_bytes() for path in files}


def manifest_of(tree: Path) -> dict[str, dict[str, Any]]:
    """The manifest of the built root, as the guest makes it of the provisioned one."""
    with tempfile.NamedTemporaryFile("r+") as output:
        script = debian.REPOSITORY / "vm-tests/dracut/manifest.py"
        subprocess.run([sys.executable, "-I", script, tree, output.name], check=True)
        return load_manifest(output.read())


def load_manifest(text: str) -> dict[str, dict[str, Any]]:
    entries = (json.loads(line) for line in text.splitlines())
    return {entry.pop("path"): entry for entry in entries}


# What may differ between the built root and the provisioned one, and whose work it is.
ADDED_BY_IGNITION = (
    "./etc/passwd", "./etc/shadow", "./etc/group", "./etc/gshadow", "./etc/subuid", "./etc/subgid",
    "./home/core", "./root/.ssh", "./etc/user-file", "./etc/systemd/system", "./etc/se-hostkeys",
    "./var/mail", "./etc/.updated", "./etc/.pwd.lock", "./etc/.ignition-result.json",
)  # fmt: skip
ADDED_BY_THE_AGENT = ("./etc/luks", "./etc/crypttab", "./var/lib/secex-firstboot")
ADDED_BY_THE_IMAGE = ("./boot/loader", "./boot/lost+found")  # its boot entry; mkfs.ext4

_OWNERS = {"Ignition": ADDED_BY_IGNITION, "agent": ADDED_BY_THE_AGENT, "image": ADDED_BY_THE_IMAGE}


def differences(
    built: dict[str, dict[str, Any]], provisioned: dict[str, dict[str, Any]]
) -> dict[str, list[str]]:
    """Paths that differ, by whose they are: "Ignition", "agent", and "unexplained", which must stay empty."""
    result: dict[str, list[str]] = {owner: [] for owner in (*_OWNERS, "unexplained")}
    for path in sorted(built.keys() | provisioned.keys()):
        if built.get(path) != provisioned.get(path):
            result[_owner(path)].append(path)
    return result


def _owner(path: str) -> str:
    for owner, prefixes in _OWNERS.items():
        if any(path == prefix or path.startswith((f"{prefix}/", f"{prefix}-")) for prefix in prefixes):
            return owner
    return "unexplained"
