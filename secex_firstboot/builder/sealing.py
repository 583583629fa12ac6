"""The last part of a build, which may be done elsewhere, or again: sdboot, and what starts it.

It is made of what the image has on ``boot``: kernel, initramfs, boot entry, and IBM's boot loaders, which a
build puts beside them. So whoever seals needs no tree, no s390x and no root.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Self

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import is_regular, open_private, secret_directory
from secex_firstboot.builder import config_signers, initramfs_files, outputs, volumes
from secex_firstboot.builder.config_key import ConfigKey, key_pair
from secex_firstboot.builder.layout import SE_FILE_SYSTEM, SECTOR, Region
from secex_firstboot.builder.outputs import Outputs, Pieces
from secex_firstboot.builder.recipe import Recipe, Trust
from secex_firstboot.builder.tree import make_anew
from secex_firstboot.builder.volumes import BLOCK, Content, Same
from secex_firstboot.contract import parameters, paths
from secex_firstboot.contract.metadata import HostKey, Metadata
from secex_firstboot.hostkeys import certificates, document, proof
from secex_firstboot.hostkeys.document import Document
from secex_firstboot.ignition.signers import Signers
from secex_firstboot.roots.kinds import Root
from secex_firstboot.sdboot import boot_entry, boot_map, boot_record, contents, image
from secex_firstboot.sdboot.boot_entry import BootEntry
from secex_firstboot.sdboot.boot_map import Extent
from secex_firstboot.sdboot.initramfs import Entry, File, write_archive

LOADERS = Path("secex-boot-loaders")  # on boot
_STAGE3A, _STAGE3B, _STAGE3 = "stage3a.bin", "stage3b_reloc.bin", "stage3.bin"
_FILLER = b"\xff"  # mke2fs makes holes of zeros
_FEW = 64  # extents of a file on a new file system
_FOR_ALL_TO_READ = 0o644
_LOADER_LIMIT = 64 << 10  # bytes
_OVERHEAD = 1 << 20  # of a boot image: boot loaders, header, what is private
_HEEDS_SIGNERS = "/secex_firstboot/ignition/signers.pyc"  # by dracut/module-setup.sh


_IBMS = tuple(f"usr/share/s390-tools/{name}" for name in ("pvimg", "genprotimg"))
LOADERS_AT = {
    _STAGE3A: _IBMS,
    _STAGE3B: _IBMS,
    _STAGE3: ("usr/lib/s390-tools",),
}
"""Directories of a tree that may have them."""
LOADERS_ON_BOOT = tuple(f"{LOADERS}/{name}" for name in LOADERS_AT)


def keep_loaders(root: Root, boot: Path) -> None:
    """Put IBM's boot loaders from the tree's s390-tools onto ``boot``. Raises Refusal if there are none."""
    target = boot / LOADERS
    make_anew(target)
    for name, directories in LOADERS_AT.items():
        found = next(
            (path for each in directories if is_regular(path := root.place(PurePosixPath("/", each, name)))),
            None,
        )
        if not found:
            raise Refusal(
                "SX-BUILD-30",
                f"the tree has no {name} in /{directories[0]}",
                "install s390-tools 2.36 or newer in the tree",
            )
        shutil.copyfile(found, target / name)


@dataclass(frozen=True)
class Sealing:
    """For whom an image is, and with what.

    ``roots``: certificates that its guests trust, for their owners' documents, PEM. What is kept lies beside
    the image, for its maker alone.
    """

    documents: Sequence[Document]
    roots: Sequence[bytes]
    key: ConfigKey | None = None
    """None: a fresh one."""
    signers: Signers | None = None
    """None: a config may be anybody's."""
    keep_header: bool = False
    keep_cck: bool = False

    @classmethod
    def of(cls, context: Context, recipe: Recipe, scratch: Path) -> Self:
        """The documents are proven. Raises Refusal."""
        return cls(
            _proven(context, recipe.host_keys, recipe.trust, scratch),
            [
                certificates.to_pem(certificates.parse(path.name, certificates.read_file(path)))
                for path in recipe.trust.roots
            ],
            key_pair(recipe.config_key) if recipe.config_key else None,
            config_signers.given(recipe.config_signers, bound=recipe.config_bound),
            recipe.keep_header,
            recipe.keep_cck,
        )


