"""Making an image with whichever builder there is: IBM's pvimg or genprotimg, or the built-in one.

pvimg-create(1): https://github.com/ibm-s390-linux/s390-tools/blob/master/rust/pvimg/man/pvimg-create.1;
genprotimg(1), before s390-tools 2.36 a program of its own, takes the same options as used here.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from secex_firstboot.basic import process
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import is_regular, open_private, sync
from secex_firstboot.contract.key_kind import KeyKind
from secex_firstboot.hostkeys.key import HostKey, key_hash
from secex_firstboot.sdboot import ibms, image, initramfs

BUILT_IN = "built-in"
_TOOLS = (("pvimg", "create"), ("genprotimg",))
# Of s390-tools 2.44, rust/pvimg/src/cli.rs; without it, and before it was there, they make version 1.
_VERSION_2 = ("--hdr-version", "2")
_REHEARSAL = "rehearsal"  # a command line
BOOT_LOADER_DIRECTORIES = (Path("/usr/share/s390-tools/pvimg"), Path("/usr/share/s390-tools/genprotimg"))


def create(
    output: Path,
    *,
    kernel: Path,
    ramdisk: Sequence[Path],
    command_line: str,
    host_keys: Mapping[Path, HostKey],
    progress: image.Progress,
    scratch: Path,
) -> str:
    """Make a Secure Execution image and return the name of the builder that made it.

    ``host_keys`` are the host-key documents and their keys, verified before: IBM's tools read the documents
    themselves, the built-in builder needs the keys alone. Whoever makes the image, it is for exactly these
    keys. ``output`` appears complete, on disk and with mode 0600, or not at all; an existing one is replaced.
    ``scratch`` must be in memory or on the encrypted root: it holds the command line and the joined ramdisk
    in plain, for a builder that reads files (the built-in one needs none of it). ``progress`` is called by
    the built-in builder alone.
    """
    keys = list(host_keys.values())
    kind = image.check_host_keys(keys).kind
    image.command_line_component(command_line, kernel)
    image.check_ramdisk(ramdisk)
    unfinished = output.with_name(f"{output.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        tool = _installed_tool(kind)
        if tool:
            _rehearse(tool, kernel, host_keys, scratch)
            _run(tool, unfinished, kernel, ramdisk, command_line, host_keys, scratch)
        else:
            boot_loaders = find_boot_loaders()
            with open_private(unfinished) as file:
                image.build(
                    file,
                    kernel=kernel,
                    ramdisk=ramdisk,
                    command_line=command_line,
                    host_keys=keys,
                    boot_loaders=boot_loaders,
                    progress=progress,
                )
        builder = Path(tool[0]).name if tool else BUILT_IN
        _check_key_slots(unfinished, keys, builder)
        unfinished.chmod(0o600)
        sync(unfinished)
        unfinished.replace(output)
    except OSError as error:
        raise FirstbootError(
            "SX-SDBOOT-09",
            f"{output} cannot be made: {error.strerror}",
            "make sure its partition has room for one more image",
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    sync(output.parent)
    return builder


def _rehearse(tool: tuple[str, ...], kernel: Path, host_keys: Mapping[Path, HostKey], scratch: Path) -> None:
    """Let the tool make an image with nothing secret in it, in memory, and see whose keys it takes.

    What it writes to ``output`` is on the disk of whoever runs the host before anybody can read it back.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="rehearsal-") as private:
        made = Path(private, "image")
        _run(tool, made, kernel, (), _REHEARSAL, host_keys, scratch)
        _check_key_slots(made, host_keys.values(), Path(tool[0]).name)


def _check_key_slots(made: Path, keys: Iterable[HostKey], builder: str) -> None:
    """Whatever a builder read in a document: the image is for the keys that were proven, and for no other."""
    with made.open("rb") as file:
        slots = image.key_slots(file)
    if sorted(slots) != sorted({key_hash(each) for each in keys}):
        raise FirstbootError(
            "SX-SDBOOT-10",
            f"the image that {builder} made is not for exactly the host keys that were proven",
            "make sure the image has an unchanged s390-tools, and give host-key documents as IBM offers them",
        )


def find_boot_loaders() -> image.BootLoaders:
    """IBM's boot loaders where s390-tools installs them. Raises Refusal if they are nowhere."""
    for directory in BOOT_LOADER_DIRECTORIES:
        found = image.BootLoaders(directory / "stage3a.bin", directory / "stage3b_reloc.bin")
        if is_regular(found.stage3a) and is_regular(found.stage3b):
            return found
    raise Refusal(
        "SX-SDBOOT-11",
        "the initramfs has neither pvimg nor genprotimg nor IBM's boot loaders",
        f"build the image with s390-tools 2.36 or newer, or put stage3a.bin and stage3b_reloc.bin in"
        f" {BOOT_LOADER_DIRECTORIES[0]}",
    )


def _installed_tool(kind: KeyKind) -> tuple[str, ...] | None:
    """How to call the first that makes images for such keys."""
    installed = ((str(found), *words) for name, *words in _TOOLS if (found := ibms.find(name)))
    if kind is KeyKind.HYBRID:
        option, _ = _VERSION_2
        installed = ((*tool, *_VERSION_2) for tool in installed if option in process.run([*tool, "--help"]))
    return next(installed, None)


def _run(
    tool: tuple[str, ...],
    output: Path,
    kernel: Path,
    ramdisk: Sequence[Path],
    command_line: str,
    documents: Iterable[Path],
    scratch: Path,
) -> None:
    """Let pvimg or genprotimg make ``output``, which must not exist yet."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix="sdboot-") as private:  # mode 0700
        parameters = Path(private, "parmfile")
        with open_private(parameters) as file:
            file.write(command_line.encode())
        arguments: list[str | Path] = ["-o", output, "-i", kernel, "-p", parameters]
        if ramdisk:
            arguments += ["-r", _one_file(ramdisk, Path(private))]
        for document in documents:
            arguments += ["-k", document]
        process.run([*tool, "--no-verify", *arguments])


def _one_file(ramdisk: Sequence[Path], directory: Path) -> Path:
    """The ramdisk as the single file these tools take; several parts are joined in ``directory``."""
    if len(ramdisk) == 1:
        return ramdisk[0]
    needed, free = initramfs.joined_size(ramdisk), shutil.disk_usage(directory).free
    if needed > free:
        raise FirstbootError(
            "SX-SDBOOT-12",
            f"the ramdisk needs {needed >> 20} MiB in {directory.parent}, which has {free >> 20} MiB free",
            "give the guest more memory",
        )
    whole = directory / "ramdisk"
    with open_private(whole) as file:
        for piece in initramfs.joined(ramdisk):
            file.write(piece)
    return whole
