"""A first boot from beginning to end, as a user has it, and what can be seen of it from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zlib
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import commands, console, debian, pki, raw_disk, se_ready, site, ultravisor
from harness.guest import SERVICES_ADDRESS, Disk, Guest, Network
from harness.pki import Chain
from harness.se_ready import Recipe, Signature
from harness.site import Host
from secex_firstboot.builder import config_key
from secex_firstboot.contract.metadata import Metadata

MIB = 1 << 20
ROOT = "root.crt"
FIRST_BOOT_TIMEOUT = 2400.0  # seconds; bounds a guest that hangs, measures nothing
BOOT_TIMEOUT = 900.0


@dataclass(frozen=True)
class Owner:
    """Who owns the workload: hosts, the chain behind their documents, an SSH key.

    ``directory``: the site's."""

    directory: Path
    hosts: dict[str, Host]
    chain: Chain
    ssh_key: Path


@dataclass(frozen=True)
class Served:
    """A config, and what its URLs lead to on SERVICES_ADDRESS: path -> content."""

    config: dict[str, Any]
    http: dict[str, bytes] = field(default_factory=dict)
    https: dict[str, bytes] = field(default_factory=dict)
    tls: site.Tls | None = None


@dataclass(frozen=True)
class Site:
    """Everything a first boot needs, in one directory."""

    directory: Path
    tree: Path
    image: Path
    root_size: int  # bytes, as the image was made
    config_disk: Path
    public_key: Path  # to which configs for this image are encrypted
    identity: Path
    hosts: dict[str, Host]
    chain: Chain
    served: Served
    first_host: str = "universal"
    """On which first boot runs."""
    published: Path | None = None
    """What ``image`` was adopted from."""
    signature: Signature | None = None
    """Of the config, if the image wants one."""

    @property
    def disk(self) -> Path:
        return self.directory / "disk.qcow2"


def plain_config(owner: Owner) -> Served:
    """What ``secex config`` makes, but with one of the documents on a server; and what a user may wish."""
    hosts = [owner.hosts[name] for name in ("customer-1", "customer-2")]
    documents = [host.document for host in hosts]
    config = commands.config(documents, proof_of_hosts(owner.directory), owner.ssh_key)
    served = site.host_key_file(hosts[1], url=f"http://{SERVICES_ADDRESS}/customer-2.crt")
    config["storage"]["files"] = [
        served if file["path"] == served["path"] else file for file in config["storage"]["files"]
    ]
    site.add_wishes(config, owner.ssh_key.read_text().strip())
    return Served(config, {"/customer-2.crt": hosts[1].document.read_bytes()})


def trusted(directory: Path) -> Path:
    """Of a site: what its images trust, as a directory of certificates."""
    return directory / "image-certs"


def proof_of_hosts(directory: Path) -> list[Path]:
    """Of a site: what else proves the hosts' documents, certificates and revocation lists."""
    return sorted((directory / "certs").iterdir())


def _write_papers(directory: Path, chain: Chain) -> None:
    for name, content in (chain.certificates() | chain.crls()).items():
        path = (trusted(directory) if name == ROOT else directory / "certs") / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