@dataclass(frozen=True)
class Unsealed:
    """An image with nothing in partition se, and a directory with what boot has."""

    pieces: Pieces
    boot: Path
    metadata: Metadata


def finish(
    context: Context, unsealed: Unsealed, wanted: Sealing, *, target: Outputs, same: Same, work: Path
) -> Metadata:
    """Seal the image, and put it in place."""
    key = wanted.key or key_pair()
    region = unsealed.pieces.layout.regions["se"]
    entry = boot_entry.find(unsealed.boot)
    check_room(entry, region.size)
    if wanted.signers:
        _check_heeds_signers(entry)
    content = work / "se"
    content.mkdir()
    with secret_directory() as private:
        overlay = private / "overlay.cpio"
        write_archive(overlay, _overlay(key, wanted))
        kept = _make_sdboot(context, content / boot_record.IMAGE, unsealed, entry, overlay, wanted.documents)
    stage3 = _loader(unsealed.boot, _STAGE3).read_bytes()
    made, record = _make_bootable(context, content, stage3, region, same, work)
    unsealed.pieces.partitions["se"] = made
    metadata = unsealed.metadata.model_copy(
        update={
            "config_key": key.fingerprint,
            "config_signers": tuple(wanted.signers.keys) if wanted.signers else (),
            "config_bound": bool(wanted.signers and wanted.signers.bound),
            "host_keys": tuple(
                HostKey(document=each.name, kind=each.key.kind, hash=document.key_hash(each).hex())
                for each in wanted.documents
            ),
            "roots": tuple(hashlib.sha256(each).hexdigest() for each in wanted.roots),
        }
    )
    private_files: dict[str, bytes] = {}
    if wanted.keep_header:
        private_files |= {".header": kept.header, ".header-key": kept.header_key}
    if wanted.keep_cck:
        private_files[".cck"] = kept.communication_key
    return outputs.write(
        context,
        unsealed.pieces,
        metadata,
        target,
        work,
        record=record,
        public_key=key.public,
        private=private_files,
    )


def _check_heeds_signers(entry: BootEntry) -> None:
    """An agent from before there were any would take a config from anybody. Raises Refusal."""
    files = set().union(*map(initramfs_files.names, entry.initrd))
    if not any(each.endswith(_HEEDS_SIGNERS) for each in files):
        raise Refusal(
            "SX-BUILD-75",
            "the secex-firstboot in the image's initramfs is too old for --config-signer",
            "have the image built with a newer one, or do without",
        )


def _overlay(key: ConfigKey, wanted: Sealing) -> dict[str, Entry]:
    public = {paths.CERTIFICATES / f"owner-{number}.crt": each for number, each in enumerate(wanted.roots)}
    if wanted.signers:
        public |= wanted.signers.files()
    files: dict[str, Entry] = {str(path): File(content, _FOR_ALL_TO_READ) for path, content in public.items()}
    return files | {str(paths.PRIVATE_KEY): File(key.private)}


def _make_sdboot(
    context: Context,
    output: Path,
    unsealed: Unsealed,
    entry: BootEntry,
    overlay: Path,
    documents: Sequence[Document],
) -> image.Kept:
    volumes, boot = unsealed.metadata.volumes, unsealed.boot
    added = [f"{row.name}={volumes[name].root_hash}" for name, row in parameters.ROOT_HASHES.items()]
    with open_private(output) as stream:
        return image.build(
            stream,
            kernel=entry.linux,
            ramdisk=[*entry.initrd, overlay],
            command_line=boot_entry.command_line(entry.options, add=[parameters.FIRSTBOOT.name, *added]),
            host_keys=[each.key for each in document.distinct(documents)],
            boot_loaders=image.BootLoaders(_loader(boot, _STAGE3A), _loader(boot, _STAGE3B)),
            progress=lambda done, total: context.progress("encrypt the boot image", done, total),
        )


def _loader(boot: Path, name: str) -> Path:
    found = boot_entry.resolve(boot, f"{LOADERS}/{name}")
    if found.stat().st_size > _LOADER_LIMIT:
        raise Refusal(
            "SX-BUILD-46",
            f"{LOADERS}/{name} on boot is no boot loader",
            "install s390-tools in the tree again",
        )
    return found


