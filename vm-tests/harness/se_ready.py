"""The SE-ready images of the tests: the builder makes them, also such as it would refuse."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import debian
from secex_firstboot.basic.context import Context
from secex_firstboot.builder import outputs, rules, sealing, volumes
from secex_firstboot.builder import recipe as builder
from secex_firstboot.builder.build import Build
from secex_firstboot.builder.config_key import ConfigKey
from secex_firstboot.builder.outputs import Outputs
from secex_firstboot.builder.recipe import Trust
from secex_firstboot.builder.sealing import Sealing
from secex_firstboot.builder.volumes import Content, Same
from secex_firstboot.ignition.signers import FOR_IMAGE
from secex_firstboot.roots.kinds import Plain

MIB = 1 << 20
SECTOR = 512
# Growing in the background would only make the emulated guest slow; it has its own tests. So would expolines,
# against attacks on processors that QEMU is not.
OPTIONS = (
    "root=/dev/mapper/root rw init_on_free=1 systemd.gpt_auto=0 fsck.mode=skip "
    "console=ttysclp0 ignition.platform.id=metal rd.neednet=1 secex.grow=off mitigations=off"
)


LEFT_OUT = ("dev", "proc", "run", "sys", "tmp")  # what is in them, as the builder leaves it out
MOUNT_POINTS = ("boot", "var", *LEFT_OUT)


@dataclass(frozen=True)
class Recipe:
    """What may differ between images. Sizes in MiB; ``behind`` is free space behind the hash trees."""

    se_size: int = 256
    behind: int = 64
    options: str = OPTIONS
    headroom: int = 64
    root_file_system: str | None = "xfs"  # None: zeros, under a valid hash tree
    root_block_size: int = 4096  # bytes; of ext4
    root_content: tuple[str, ...] | None = None  # of the tree, instead of everything
    root_added: tuple[tuple[str, bytes], ...] = ()  # path and content of files that are not in the tree
    root_at_least: int = 0  # the root file system
    boot_free: int = 8  # in the boot file system
    boot_room: int | None = None  # behind it; None: what first boot needs
    ref: str = ""  # of an ostree repository, instead of a tree
    signed: bool = False  # somebody has to have signed a config, for this image

    @property
    def boot_options(self) -> str:
        """The boot entry's: what the provisioned system starts with."""
        return f"{self.options} secex.headroom={self.headroom}"


# Too small to start a system, with files of every kind: quick to encrypt, listed at the end of first boot.
# Boot has less room than it needs, and grows over the start of root.
SMALL = Recipe(
    options=f"{OPTIONS} secex-test.print-manifest",
    headroom=16,
    root_file_system="ext4",
    root_content=("./bin", "./etc", "./lib", "./sbin", "./usr/lib/python3"),
    boot_room=24,
)

# Files for ``root_added``: an image with them is the same machine wherever it starts.
HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
ONE_MACHINES = ((HOST_KEY, b"-----BEGIN OPENSSH PRIVATE KEY-----\n"), ("etc/machine-id", b"0" * 32))


@dataclass(frozen=True)
class Signature:
    """Of a config. ``image``: fingerprint of the config key of the image that it is for; ``expires``: when,
    as gpg takes it."""

    by: ConfigKey
    image: str
    expires: str = "never"

    @property
    def words(self) -> list[str]:
        return [
            *("--sign", f"--local-user={self.by.fingerprint}", f"--default-sig-expire={self.expires}"),
            f"--sig-notation={FOR_IMAGE}={self.image}",
        ]


@dataclass(frozen=True)
class Made:
    """``public_key``: to which configs are encrypted; ``root_size``: bytes, as statvfs(3) has it."""

    public_key: Path
    root_size: int


def build(
    recipe: Recipe,
    tree: Path,
    image: Path,
    *,
    host_key_document: Path,
    root_certificate: bytes,
    signer: Path | None = None,
) -> Made:
    """Make the qcow2 ``image`` for the host of the document, with what belongs to it beside it.

    Its guests trust ``root_certificate`` for the documents of their hosts, and take configs of ``signer``, a
    public key, alone.
    """
    target = Outputs(image.with_suffix(""))
    with outputs.working(target) as work:
        root = work / "root.crt"
        root.write_bytes(root_certificate)
        what = _recipe(recipe, tree, host_key_document, root, signer)
        wanted = Sealing.of(Context(""), what, work)
        same = Same.of({}, time.time())
        with debian.deploying() if recipe.ref else nullcontext():
            unsealed = _Build(Context(""), what, same, work, recipe).unsealed()
        root_size = _usable(unsealed.pieces.partitions["root"])
        sealing.finish(Context(""), unsealed, wanted, target=target, same=same, work=work)
    return Made(target.public_key, root_size)


def _signed_by(signer: Path | None) -> dict[str, Any]:
    return {"config_signers": (signer,), "config_bound": True} if signer else {}


