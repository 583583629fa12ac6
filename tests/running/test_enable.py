"""A system that first boot did not make: what it is started from, and for whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import needs, plain
from support.host_keys import CHAIN, certify, forged
from support.machine import put

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.running import enable
from secex_firstboot.sdboot import boot_record, contents
from secex_firstboot.storage import disk
from secex_firstboot.storage.disk import Disk

A = "ibm-z-hostkey-a"
CONTEXT = Context("quiet")

pytestmark = needs.programs("openssl")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with a kernel, and the document of a host."""
    put(tmp_path / "proc/sys/kernel/osrelease", b"6.12\n")
    put(tmp_path / "boot/vmlinuz-6.12", b"kernel")
    put(tmp_path / "boot/initrd.img-6.12", b"initramfs")
    files = CHAIN.certificates() | CHAIN.crls()
    put(tmp_path / "usr/lib/secex-firstboot/certs/root.crt", files.pop("root.crt"))
    for name, content in files.items():
        put(tmp_path / "etc/se-hostkeys/certs" / name, content)
    put(tmp_path / "etc/se-hostkeys" / A, certify("a"))
    return tmp_path


@pytest.fixture
def made(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What boot images were made of."""
    found: list[dict[str, Any]] = []

    def build(context: object, entry: object, se: Path, **options: Any) -> None:
        names = sorted(path.name for path in options["documents"].iterdir())
        found.append({"entry": entry, "hosts": names, **options})

    @contextmanager
    def mounted(where: object, place: Path) -> Iterator[Path]:
        yield root

    monkeypatch.setattr(disk, "find_partition", lambda name, device: Disk(Path("/dev/vda"), 0, 512, {}))
    monkeypatch.setattr(contents, "build_sdboot", build)
    monkeypatch.setattr(boot_record, "mounted", mounted)
    monkeypatch.setattr(boot_record, "settle", lambda se, where: None)
    monkeypatch.setattr(boot_record, "install", lambda se, where, scratch: None)
    return found


def test_the_kernel_that_runs_is_what_starts_next_with_its_arguments(
    root: Path, made: list[dict[str, Any]]
) -> None:
    context = Context("root=LABEL=x BOOT_IMAGE=0 quiet")
    assert enable.make(context, plain(root), None).disk == Path("/dev/vda")
    (image,) = made
    assert (image["command_line"], image["overlay"], image["hosts"]) == ("root=LABEL=x quiet", {}, [A])
    assert image["entry"].linux == root / "boot/vmlinuz-6.12"


def test_a_boot_entry_counts_more(root: Path, made: list[dict[str, Any]]) -> None:
    put(root / "boot/loader/entries/a.conf", b"linux /vmlinuz-6.12\noptions of the entry\n")
    enable.make(CONTEXT, plain(root), None)
    assert made[0]["command_line"] == "of the entry"


def test_what_is_missing_is_refused_before_anything_is_made(root: Path, made: list[dict[str, Any]]) -> None:
    def says(words: str) -> None:
        with pytest.raises(Refusal, match=words):
            enable.make(CONTEXT, plain(root), None)

    put(root / "etc/se-hostkeys" / A, forged("a"))
    says("is not signed by")
    (root / "etc/se-hostkeys" / A).unlink()
    says("there is no host-key document in /etc/se-hostkeys")
    (root / "boot/initrd.img-6.12").unlink()
    says(r"kernel and initramfs of 6\.12 are not in")
    put(root / "etc/luks/root", b"key")
    says("this system was set up by secex-firstboot: secex update is for it")
    assert made == []