def _make_bootable(
    context: Context, content: Path, stage3: bytes, region: Region, same: Same, work: Path
) -> tuple[Path, bytes]:
    """The file system of ``se``, with the boot map for where it puts the image; and the boot record."""
    made, boot_map_file = work / "se.img", content / boot_record.BOOT_MAP
    sdboot = (content / boot_record.IMAGE).stat().st_size
    size = boot_map.size(stage3, [Extent(1, 1)] * _FEW, SECTOR)
    boot_map_file.write_bytes(_FILLER * size)
    volumes.make_ext4(context, made, content, Content.of(content), label="se", size=region.size, same=same)
    # Firmware reads blocks: a hole has none.
    last = -(-sdboot // BLOCK) - 1
    volumes.debugfs(made, f"fallocate /{boot_record.IMAGE} 0 {last}\n", same=same)
    places = {
        name: _on_disk(volumes.blocks_of(made, f"/{name}"), region, (content / name).stat().st_size)
        for name in (boot_record.IMAGE, boot_record.BOOT_MAP)
    }
    written, record = boot_map.write(
        stage3,
        places[boot_record.IMAGE],
        sdboot,
        boot_map=places[boot_record.BOOT_MAP],
        block_size=SECTOR,
    )
    _put(made, written.ljust(size, b"\0"), places[boot_record.BOOT_MAP], region)
    shutil.rmtree(content)
    return made, record


def _on_disk(blocks: Sequence[int], region: Region, size: int) -> list[Extent]:
    """A file of ``size`` bytes in these blocks of its file system, in blocks of the disk."""
    if len(blocks) != -(-size // BLOCK):
        raise FirstbootError(
            "SX-BUILD-10",
            "debugfs does not tell where a file on partition se is",
            "use e2fsprogs 1.47 or newer",
        )
    in_one = BLOCK // SECTOR
    sectors = (region.start // SECTOR + block * in_one + at for block in blocks for at in range(in_one))
    return boot_map.joined(islice(sectors, -(-size // SECTOR)))


def _put(made: Path, content: bytes, places: Sequence[Extent], region: Region) -> None:
    at = 0
    with made.open("r+b") as stream:
        for each in places:
            stream.seek(each.block * SECTOR - region.start)
            stream.write(content[at : at + each.count * SECTOR])
            at += each.count * SECTOR
    if at < len(content):
        raise FirstbootError("SX-BUILD-33", "the image lies in too many pieces on partition se", "report it")


def check_room(entry: BootEntry, size: int) -> None:
    """Raise Refusal unless the boot image fits into a partition se of so many bytes."""
    needed = boot_image_size([entry.linux, *entry.initrd])
    missing = needed + SE_FILE_SYSTEM - size
    if missing > 0:
        raise Refusal(
            "SX-BUILD-34",
            f"partition se is too small by {-(-missing >> 20)} MiB for the boot image",
            "build the image with a larger one",
        )


def boot_image_size(files: Iterable[Path]) -> int:
    """About as many bytes as a boot image has with these files in it."""
    return sum(path.stat().st_size for path in files) + _OVERHEAD


# --- whom it is for ----------------------------------------------------------------------------------------


def _proven(context: Context, host_keys: Sequence[Path], trust: Trust, scratch: Path) -> list[Document]:
    """The host-key documents, proven as first boot proves them."""
    if not host_keys:
        raise Refusal("SX-BUILD-31", "no host-key document is given", "--hostkey FILE: whose image is it?")
    found = [document.parse(path.name, certificates.read_file(path)) for path in host_keys]
    proof.tell_kind(found, context)
    contents.check_documents(found)
    if not trust.verify:
        context.warn("nothing proves that the host keys are those of IBM Z")
        return found
    proof.by_files(
        context,
        found,
        {path.name: certificates.read_file(path) for path in trust.roots},
        [(path.name, certificates.read_file(path)) for path in (*trust.certificates, *trust.crls)],
        offline=trust.offline,
        scratch=scratch,
    )
    return found
