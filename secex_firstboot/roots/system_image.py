"""The boot image of a provisioned system, made of what is on its root: by first boot's last step, and later
by every update.

What only the config says (kernel arguments, masked units) and what was proven (host-key documents) is kept
on the root, which is encrypted: below IMAGE_STATE.
"""

from __future__ import annotations

import hashlib
import shutil
from base64 import b64encode
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import exists, is_directory, is_regular, sha256, sync, write_private
from secex_firstboot.contract import paths
from secex_firstboot.contract.boot_image import Arguments, Image, Images, Origin
from secex_firstboot.contract.partitions import VOLUMES
from secex_firstboot.ignition.config import KernelArguments
from secex_firstboot.roots import crypttab
from secex_firstboot.roots.kinds import Root
from secex_firstboot.sdboot import boot_entry, boot_record, contents, image, options
from secex_firstboot.sdboot.boot_entry import BootEntry
from secex_firstboot.sdboot.initramfs import Directory, Entry, File

_ARGUMENTS = "arguments.json"
_NO_LOGIN = "no-login"  # laid out like paths.NO_LOGIN_UNITS
_LAST_NUMBER = "last-number"  # of a boot image that was begun
_HOSTS = "hosts"  # host-key documents, as they were proven
_RECOVERY_KEYS = "recovery"  # the owner's, as they were found to be usable
_ORIGIN = "origin.json"
CERTIFICATES = "certificates"  # those that the image trusts
_LIMIT = 1 << 20  # bytes of a file here that is read whole
_HEADER_LIMIT = 32 << 20  # of a LUKS2 header with its key
_CURE = "look at the disk's health; secex-firstboot(8), FILES, says what belongs there"


@dataclass(frozen=True)
class SystemImage:
    """``files`` are what the initramfs gets beside what is in it: path -> content. ``documents`` are host-key
    documents, which were proven; ``recovery_keys``: see recovery.leave. ``deployment``: see boot_image.Image.
    """

    entry: BootEntry
    command_line: str
    files: Mapping[str, bytes]
    documents: Mapping[str, bytes]
    recovery_keys: Mapping[str, bytes]
    deployment: str

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Of what it is made, the SHA-256 each; no secret can be told from that."""
        inputs = {f"file {path}": content for path, content in self.files.items()}
        inputs |= {f"host {name}": content for name, content in self.documents.items()}
        inputs |= {f"recovery key {name}": content for name, content in self.recovery_keys.items()}
        inputs["command line"] = self.command_line.encode()
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in inputs.items()}
        digests["kernel"] = sha256(self.entry.linux)
        for number, path in enumerate(self.entry.initrd):
            digests[f"initramfs {number}"] = sha256(path)
        return dict(sorted(digests.items()))

    def build(self, context: Context, se: Path, scratch: Path, generation: int) -> Image:
        """Write ``sdboot.new`` on ``se``. ``scratch``, an existing directory, gets secrets for a moment."""
        private: dict[str, Entry] = {str(paths.LUKS_KEYS): Directory(0o700)}
        inputs = self.inputs  # told before they are read for the image: what changes in between is seen later
        line = options.numbered(self.command_line, generation)
        with contents.documents_in(scratch, self.documents) as documents:
            contents.build_sdboot(
                context,
                self.entry,
                se,
                command_line=line,
                overlay=private | {path: File(content) for path, content in self.files.items()},
                documents=documents,
                archive=scratch / "overlay.cpio",
                scratch=scratch,
            )
        return Image(
            generation=generation,
            identity=boot_record.identity(se / boot_record.NEW_IMAGE),
            kernel=self.entry.release,
            inputs=inputs,
            deployment=self.deployment,
            command_line=line,
            header=b64encode(image.header_bytes(se / boot_record.NEW_IMAGE)).decode(),
        )


def remember(
    root: Root,
    arguments: Arguments,
    units: Mapping[str, bytes],
    documents: Mapping[str, bytes],
    certificates: Mapping[str, bytes],
    recovery_keys: Mapping[str, bytes],
    origin: Origin,
) -> None:
    """Write what ``find`` then reads, besides what is on ``root`` anyway. ``units``: see local_login;
    ``certificates``: those that the image trusts, by which later documents are proven."""
    state = root.state(paths.IMAGE_STATE)
    for name, files in ((_NO_LOGIN, units), (CERTIFICATES, certificates)):
        shutil.rmtree(state / name, ignore_errors=True)
        (state / name).mkdir(mode=0o700, parents=True)
        for file, content in files.items():
            write_private(state / name / file, content)
    keep_hosts(root, documents)
    keep_recovery_keys(root, recovery_keys)
    write_private(state / _ORIGIN, origin.model_dump_json().encode())
    write_private(state / _ARGUMENTS, arguments.model_dump_json().encode())


def hosts(root: Root) -> dict[str, bytes]:
    """The host-key documents that were proven: name -> PEM."""
    return _files(root.state(paths.IMAGE_STATE) / _HOSTS)


def keep_hosts(root: Root, documents: Mapping[str, bytes]) -> None:
    """Write what ``hosts`` then reads. Killed on the way, it leaves these and the older ones."""
    _keep(root.state(paths.IMAGE_STATE) / _HOSTS, documents)


def recovery_keys(root: Root) -> dict[str, bytes]:
    """The owner's, which could be encrypted to when they were given: name -> armored."""
    return _files(root.state(paths.IMAGE_STATE) / _RECOVERY_KEYS)


