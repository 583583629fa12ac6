"""Images of the least tree there can be, and what tests do with them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import ultravisor
from harness.site import Host

from secex_firstboot.basic.context import Context
from secex_firstboot.builder import adopt, inspect, recipe
from secex_firstboot.builder.inspect import Inspection
from secex_firstboot.builder.outputs import Outputs
from secex_firstboot.builder.recipe import Recipe, Trust
from secex_firstboot.contract.metadata import Metadata
from secex_firstboot.hostkeys import document
from secex_firstboot.sdboot import boot_record

CONTEXT = Context("")
MIB = 1 << 20
UNPROVEN = Trust(verify=False)


def made_of(source: Path, hosts: dict[str, Host], **changes: Any) -> Recipe:
    values = {"source": source, "host_keys": (hosts["first"].document,), "trust": UNPROVEN} | changes
    return recipe.make("the test", values)


def look(outputs: Outputs, *, verify: bool = False, hosts: tuple[Host, ...] = ()) -> Inspection:
    documents = [document.parse(host.name, host.document.read_bytes()) for host in hosts]
    metadata = Metadata.load(outputs.metadata)
    return inspect.inspect(CONTEXT, outputs.image, metadata=metadata, documents=documents, verify=verify)


def adopted(built: Outputs, host: Host, target: Outputs) -> Metadata:
    wanted = made_of(built.image, {"first": host})
    return adopt.adopt(CONTEXT, wanted, Metadata.load(built.metadata), target)


def change(image: Path, at: int) -> None:
    """Some bytes of the disk in a qcow2: more than one, which might be the same already."""
    subprocess.run(["qemu-io", "-c", f"write -q -P 0x5a {at} 8", image], check=True, capture_output=True)


def partition(built: Outputs, name: str) -> int:
    (found,) = (part.start for part in Metadata.load(built.metadata).partitions if part.name == name)
    return found


def sdboot(outputs: Outputs, directory: Path) -> bytes:
    raw, file = directory / "raw", directory / "sdboot.dumped"
    subprocess.run(["qemu-img", "convert", "-O", "raw", outputs.image, raw], check=True)
    se = f"{raw}?offset={partition(outputs, 'se')}"
    subprocess.run(
        ["debugfs", "-R", f"dump /{boot_record.IMAGE} {file}", se], check=True, capture_output=True
    )
    content = file.read_bytes()
    for path in (raw, file):
        path.unlink()
    return content


def opened(outputs: Outputs, host: Host, directory: Path) -> ultravisor.Unpacked:
    return ultravisor.unpack(sdboot(outputs, directory), host.key)


def copy_of(built: Outputs, directory: Path) -> Outputs:
    copy = Outputs(directory / "copy")
    for source, target in ((built.image, copy.image), (built.metadata, copy.metadata)):
        target.write_bytes(source.read_bytes())
    return copy


def disk(path: Path, parts: Sequence[tuple[str, Path | None]]) -> Path:
    """A raw disk image with a partition of 32 MiB for each of these: file system, what is in it."""
    with path.open("wb") as stream:
        stream.truncate((len(parts) * 32 + 2) * MIB)
    table = "label: gpt\n" + "size=32MiB\n" * len(parts)
    subprocess.run(["sfdisk", "--quiet", path], input=table, text=True, check=True)
    for number, (kind, content) in enumerate(parts):
        image = path.with_name("part")
        with image.open("wb") as stream:
            stream.truncate(32 * MIB)
        options = ["-d", str(content)] if content else []
        subprocess.run([f"mkfs.{kind}", "-q", *options, image], check=True)
        with path.open("r+b") as stream:
            stream.seek((1 + number * 32) * MIB)
            stream.write(image.read_bytes())
        image.unlink()
    return path


def parted(source: Path) -> tuple[Path, Path]:
    """Root without /boot, and what was there."""
    boot = source.with_name("boot")
    shutil.move(source / "boot", boot)
    (source / "boot").mkdir()
    return source, boot


@contextmanager
def small_disk(where: Path, mib: int) -> Iterator[None]:
    """Of so many MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", where], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", where], check=True)
