"""Making an SE-ready image of a root tree: partitions, dm-verity, key pair, sdboot, boot record.

Everything is done with ordinary tools on loop devices; only zipl is s390x's, and runs in the tree itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import debian
from secex_firstboot.contract.partitions import HASH_TREES, NUMBERS
from secex_firstboot.hostkeys import document
from secex_firstboot.sdboot import boot_record, image
from secex_firstboot.sdboot.initramfs import Entry, File, write_archive
from secex_firstboot.storage.encrypted import required_device_size

MIB = 1 << 20
SECTOR = 512
# Growing in the background would only make the emulated guest slow; it has its own tests. So would expolines,
# against attacks on processors that QEMU is not.
OPTIONS = (
    "root=/dev/mapper/root rw init_on_free=1 systemd.gpt_auto=0 fsck.mode=skip "
    "console=ttysclp0 ignition.platform.id=metal rd.neednet=1 secex.grow=off mitigations=off"
)


MOUNT_POINTS = ("boot", "dev", "proc", "run", "sys", "tmp", "var")


@dataclass(frozen=True)
class Recipe:
    """What may differ between images. Sizes in MiB; ``slack`` is the free space behind the hash trees."""

    se_size: int = 256
    slack: int = 64
    options: str = OPTIONS
    headroom: int = 64
    root_file_system: str | None = "xfs"  # None: zeros, under a valid hash tree
    root_block_size: int = 4096  # bytes; of ext4
    root_content: tuple[str, ...] | None = None  # of the tree, instead of everything
    root_added: tuple[tuple[str, bytes], ...] = ()  # path and content of files that are not in the tree
    root_at_least: int = 0  # the root file system
    boot_room: int = 8  # in the boot file system
    boot_slack: int | None = None  # room for encrypting in partition boot; None: as much as is needed


# Too small to start a system, with files of every kind: quick to encrypt, listed at the end of first boot.
SMALL = Recipe(
    options=f"{OPTIONS} secex-test.print-manifest",
    headroom=16,
    root_file_system="ext4",
    root_content=("./bin", "./etc", "./lib", "./sbin", "./usr/lib/python3"),
)

# Files for ``root_added``: an image with them is the same machine wherever it starts.
HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
ONE_MACHINES = ((HOST_KEY, b"-----BEGIN OPENSSH PRIVATE KEY-----\n"), ("etc/machine-id", b"0" * 32))


@dataclass(frozen=True)
class Region:
    """A partition of the image being made, in bytes."""

    start: int
    size: int


class Builder:
    """Makes one image; ``work`` is a directory for what is needed on the way."""

    def __init__(self, tree: Path, work: Path, recipe: Recipe) -> None:
        self.tree, self.work, self.recipe = tree, work, recipe
        self.raw = work / "disk.raw"
        self.root_size = 0  # of the file system, in bytes, as statvfs(3) has it

    def build(
        self, output: Path, *, host_key_document: Path, private_key: Path, root_certificate: bytes
    ) -> None:
        """Write the qcow2 ``output`` for the host of ``host_key_document``.

        ``private_key`` is the GPG key that users' configs will be encrypted to, ``root_certificate`` whom
        the image trusts for the documents of their hosts.
        """
        sizes = self._file_system_sizes()
        self.regions = self._partition(sizes)
        # One at a time: losetup --find may give two processes the same device, and zipl needs the tree.
        with debian.locked("image"):
            hashes = {
                "boot": self._make_volume("boot", "ext4", sizes["boot"], 4096),
                "root": self._make_volume(
                    "root", self.recipe.root_file_system, sizes["root"], self.recipe.root_block_size
                ),
            }
            added: dict[str, Entry] = {
                "/usr/lib/coreos/ignition.asc": File(private_key.read_bytes()),
                "/usr/lib/secex-firstboot/certs/root.crt": File(root_certificate),
            }
            self._make_bootable(host_key_document, added, hashes)
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", self.raw, output], check=True)
        self.raw.unlink()

    @property
    def options(self) -> str:
        """The boot entry's: what the provisioned system starts with."""
        return f"{self.recipe.options} secex.headroom={self.recipe.headroom}"

    def _write_boot_entry(self, boot: Path) -> None:
        version = debian.kernel_version(self.tree)
        entry = boot / "loader/entries/debian.conf"
        entry.parent.mkdir(parents=True)
        entry.write_text(
            f"title Debian\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initrd.img-{version}\n"
            f"options {self.options}\n"
        )

    def _file_system_sizes(self) -> dict[str, int]:
        boot = _tree_size(self.tree / "boot")
        content = self.recipe.root_content
        root = (
            sum(_tree_size(self.tree / part) for part in content) if content else _tree_size(self.tree) - boot
        )
        log, least = (64 * MIB, 300 * MIB) if self.recipe.root_file_system == "xfs" else (8 * MIB, 0)
        return {
            "boot": _mib(boot * 1.05 + self.recipe.boot_room * MIB),
            "root": max(least, self.recipe.root_at_least * MIB, _mib(root * 1.15 + log + 8 * MIB)),
        }

    def _partition(self, sizes: dict[str, int]) -> dict[str, Region]:
        boot_slack = self.recipe.boot_slack
        boot = _mib(required_device_size(sizes["boot"], 4096)) if boot_slack is None else sizes["boot"]
        lengths = {
            "se": self.recipe.se_size * MIB,
            "boot": boot + (boot_slack or 0) * MIB,
            "root": sizes["root"],
            "boothash": _mib(sizes["boot"] / 100 + MIB),
            "roothash": _mib(sizes["root"] / 100 + MIB),
        }
        regions, at, script = {}, MIB, ["label: gpt"]
        for name, size in lengths.items():
            regions[name] = Region(at, size)
            script.append(f"{NUMBERS[name]}: start={at // SECTOR}, size={size // SECTOR}, name={name}")
            at += size
        with self.raw.open("wb") as stream:
            stream.truncate(at + (self.recipe.slack + 1) * MIB)
        subprocess.run(["sfdisk", "--quiet", self.raw], input="\n".join(script), text=True, check=True)
        return regions

    def _make_volume(self, name: str, type: str | None, size: int, block_size: int) -> str:
        """Fill one file system and make its hash tree; returns the root hash."""
        with self._loop(name) as device:
            if type == "xfs":
                options = ["-q", "-s", "size=4096", "-d", f"size={size}", "-L", name]
            else:
                options = ["-q", "-b", str(block_size), "-L", name]
            blocks = [str(size // block_size)] if type == "ext4" else []
            if type:
                subprocess.run([f"mkfs.{type}", *options, device, *blocks], check=True)
                self._fill(name, device)
            with self._loop(HASH_TREES[name]) as tree:
                made = subprocess.run(
                    ["veritysetup", "format", f"--data-blocks={size // 4096}", device, tree],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
        return made.split("Root hash:")[1].split()[0]

    def _fill(self, name: str, device: Path) -> None:
        with mounted(device, self.work / "mnt") as where:
            if name == "boot":
                _copy(self.tree / "boot", where)
                self._write_boot_entry(where)
            else:
                _copy(self.tree, where, exclude="./boot/*", only=self.recipe.root_content)
                for path, content in self.recipe.root_added:
                    (where / path).parent.mkdir(parents=True, exist_ok=True)
                    (where / path).write_bytes(content)
                for point in MOUNT_POINTS:
                    (where / point).mkdir(exist_ok=True)
                status = os.statvfs(where)
                self.root_size = status.f_blocks * status.f_frsize

    def _make_bootable(
        self, host_key_document: Path, added: dict[str, Entry], hashes: dict[str, str]
    ) -> None:
        overlay = self.work / "overlay.cpio"
        write_archive(overlay, added)
        verity = [f"bootfs.roothash={hashes['boot']}", f"rootfs.roothash={hashes['root']}"]
        with self._loop("se") as device:
            subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-L", "se", device], check=True)
            with mounted(device, self.work / "mnt") as se:
                with (se / boot_record.NEW_IMAGE).open("wb") as stream:
                    image.build(
                        stream,
                        kernel=debian.kernel(self.tree),
                        ramdisk=[debian.initramfs(self.tree), overlay],
                        command_line=" ".join([self.options, "ignition.firstboot", *verity]),
                        host_keys=[document.parse("host key", host_key_document.read_bytes()).public_key],
                        boot_loaders=image.BootLoaders(
                            self.tree / "usr/share/s390-tools/pvimg/stage3a.bin",
                            self.tree / "usr/share/s390-tools/pvimg/stage3b_reloc.bin",
                        ),
                    )
                (se / boot_record.NEW_IMAGE).rename(se / boot_record.IMAGE)
                self._zipl(se)

    def _zipl(self, se: Path) -> None:
        debian.register_binfmt()
        with attached(self.raw) as disk:
            zipl = [
                *("zipl", "--target=/mnt", f"--image=/mnt/{boot_record.IMAGE}"),
                *(f"--targetbase={disk}", "--targettype=SCSI", f"--targetblocksize={SECTOR}"),
                f"--targetoffset={self.regions['se'].start // SECTOR}",
            ]
            command = debian.in_chroot(self.tree, *zipl, mounts={se: "mnt"})
            subprocess.run(command, check=True, capture_output=True)

    @contextmanager
    def _loop(self, name: str) -> Iterator[Path]:
        region = self.regions[name]
        with attached(self.raw, offset=region.start, size=region.size) as device:
            yield device


def make_key_pair(directory: Path) -> tuple[Path, Path]:
    """A fresh GPG pair without passphrase: (private key, public key), armored, in ``directory``."""
    private, public = directory / "ignition.asc", directory / "ignition.pub.asc"
    with tempfile.TemporaryDirectory() as home:
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--yes", "--armor"]
        subprocess.run(
            [*gpg, "--passphrase=", "--quick-generate-key", "SE-ready image", "default", "default", "never"],
            check=True,
            capture_output=True,
        )
        subprocess.run([*gpg, f"--output={private}", "--export-secret-keys"], check=True)
        subprocess.run([*gpg, f"--output={public}", "--export"], check=True)
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)
    return private, public


def encrypt_config(config: object, public_key: Path, output: Path) -> None:
    """``gpg --armor --encrypt`` of an Ignition config, padded with zeros to whole 512-byte blocks."""
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [
                *("gpg", "--homedir", home, "--batch", "--quiet", "--trust-model=always"),
                *("--armor", "--encrypt", f"--recipient-file={public_key}"),
            ],
            input=json.dumps(config).encode(),
            check=True,
            capture_output=True,
        )
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)
    output.write_bytes(done.stdout + bytes(-len(done.stdout) % SECTOR))