@contextmanager
def make_site(
    directory: Path,
    recipe: Recipe = Recipe(),  # noqa: B008
    configure: Callable[[Owner], Served] = plain_config,
    chain: Chain | None = None,
    document: dict[str, Any] | None = None,
    *,
    adopted: bool = False,
    hybrid: bool = False,
) -> Iterator[tuple[Site, Network]]:
    """Build the image, encrypt the config, serve what it names inside the ``with`` block.

    ``document`` are options of the hosts' documents, see pki.Authority.certify. ``adopted``: somebody else
    has built and published the image, for the universal host; the owner adopts it for the customer's, and
    encrypts the config, by the commands for that; what first boot would refuse they do not take.
    ``hybrid``: all hosts have quantum-safe keys.
    """
    directory.mkdir(parents=True, exist_ok=True)
    chain = chain or pki.make_chain(datetime.now(UTC))
    hosts = {
        name: site.make_host(name, directory / "hostkeys", chain, hybrid=hybrid, **(document or {}))
        for name in site.HOSTS
    }
    _write_papers(directory, chain)
    root = (trusted(directory) / ROOT).read_bytes()
    tree = debian.repository() if recipe.ref else debian.build()
    image = directory / "se-ready.qcow2"
    identity = site.make_ssh_identity(directory)
    signer, signers_key = directory / "signer.asc", config_key.key_pair() if recipe.signed else None
    if signers_key:
        signer.write_bytes(signers_key.public)
    debian.say("making the SE-ready image")
    published = directory / "published.qcow2" if adopted else None
    built = se_ready.build(
        recipe,
        tree,
        published or image,
        host_key_document=hosts["universal"].document,
        root_certificate=root,
        signer=signer if signers_key and not published else None,
    )
    public_key = built.public_key
    if published:
        debian.say("adopting it for the customer's hosts")
        public_key = commands.adopt(
            published,
            image,
            documents=[hosts[name].document for name in ("customer-1", "customer-2")],
            roots=trusted(directory).iterdir(),
            proof=proof_of_hosts(directory),
            signer=signer if signers_key else None,
        )
    metadata = image.with_suffix(".json")
    image_key = Metadata.load(metadata).config_key
    signature = Signature(signers_key, image_key) if signers_key and image_key else None
    served = configure(Owner(directory, hosts, chain, identity.with_suffix(".pub")))
    config_disk = directory / "ignition_crypted.asc"
    if adopted:
        commands.encrypt(served.config, metadata, trusted(directory), config_disk, signature)
    else:
        se_ready.encrypt_config(served.config, public_key, config_disk, signature)
    made = Site(
        directory,
        tree,
        image,
        built.root_size,
        config_disk,
        public_key,
        identity,
        hosts,
        chain,
        served,
        first_host="customer-2" if adopted else "universal",
        published=published,
        signature=signature,
    )
    with services(served) as network:
        yield made, network


@contextmanager
def services(served: Served) -> Iterator[Network]:
    """A network on which the guest finds what the config's URLs lead to, inside the ``with`` block."""
    with ExitStack() as servers:
        ports = {80: servers.enter_context(site.web_server(served.http))}
        if served.tls:
            ports[443] = servers.enter_context(site.web_server(served.https, served.tls))
        yield Network(ports)


def enlarge(image: Path, disk: Path, mib: int) -> None:
    """A copy of ``image`` as a user makes it: ``qemu-img convert`` and ``qemu-img resize``."""
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", image, disk], check=True)
    subprocess.run(["qemu-img", "resize", "-q", disk, f"{mib}M"], check=True)


def start(
    where: Site,
    network: Network | None,
    *,
    host_keys: list[ultravisor.HostKey],
    log: Path,
    with_config: bool = True,
    memory_mib: int = 1024,
    cpus: int = 1,
    disk: Disk | None = None,
    others: Sequence[Disk] = (),
    on_line: Callable[[str], None] | None = None,
) -> Guest:
    disks = [disk or Disk(where.disk, "system"), *others]
    if with_config:
        disks.append(Disk(where.config_disk, "ignition_crypted", format="raw", read_only=True))
    return Guest(
        disks=disks,
        host_keys=host_keys,
        network=network,
        console_log=log,
        memory_mib=memory_mib,
        cpus=cpus,
        on_line=on_line,
    )


def wait_for_system(guest: Guest, timeout: float) -> None:
    """Wait until the system is up; raises GuestError at once if the guest gives up.

    Either line may be missing: under load the login prompt's device comes too late, and once a login prompt
    has the console, systemd says no more there.
    """
    found = guest.wait_for(f"{console.SYSTEM_IS_UP}|{console.GAVE_UP}", timeout)
    if re.fullmatch(console.GAVE_UP, found[0]):
        raise guest.error("gave up")


def power_off(guest: Guest, identity: Path) -> str:
    """In order; how the guest ended."""
    guest.ssh("systemctl --no-block poweroff", identity)
    return guest.wait(BOOT_TIMEOUT)


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


def integrity_errors(log: str) -> list[str]:
    """Lines of a console or a kernel log about sectors that could not be read."""
    return [line for line in log.splitlines() if re.search("AEAD ERROR|[Ii]ntegrity.*failed|I/O error", line)]


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


def read_sdboot(disk: Path, work: Path) -> bytes:
    """The ``sdboot`` file of a powered-off disk."""
    raw = raw_disk.convert(disk, work / "disk.raw")
    output = work / "sdboot"
    raw_disk.debugfs(raw, "se", f"dump /sdboot {output}")
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