def keep_recovery_keys(root: Root, keys: Mapping[str, bytes]) -> None:
    """Write what ``recovery_keys`` then reads."""
    _keep(root.state(paths.IMAGE_STATE) / _RECOVERY_KEYS, keys)


def origin(root: Root) -> Origin | None:
    """None of a system that an older version has set up."""
    path = root.state(paths.IMAGE_STATE) / _ORIGIN
    return Origin.model_validate_json(_read(path)) if exists(path) else None


def _keep(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        write_private(directory / name, content)
    for name in _files(directory).keys() - files.keys():
        (directory / name).unlink()
    if exists(directory):
        sync(directory)


def find(root: Root, boot: Path) -> SystemImage:
    """The one that the system on ``root`` is to start from, with its boot partition mounted on ``boot``.

    Raises Refusal for a boot entry that cannot be used, FirstbootError if something is missing.
    """
    state = root.state(paths.IMAGE_STATE)
    try:
        kept = Arguments.model_validate_json(_read(state / _ARGUMENTS))
    except ValueError:
        raise FirstbootError(
            "SX-ROOT-06", f"{state / _ARGUMENTS} is not what first boot wrote", _CURE
        ) from None
    entry = boot_entry.find(boot)
    wanted = KernelArguments(
        should_exist=list(kept.should_exist), should_not_exist=list(kept.should_not_exist)
    )
    keys = [paths.LUKS_KEYS / name for name in VOLUMES]
    files = {str(path): _read(root.state(path), _HEADER_LIMIT) for path in keys}
    files[str(paths.CRYPTTAB)] = crypttab.of(VOLUMES, _read(root.place(paths.CRYPTTAB)))
    files |= {
        str(paths.NO_LOGIN_UNITS / name): content for name, content in _files(state / _NO_LOGIN).items()
    }
    files |= root.for_initramfs(entry.options)
    return SystemImage(
        entry=entry,
        command_line=options.system_command_line(
            entry.options, wanted, list(kept.switches), list(kept.masks)
        ),
        files=files,
        documents=hosts(root),
        recovery_keys=recovery_keys(root),
        deployment=root.deployment_of(entry.options),
    )


def carry_on(root: Root, boot: Path, image: SystemImage, generation: int) -> None:
    """Let the boot entries have what ``image`` has with this number, which may start: whoever makes one of an
    entry alone then makes one that starts."""
    if root.others_make_images:
        for name, of_entry in boot_entry.options(boot).items():
            line = image.command_line if name == image.entry.name else of_entry
            boot_entry.set_options(boot, name, options.numbered(line, generation))


def images(root: Root) -> Images | None:
    """Those that the system on ``root`` has made; None if that is not recorded."""
    path = root.state(paths.BOOT_IMAGES)
    try:
        return Images.model_validate_json(_read(path)) if exists(path) else None
    except ValueError:
        return None  # one is made again


def record(root: Root, images: Images) -> None:
    """Write what ``images`` then reads; no others may start from now on."""
    mark(root)
    write_private(root.state(paths.BOOT_IMAGES), images.model_dump_json().encode())
    allow(root, images.generations)
    if images.are_up:
        path = root.state(paths.NOT_UP)
        path.unlink()
        sync(path.parent)


def new_number(root: Root, images: Images | None) -> int:
    """For a boot image that is about to be made: one that none has had, also none that was only half made, as
    the host may have copied it."""
    path = root.state(paths.IMAGE_STATE) / _LAST_NUMBER
    last = _numbers(path) | allowed(root) | (images.generations if images else set())
    number = 1 + max(last, default=0)
    write_private(path, f"{number}\n".encode())
    return number


def allow_new(root: Root, generation: int) -> None:
    """Let a boot image with this number, which is not on record yet, start as well."""
    mark(root)
    allow(root, allowed(root) | {generation})


def mark(root: Root) -> None:
    """Until the next ``record``, a start looks whether it is right."""
    path = root.state(paths.NOT_UP)
    if not exists(path):
        write_private(path, b"")


def allow(root: Root, generations: Collection[int]) -> None:
    """Let boot images with these numbers start, and no others: see check-root in the initramfs."""
    path = root.state(paths.GENERATIONS)
    content = "".join(f"{each}\n" for each in sorted(generations, reverse=True)).encode()
    if not exists(path) or _read(path) != content:
        write_private(path, content)


def allowed(root: Root) -> set[int]:
    """Raises FirstbootError if the file is not what ``allow`` wrote."""
    return _numbers(root.state(paths.GENERATIONS))


def _numbers(path: Path) -> set[int]:
    words = _read(path).split() if exists(path) else []
    if not all(word.isdigit() and len(word) < 10 for word in words):
        raise FirstbootError("SX-ROOT-09", f"{path} has something else than numbers", _CURE)
    return {int(word) for word in words}


def _read(path: Path, limit: int = _LIMIT) -> bytes:
    """A regular file of at most ``limit`` bytes."""
    if not is_regular(path):
        raise FirstbootError("SX-ROOT-07", f"{path} is missing or no regular file", _CURE)
    with path.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise FirstbootError("SX-ROOT-08", f"{path} is larger than {limit} bytes", _CURE)
    return content


def _files(directory: Path) -> dict[str, bytes]:
    """What is below it: names relative to it, sorted."""
    paths = sorted(path for path in directory.rglob("*") if not is_directory(path, follow_symlinks=False))
    return {str(path.relative_to(directory)): _read(path) for path in paths}