def _tree_size(tree: Path) -> int:
    done = subprocess.run(
        ["du", "--summarize", "--one-file-system", "--block-size=1", tree],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout.split()[0])


def _copy(source: Path, target: Path, exclude: str = "", only: Sequence[str] | None = None) -> None:
    """Copy a tree with everything that belongs to its files: owners, modes, times, links, attributes."""
    options = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--one-file-system"]
    skip = [f"--exclude={exclude}"] if exclude else []
    with subprocess.Popen(
        ["tar", "-C", source, *options, *skip, "-cf", "-", *(only or ["."])], stdout=subprocess.PIPE
    ) as reader:
        subprocess.run(["tar", "-C", target, *options, "-xpf", "-"], stdin=reader.stdout, check=True)
    if reader.returncode:
        raise RuntimeError(f"cannot copy {source}")


@contextmanager
def attached(file: Path, *, offset: int = 0, size: int = 0) -> Iterator[Path]:
    limits = [f"--offset={offset}", f"--sizelimit={size}"] if size else []
    done = subprocess.run(
        ["losetup", "--find", "--show", *limits, file], check=True, capture_output=True, text=True
    )
    device = Path(done.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def mounted(device: Path, where: Path, *, read_only: bool = False) -> Iterator[Path]:
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", *(["--read-only"] if read_only else []), device, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


def _mib(size: float) -> int:
    return -(-int(size) // MIB) * MIB