def wait_for_manifest(guest: Guest) -> dict[str, dict[str, Any]]:
    """What the guest lists on its console at the end of first boot (secex-test.print-manifest)."""
    found = guest.wait_for(f"{console.MANIFEST_BEGINS}|{console.GAVE_UP}", FIRST_BOOT_TIMEOUT)
    if not re.fullmatch(console.MANIFEST_BEGINS, found[0]):
        raise guest.error("gave up")
    text = guest.wait_for(console.MANIFEST, BOOT_TIMEOUT)[1]
    return load_manifest(zlib.decompress(b64decode(text)).decode())


def manifest_of(tree: Path, only: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """The manifest of the built root, or a part of it, as the guest makes it of the provisioned one."""
    with tempfile.NamedTemporaryFile("r+") as output:
        script = debian.REPOSITORY / "vm-tests/dracut/manifest.py"
        subprocess.run([sys.executable, "-I", script, tree, output.name], check=True)
        whole = load_manifest(output.read())
    left_out = tuple(f"./{name}/" for name in se_ready.LEFT_OUT)
    return {
        path: entry
        for path, entry in whole.items()
        if not path.startswith(left_out) and (not only or _is_below(path, only))
    }


def manifest_in(guest: Guest, identity: Path, top: str = "/") -> dict[str, dict[str, Any]]:
    """The manifest of what the running guest has below ``top``."""
    script = debian.REPOSITORY / "vm-tests/dracut/manifest.py"
    guest.send(script.read_bytes(), "/run/manifest.py", identity)
    command = f"python3 -I /run/manifest.py {top} /run/manifest && cat /run/manifest"
    done = guest.ssh(command, identity, timeout=FIRST_BOOT_TIMEOUT)
    if done.returncode:
        raise AssertionError(f"cannot list the files of {top} in the guest: {done.stderr}")
    return load_manifest(done.stdout)


def load_manifest(text: str) -> dict[str, dict[str, Any]]:
    entries = (json.loads(line) for line in text.splitlines())
    return {entry.pop("path"): entry for entry in entries}


HAS_THE_TIME = "./etc/.ignition-result.json"  # and so differs between two first boots

# What may differ between the built root and the provisioned one, and whose work it is.
ADDED_BY_IGNITION = (
    "./etc/passwd", "./etc/shadow", "./etc/group", "./etc/gshadow", "./etc/subuid", "./etc/subgid",
    "./home/core", "./root/.ssh", "./etc/user-file", "./etc/systemd/system", "./etc/se-hostkeys",
    "./var/mail", "./var/data", "./etc/.updated", "./etc/.pwd.lock", HAS_THE_TIME,
)  # fmt: skip
ADDED_BY_THE_AGENT = ("./etc/luks", "./etc/crypttab", "./var/lib/secex-firstboot")
# Its boot entry; what it is sealed again with; mkfs.ext4.
ADDED_BY_THE_IMAGE = ("./boot/loader", "./boot/secex-boot-loaders", "./boot/lost+found")

_OWNERS = {"Ignition": ADDED_BY_IGNITION, "agent": ADDED_BY_THE_AGENT, "image": ADDED_BY_THE_IMAGE}


def differences(
    built: dict[str, dict[str, Any]],
    provisioned: dict[str, dict[str, Any]],
    only: Sequence[str] | None = None,
) -> dict[str, list[str]]:
    """Paths that differ, by whose they are: "Ignition", "agent", and "unexplained", which must stay empty.

    ``only``: look at nothing but these parts.
    """
    result: dict[str, list[str]] = {owner: [] for owner in (*_OWNERS, "unexplained")}
    for path in sorted(built.keys() | provisioned.keys()):
        if built.get(path) != provisioned.get(path) and (not only or _is_below(path, only)):
            result[_owner(path)].append(path)
    return result


def _owner(path: str) -> str:
    for owner, prefixes in _OWNERS.items():
        if any(_is_below(path, [prefix]) or path.startswith(f"{prefix}-") for prefix in prefixes):
            return owner
    return "unexplained"


def _is_below(path: str, parts: Sequence[str]) -> bool:
    return any(path == part or path.startswith(f"{part}/") for part in parts)
