"""The boot image of a provisioned system: of what it is made, nothing left out and nothing too much."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from support import plain
from support.machine import put

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.contract.boot_image import Arguments, Image, Images, Origin, State
from secex_firstboot.contract.partitions import VOLUMES
from secex_firstboot.roots import system_image
from secex_firstboot.roots.kinds import Ostree, Plain
from secex_firstboot.sdboot import boot_entry

CRYPTTAB = b"""\
# a comment
# secex-firstboot my-data: CRYPT-LUKS2-1-my-data aes
my-data UUID=1 /etc/luks/my-data luks
# secex-firstboot boot: CRYPT-LUKS2-2-boot aes
boot PARTUUID=2 /etc/luks/boot luks,header=/etc/luks/boot

# secex-firstboot root: CRYPT-LUKS2-3-root aes
root PARTUUID=3 /etc/luks/root luks,header=/etc/luks/root
"""
ARGUMENTS = Arguments(
    should_exist=("audit=0",),
    should_not_exist=("rd.neednet=1",),
    switches=("systemd.firstboot=no",),
    masks=("systemd.mask=debug-shell.service",),
)
UNITS = {"debug-shell.service": b"", "emergency.service.d/10-off.conf": b"[Service]\n"}
DOCUMENTS = {"ibm-z-hostkey-a": b"document"}
ORIGIN = Origin(root_hashes={})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """As first boot leaves it."""
    for name in VOLUMES:
        put(tmp_path / f"etc/luks/{name}", f"header and key of {name}".encode())
    put(tmp_path / "etc/luks/my-data.header", b"of a volume of the config")
    put(tmp_path / "etc/crypttab", CRYPTTAB)
    put(tmp_path / "boot/vmlinuz", b"kernel")
    put(tmp_path / "boot/initrd", b"initramfs")
    entry = "linux /vmlinuz\ninitrd /initrd\noptions root=LABEL=root rd.neednet=1 secex.grow=off\n"
    put(tmp_path / "boot/loader/entries/a.conf", entry.encode())
    system_image.remember(plain(tmp_path), ARGUMENTS, UNITS, DOCUMENTS, {"root.crt": b"root"}, {}, ORIGIN)
    return tmp_path


def made(root: Path) -> dict[str, str]:
    return system_image.find(plain(root), root / "boot").inputs


def test_the_initramfs_gets_what_opens_both_volumes_and_keeps_logins_off(root: Path) -> None:
    files = system_image.find(plain(root), root / "boot").files
    keys = {f"/etc/luks/{name}" for name in VOLUMES}
    no_login = {f"/etc/secex-no-login/{name}" for name in UNITS}
    assert files.keys() == keys | no_login | {"/etc/crypttab"}
    assert files["/etc/crypttab"] == b"".join(
        line
        for line in CRYPTTAB.splitlines(keepends=True)
        if line.startswith((b"boot ", b"root ", b"# secex-firstboot boot: ", b"# secex-firstboot root: "))
    )


def test_its_command_line_is_the_entrys_as_the_config_wanted_it(root: Path) -> None:
    words = system_image.find(plain(root), root / "boot").command_line.split()
    assert {"root=/dev/mapper/root", "secex.grow=off", "audit=0", *ARGUMENTS.switches, *ARGUMENTS.masks} <= {
        *words
    }
    assert not {"root=LABEL=root", "rd.neednet=1", "ignition.firstboot"} & {*words}


def test_it_is_for_the_proven_hosts(root: Path) -> None:
    put(root / "etc/se-hostkeys/ibm-z-hostkey-b", b"of somebody else")
    assert system_image.find(plain(root), root / "boot").documents == DOCUMENTS


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("boot/vmlinuz", "kernel"),
        ("boot/initrd", "initramfs 0"),
        ("etc/luks/root", "file /etc/luks/root"),
        ("etc/luks/boot", "file /etc/luks/boot"),
        ("etc/luks/boot-image/hosts/ibm-z-hostkey-a", "host ibm-z-hostkey-a"),
        ("etc/luks/boot-image/no-login/debug-shell.service",
         "file /etc/secex-no-login/debug-shell.service"),
    ],
)  # fmt: skip
def test_whatever_changes_is_seen_and_named(root: Path, path: str, name: str) -> None:
    before = made(root)
    assert made(root) == before
    put(root / path, b"other")
    after = made(root)
    assert {each for each in before.keys() | after.keys() if before.get(each) != after.get(each)} == {name}


def test_a_changed_line_for_another_volume_changes_nothing(root: Path) -> None:
    before = made(root)
    put(root / "etc/crypttab", CRYPTTAB.replace(b"UUID=1 ", b"UUID=7 "))
    assert made(root) == before


def test_another_boot_entry_counts_once_it_is_the_newest(root: Path) -> None:
    before = made(root)
    put(root / "boot/vmlinuz-2", b"newer kernel")
    put(root / "boot/loader/entries/b.conf", b"linux /vmlinuz-2\noptions quiet\n")
    after = made(root)
    assert before["kernel"] != after["kernel"]
    assert "initramfs 0" not in after


@pytest.mark.parametrize("kept", [b"", b"{}}", b'{"should_exist": 1}', b'{"more": []}'])
def test_a_state_that_first_boot_did_not_write_is_an_error(root: Path, kept: bytes) -> None:
    put(root / "etc/luks/boot-image/arguments.json", kept)
    with pytest.raises(FirstbootError, match="is not what first boot wrote"):
        made(root)


@pytest.mark.parametrize("path", ["etc/luks/root", "etc/luks/boot", "etc/crypttab"])
def test_what_is_missing_is_named(root: Path, path: str) -> None:
    (root / path).unlink()
    with pytest.raises(FirstbootError, match=f"{path} is missing or no regular file"):
        made(root)


def test_what_is_remembered_is_private_and_replaced_as_a_whole(root: Path) -> None:
    system_image.remember(plain(root), Arguments(), {}, {"ibm-z-hostkey-b": b"other"}, {}, {}, ORIGIN)
    state = root / "etc/luks/boot-image"
    assert sorted(path.name for path in state.rglob("*")) == [
        "arguments.json",
        "certificates",
        "hosts",
        "ibm-z-hostkey-b",
        "no-login",  # empty: check-root takes it along, and stops where it is not
        "origin.json",
    ]
    assert all(path.stat().st_mode & 0o077 == 0 for path in state.rglob("*"))


def image(generation: int, state: State = State.UP) -> Image:
    return Image(generation=generation, identity="", kernel="6.12", state=state, inputs={"kernel": "0f"})


def test_the_record_of_the_images_is_found_again_and_none_but_they_may_start(root: Path) -> None:
    assert system_image.images(plain(root)) is None
    assert system_image.allowed(plain(root)) == set()
    system_image.allow(plain(root), {6, 7, 8})
    images = Images(newest=image(8, State.NEW), fallback=image(6))
    system_image.record(plain(root), images)
    assert system_image.images(plain(root)) == images
    assert system_image.allowed(plain(root)) == {6, 8}
    assert (root / "etc/luks/generations").read_text() == "8\n6\n"


def test_a_record_that_cannot_be_read_is_none(root: Path) -> None:
    system_image.record(plain(root), Images(newest=image(1)))
    put(root / "etc/luks/boot-image/images.json", b"{")
    assert system_image.images(plain(root)) is None


@pytest.mark.parametrize("content", [b"1\nx\n", b"-1", b"1" * 10, b"\xff"])
def test_numbers_that_are_none_stop_it(root: Path, content: bytes) -> None:
    put(root / "etc/luks/generations", content)
    with pytest.raises(FirstbootError, match="has something else than numbers"):
        system_image.allowed(plain(root))


# --- boot entries that others make images of ---


@dataclass(frozen=True)
class Carried(Plain):
    others_make_images = True


def entries(root: Path) -> dict[str, list[str]]:
    return {name: options.split() for name, options in boot_entry.options(root / "boot").items()}


def test_where_others_make_images_of_boot_entries_each_has_a_number_that_may_start(root: Path) -> None:
    older = "title older\nlinux /gone\noptions other secex.generation=3\n"
    put(root / "boot/loader/entries/0.conf", older.encode())
    carried = Carried(root, None)
    image = system_image.find(carried, root / "boot")
    for number in (4, 5):
        system_image.carry_on(carried, root / "boot", image, number)
        assert entries(root) == {
            "0": ["other", f"secex.generation={number}"],
            "a": [*image.command_line.split(), f"secex.generation={number}"],
        }
    assert "linux /gone\n" in (root / "boot/loader/entries/0.conf").read_text()
    assert system_image.find(carried, root / "boot").inputs == image.inputs


def test_elsewhere_they_stay_as_they_are(root: Path) -> None:
    before = entries(root)
    image = system_image.find(plain(root), root / "boot")
    system_image.carry_on(plain(root), root / "boot", image, 4)
    assert entries(root) == before


def test_libostree_makes_images_of_boot_entries() -> None:
    assert (Ostree.others_make_images, Plain.others_make_images) == (True, False)
