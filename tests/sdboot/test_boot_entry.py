"""Boot Loader Specification entries, and the kernel command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.sdboot.boot_entry import BootEntry, command_line, find

ENTRY = """\
# made by the image builder
title Example Linux 12 (bookworm)
version 6.1.0-9-s390x
linux /vmlinuz-6.1.0-9-s390x
initrd /initrd.img-6.1.0-9-s390x
options root=/dev/disk/by-label/root rw
"""


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    boot = tmp_path / "boot"
    (boot / "loader/entries").mkdir(parents=True)
    for name in ("vmlinuz-6.1.0-9-s390x", "initrd.img-6.1.0-9-s390x", "extra.img"):
        (boot / name).write_text(name)
    (tmp_path / "outside").write_text("not on the boot partition")
    return boot


def write_entry(boot: Path, text: str, name: str = "example.conf") -> None:
    (boot / "loader/entries" / name).write_text(text)


def test_an_entry_is_read(boot: Path) -> None:
    write_entry(boot, ENTRY)
    assert find(boot) == BootEntry(
        title="Example Linux 12 (bookworm)",
        version="6.1.0-9-s390x",
        linux=boot / "vmlinuz-6.1.0-9-s390x",
        initrd=(boot / "initrd.img-6.1.0-9-s390x",),
        options="root=/dev/disk/by-label/root rw",
        name="example",
    )


def test_paths_may_start_with_boot_as_seen_from_the_root(boot: Path) -> None:
    write_entry(boot, ENTRY.replace("linux /", "linux /boot/").replace("initrd /", "initrd\tboot/"))
    assert find(boot).linux == boot / "vmlinuz-6.1.0-9-s390x"
    assert find(boot).initrd == (boot / "initrd.img-6.1.0-9-s390x",)


def test_several_initrds_and_options_are_kept_in_order(boot: Path) -> None:
    write_entry(boot, ENTRY + "initrd /extra.img\noptions quiet\n")
    assert [path.name for path in find(boot).initrd] == ["initrd.img-6.1.0-9-s390x", "extra.img"]
    assert find(boot).options == "root=/dev/disk/by-label/root rw quiet"


def test_an_entry_without_initrd_and_options_is_read(boot: Path) -> None:
    write_entry(boot, "linux /vmlinuz-6.1.0-9-s390x\n")
    assert find(boot) == BootEntry("", "", boot / "vmlinuz-6.1.0-9-s390x", (), "", "example")


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("ostree-1-example", "ostree-2-example"),
        ("ostree-9-example", "ostree-10-example"),
        ("id-6.1.0-9-s390x", "id-6.1.0-10-s390x"),
        ("id-6.1.0", "id-6.1.0-1"),
        ("id-0-rescue", "id-5.14.0"),
        ("a", "b"),
    ],
)
def test_the_entry_highest_in_version_order_is_taken(boot: Path, lower: str, higher: str) -> None:
    write_entry(boot, ENTRY.replace("title Example", "title Lower"), f"{lower}.conf")
    write_entry(boot, ENTRY.replace("title Example", "title Higher"), f"{higher}.conf")
    write_entry(boot, "nonsense", "zzz.conf.bak")
    assert find(boot).title.startswith("Higher")


def test_a_boot_partition_without_entry_is_refused(boot: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no boot entry"):
        find(boot)
    with pytest.raises(Refusal, match="no boot entry"):
        find(tmp_path / "nothing mounted")


def test_a_missing_kernel_or_initrd_is_refused(boot: Path) -> None:
    write_entry(boot, ENTRY + "initrd /missing.img\n")
    with pytest.raises(Refusal, match=r"'/missing\.img' is missing"):
        find(boot)
    write_entry(boot, ENTRY.replace("linux /", "linux /older-"))
    with pytest.raises(Refusal, match=r"older-vmlinuz.* is missing"):
        find(boot)


def test_an_entry_without_or_with_two_kernels_is_refused(boot: Path) -> None:
    write_entry(boot, ENTRY.replace("linux", "efi"))
    with pytest.raises(Refusal, match="0 kernels"):
        find(boot)
    write_entry(boot, ENTRY + "linux /extra.img\n")
    with pytest.raises(Refusal, match="2 kernels"):
        find(boot)


@pytest.mark.parametrize("path", ["/../outside", "/boot/../outside", "../outside", "/loader/../../outside"])
def test_a_path_that_leaves_the_boot_partition_is_refused(boot: Path, path: str) -> None:
    write_entry(boot, ENTRY + f"initrd {path}\n")
    with pytest.raises(Refusal, match="outside the boot partition"):
        find(boot)


def test_a_link_out_of_the_boot_partition_is_refused_and_one_within_is_followed(boot: Path) -> None:
    write_entry(boot, ENTRY.replace("vmlinuz-6.1.0-9-s390x", "vmlinuz"))
    (boot / "vmlinuz").symlink_to("vmlinuz-6.1.0-9-s390x")
    assert find(boot).linux == boot / "vmlinuz-6.1.0-9-s390x"
    (boot / "vmlinuz").unlink()
    (boot / "vmlinuz").symlink_to("../outside")
    with pytest.raises(Refusal, match="outside the boot partition"):
        find(boot)


def test_an_entry_that_is_a_link_out_of_the_boot_partition_is_refused(boot: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text(ENTRY)
    (boot / "loader/entries/example.conf").symlink_to(tmp_path / "outside")
    with pytest.raises(Refusal, match="outside the boot partition"):
        find(boot)


def test_a_boot_link_to_itself_on_the_boot_partition_works(boot: Path) -> None:
    """Fedora CoreOS has boot -> . there."""
    (boot / "boot").symlink_to(".")
    write_entry(boot, ENTRY.replace("linux /", "linux /boot/"))
    assert find(boot).linux == boot / "vmlinuz-6.1.0-9-s390x"


def test_a_directory_or_a_loop_of_links_is_no_kernel(boot: Path) -> None:
    write_entry(boot, "linux /loader\n")
    with pytest.raises(Refusal, match="'/loader' is missing"):
        find(boot)
    (boot / "loop").symlink_to("loop")
    write_entry(boot, "linux /loop\n")
    with pytest.raises(Refusal, match="'/loop' is missing"):
        find(boot)


def test_an_oversized_entry_is_refused(boot: Path) -> None:
    comment = "#" * ((64 << 10) - len(ENTRY) - 1) + "\n"
    write_entry(boot, ENTRY + comment)
    assert find(boot).linux
    write_entry(boot, ENTRY + comment + "\n")
    with pytest.raises(Refusal, match="larger than 65536"):
        find(boot)


def test_too_many_entries_are_refused(boot: Path) -> None:
    for number in range(256):
        write_entry(boot, ENTRY, f"{number}.conf")
    assert find(boot).linux
    write_entry(boot, ENTRY, "256.conf")
    with pytest.raises(Refusal, match="more than 256"):
        find(boot)


def test_an_entry_that_is_not_text_is_refused(boot: Path) -> None:
    write_entry(boot, ENTRY.replace("Example", "Exämple"))
    assert "Exämple" in find(boot).title
    (boot / "loader/entries/example.conf").write_bytes(b"linux \xff\n")
    with pytest.raises(Refusal, match="not UTF-8"):
        find(boot)


@pytest.mark.parametrize(
    ("options", "add", "remove", "expected"),
    [
        ("quiet rw", ["a=1"], [], "quiet rw a=1"),
        ("root=/dev/x rw", ["root=/dev/y"], ["root"], "rw root=/dev/y"),
        ("root=a rootflags=b rootfstype=c root", [], ["root"], "rootflags=b rootfstype=c"),
        ("rw ignition.firstboot quiet", [], ["ignition.firstboot"], "rw quiet"),
        (
            "ignition.firstboot=1 ignition.platform.id=qemu",
            [],
            ["ignition.firstboot"],
            "ignition.platform.id=qemu",
        ),
        ('dyndbg="file a.c +p" root=x', [], ["root"], 'dyndbg="file a.c +p"'),
        ('a="x root=y z" rw', [], ["root"], 'a="x root=y z" rw'),
        ('"root=a b" rw', [], ["root"], "rw"),
        ("rd.luks-x=1 rd.luks_x=2 rw", [], ["rd.luks_x"], "rw"),
        ("quiet -- single", ["a=1"], [], "quiet a=1 -- single"),
        ("  a\t b\n", [], [], "a b"),
        ("", ["a=1", "b=2"], [], "a=1 b=2"),
    ],
)
def test_the_command_line_is_edited_as_the_kernel_reads_it(
    options: str, add: list[str], remove: list[str], expected: str
) -> None:
    assert command_line(options, add=add, remove=remove) == expected


def test_an_open_quote_that_would_swallow_an_addition_is_refused() -> None:
    assert command_line('a="b"', add=["rootfs.roothash=00"]) == 'a="b" rootfs.roothash=00'
    with pytest.raises(Refusal, match="quote"):
        command_line('a="b', add=["rootfs.roothash=00"])
    with pytest.raises(Refusal, match="quote"):
        command_line("a=b", add=['rootfs.roothash="00'])


@pytest.mark.parametrize("options", ["a=\0 b", "a=\N{NO-BREAK SPACE}b"])
def test_characters_the_kernel_may_read_differently_are_refused(options: str) -> None:
    with pytest.raises(Refusal, match="ASCII"):
        command_line(options)