def _recipe(recipe: Recipe, tree: Path, document: Path, root: Path, signer: Path | None) -> builder.Recipe:
    sizes = builder.Sizes(
        se=recipe.se_size,
        boot_free=recipe.boot_free,
        boot_room=recipe.boot_room,
        root=recipe.root_at_least,
        behind=recipe.behind,
    )
    kind = {"xfs": "xfs", "ext4": "ext4", None: "ext4"}[recipe.root_file_system]
    return builder.make(
        "the tests",
        {
            "source": tree,
            "ref": recipe.ref,
            "options": recipe.boot_options if recipe.ref else "",
            "file_system": kind,
            "sizes": sizes,
            "host_keys": (document,),
            "trust": Trust(roots=(root,), verify=False),
        }
        | _signed_by(signer),
    )


@dataclass(frozen=True)
class _Build(Build):
    """With what a recipe of the tests says, whatever the builder would say of that."""

    wanted: Recipe

    def prepare(self, root: Path) -> str:
        if self.wanted.ref:
            return super().prepare(root)
        tree = self.recipe.source
        root.mkdir()
        parts = [*(self.wanted.root_content or ["."]), "./boot"]
        skip = [f"--exclude=./{name}/*" for name in LEFT_OUT]
        keep = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--one-file-system"]
        with subprocess.Popen(["tar", "-C", tree, *keep, *skip, "-c", *parts], stdout=subprocess.PIPE) as tar:
            subprocess.run(["tar", "-C", root, *keep, "-xp"], stdin=tar.stdout, check=True)
        if tar.returncode:
            raise RuntimeError(f"cannot copy {tree}")
        for name in MOUNT_POINTS:
            (root / name).mkdir(exist_ok=True)
        for path, content in self.wanted.root_added:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
        self._write_boot_entry(root / "boot")
        whole = Plain(tree, None)
        sealing.keep_loaders(whole, root / "boot")
        return rules.agent_version(whole)

    def _write_boot_entry(self, boot: Path) -> None:
        version = debian.kernel_version(self.recipe.source)
        entry = boot / "loader/entries/debian.conf"
        entry.parent.mkdir(parents=True)
        entry.write_text(
            f"title Debian\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initrd.img-{version}\n"
            f"options {self.wanted.boot_options}\n"
        )

    def make_file_system(self, name: str, directory: Path, content: Content, kind: str, size: int) -> None:
        if name == "root" and self.wanted.root_file_system is None:
            with self.data(name).open("wb") as stream:
                stream.truncate(size)
        elif name == "root" and self.wanted.root_block_size != volumes.BLOCK:
            volumes.make_ext4(
                self.context,
                self.data(name),
                directory,
                content,
                label=name,
                size=size,
                same=self.same,
                block_size=self.wanted.root_block_size,
            )
        else:
            super().make_file_system(name, directory, content, kind, size)


def _usable(root: Path) -> int:
    """Of the root file system, without the log of xfs: Linux, fs/xfs/libxfs/xfs_format.h, struct xfs_dsb."""
    with root.open("rb") as stream:
        head = stream.read(SECTOR)
    if head[:4] != b"XFSB":
        return root.stat().st_size
    block, log = (int.from_bytes(head[at : at + 4], "big") for at in (4, 96))
    return (int.from_bytes(head[8:16], "big") - log) * block


def encrypt_config(
    config: object, public_key: Path, output: Path, signature: Signature | None = None
) -> None:
    """``gpg --armor --sign --encrypt`` of an Ignition config, padded with zeros to whole 512-byte blocks."""
    with tempfile.TemporaryDirectory() as home:
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--trust-model=always"]
        if signature:
            subprocess.run([*gpg, "--import"], input=signature.by.private, check=True, capture_output=True)
            gpg += signature.words
        done = subprocess.run(
            [*gpg, "--armor", "--encrypt", f"--recipient-file={public_key}"],
            input=json.dumps(config).encode(),
            check=True,
            capture_output=True,
        )
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)
    output.write_bytes(done.stdout + bytes(-len(done.stdout) % SECTOR))


def config_key_of(ramdisk: bytes) -> bytes:
    """The private key in what first boot starts with."""
    begin, end = b"-----BEGIN PGP PRIVATE KEY BLOCK-----", b"-----END PGP PRIVATE KEY BLOCK-----"
    start = ramdisk.index(begin)
    return ramdisk[start : ramdisk.index(end, start)] + end + b"\n"


def opens(private_key: bytes, config_disk: Path) -> bool:
    """Whether the key decrypts the config."""
    with tempfile.TemporaryDirectory() as home:
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet"]
        subprocess.run([*gpg, "--import"], input=private_key, check=True, capture_output=True)
        message = config_disk.read_bytes().rstrip(b"\0")
        done = subprocess.run([*gpg, "--unwrap", "--decrypt"], input=message, capture_output=True)
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)
    return done.returncode == 0


@contextmanager
def mounted(raw: Path, partition: tuple[int, int], where: Path) -> Iterator[Path]:
    """A file system of a raw image, read only, that is where raw_disk.partition says."""
    where.mkdir(exist_ok=True)
    options = f"loop,ro,offset={partition[0]},sizelimit={partition[1]}"
    subprocess.run(["mount", "-o", options, raw, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)
