"""In place of IBM's pvimg and genprotimg, for who makes the system's boot image: libostree, and rdcore.

They give a kernel, the one initramfs of the newest boot entry with files of /etc behind it, and where the
image goes: sdboot on partition se, which they have mounted. It is made as by ``secex update``, of the same
boot entry. Sources: libostree, src/libostree/ostree-bootloader-zipl.c; coreos-installer, src/bin/rdcore/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.process import run
from secex_firstboot.roots.kinds import Root
from secex_firstboot.running import system, update
from secex_firstboot.sdboot import boot_record
from secex_firstboot.storage import devicemapper, disk, filesystem

_OUTPUT = ("-o", "--output")


def is_the_systems(root: Root, words: Sequence[str]) -> bool:
    """Whether a tool that is called with these words makes the boot image of this system."""
    if not system.is_provisioned(root):
        return False
    output = _output(words)
    if output.name != boot_record.IMAGE:
        return False
    partition = devicemapper.number_of(disk.find_disk().partitions["se"].device)
    return filesystem.mounted_numbers(output.parent)[-1:] == [partition]


def make(context: Context, root: Root, words: Sequence[str]) -> None:
    """Make it. What ``is_the_systems`` says no to is not for this."""
    with _unmounted(_output(words).parent):
        update.in_system(context, root)


@contextmanager
def _unmounted(where: Path) -> Iterator[None]:
    """Partition se is the caller's again behind the ``with`` block: boot_record mounts it in its own way."""
    source = filesystem.mount_sources(where)[-1]
    filesystem.unmount(where)
    try:
        yield
    finally:
        run(["mount", "-t", "ext4", source, where])


def _output(words: Sequence[str]) -> Path:
    """An empty path if they name none."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word in _OUTPUT:
            return Path(following)
        name, equals, value = word.partition("=")
        if equals and name in _OUTPUT:
            return Path(value)
    return Path()
