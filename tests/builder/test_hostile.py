"""Trees, images and metadata of somebody who wants more than an image."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.site import Host
from support import needs, plain, se_tree
from support.builds import (
    CONTEXT,
    MIB,
    adopted,
    change,
    copy_of,
    disk,
    look,
    made_of,
    parted,
    partition,
    small_disk,
)

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import size_of
from secex_firstboot.builder import boot_files, build, inspect, outputs, recipe, rules, sealing, tree, volumes
from secex_firstboot.builder.inspect import Kind
from secex_firstboot.builder.outputs import Outputs
from secex_firstboot.builder.volumes import Content, Same
from secex_firstboot.cli import secex
from secex_firstboot.contract.metadata import HostKey, Metadata

pytestmark = needs.programs("mkfs.ext4", "debugfs", "veritysetup", "qemu-img", "qemu-io", "sfdisk", "gpg")

SAME = Same(0, fixed=True)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that no tree has to do with; it stays as it is."""
    directory = tmp_path / "outside"
    directory.mkdir(mode=0o750)
    (directory / "file").write_text("of this machine")
    return directory


def untouched(outside: Path) -> bool:
    [file] = outside.iterdir()
    return outside.stat().st_mode & 0o7777 == 0o750 and file.read_text() == "of this machine"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A tree to be changed."""
    return se_tree.make(tmp_path / "own")


def check(root: Path) -> None:
    rules.check(CONTEXT, root, more_options="", strict_options=False, file_system="ext4")


# --- trees ---


def linked_temporary_directory(own: Path, outside: Path) -> None:
    (own / "tmp").symlink_to(outside)


def linked_boot_loaders(own: Path, outside: Path) -> None:
    (own / "boot" / sealing.LOADERS).symlink_to(outside)


def linked_boot_loader(own: Path, outside: Path) -> None:
    (own / "boot" / sealing.LOADERS).mkdir()
    (own / "boot" / sealing.LOADERS / "stage3.bin").symlink_to(outside / "file")


@pytest.mark.parametrize("kind", ["directory", "tar"])
@pytest.mark.parametrize(
    "link",
    [linked_temporary_directory, linked_boot_loaders, linked_boot_loader],
    ids=lambda link: link.__name__,
)
def test_a_link_out_of_the_tree_is_replaced(
    link: Callable[[Path, Path], None], kind: str, own: Path, outside: Path, tmp_path: Path
) -> None:
    link(own, outside)
    source = own
    if kind == "tar":
        source = tmp_path / "tree.tar"
        with tarfile.open(source, "w") as archive:
            archive.add(own, ".")
    tree.unpack(CONTEXT, source, tmp_path / "made")
    sealing.keep_loaders(plain(tmp_path / "made"), tmp_path / "made/boot")
    assert untouched(outside)
    assert (tmp_path / "made/boot" / sealing.LOADERS / "stage3.bin").read_bytes().startswith(b"stage3")


@pytest.mark.parametrize("name", ["boot", "etc", "var"])
def test_a_directory_that_is_a_link_is_refused(name: str, own: Path, outside: Path, tmp_path: Path) -> None:
    (own / name).rename(own / "elsewhere")
    (own / name).symlink_to(outside)
    (own / "usr").mkdir(exist_ok=True)
    with pytest.raises(Refusal, match=f"/{name} of .* is no directory of its own|has no root file system"):
        tree.unpack(CONTEXT, own, tmp_path / "made")
    assert untouched(outside)


@needs.mounting("mkfs.ext4", "sfdisk", "qemu-img")
def test_a_boot_partition_goes_not_where_a_link_leads(own: Path, outside: Path, tmp_path: Path) -> None:
    root, boot = parted(own)
    (root / "boot").rmdir()
    (root / "boot").symlink_to(outside)
    image = disk(tmp_path / "disk.raw", [("ext4", boot), ("ext4", root)])
    tree.unpack(CONTEXT, image, tmp_path / "made")
    assert untouched(outside)
    assert (tmp_path / f"made/boot/vmlinuz-{se_tree.RELEASE}").exists()


@needs.mounting("mkfs.ext4", "sfdisk", "qemu-img")
def test_a_file_system_that_was_not_unmounted_is_refused(own: Path, tmp_path: Path) -> None:
    image = disk(tmp_path / "disk.raw", [("ext4", own)])
    where = f"{image}?offset={MIB}"
    subprocess.run(["debugfs", "-w", "-R", "feature needs_recovery", where], check=True, capture_output=True)
    with pytest.raises(Refusal, match="was not unmounted: shut its system down in order"):
        tree.unpack(CONTEXT, image, tmp_path / "made")


def test_a_pipe_in_place_of_a_file_is_refused(own: Path) -> None:
    os.mkfifo(own / "etc/fstab")
    with pytest.raises(Refusal, match="/etc/fstab of the tree is neither a file nor a directory"):
        check(own)


def test_a_link_that_leads_to_itself_is_refused_where_it_is_followed(own: Path) -> None:
    (own / "etc/machine-id").symlink_to("machine-id")
    (own / "var/lib/dbus").mkdir()
    (own / "var/lib/dbus/machine-id").symlink_to("/etc/machine-id")
    check(own)
    (own / "etc/passwd").symlink_to("passwd")
    with pytest.raises(Refusal, match="/etc/passwd of the tree is a link to outside of it"):
        check(own)


def test_the_agent_of_another_tree_does_not_count(own: Path, tmp_path: Path) -> None:
    packages = own / "usr/lib/python3/dist-packages"
    packages.rename(tmp_path / "packages")
    packages.symlink_to(tmp_path / "packages")
    with pytest.raises(Refusal, match="secex-firstboot is not installed in the tree"):
        rules.agent_version(plain(own))


@pytest.mark.parametrize(("line", "locked"), [("root:x:0", True), ("root::0", False), ("root:xy:0", False)])
def test_an_account_is_as_open_as_either_file_says(line: str, *, locked: bool, own: Path) -> None:
    (own / "etc/passwd").write_text(f"{line}:0:root:/root:/bin/sh\n")
    if locked:
        check(own)
    else:
        with pytest.raises(Refusal, match="accounts that are not locked: root: passwd --lock"):
            check(own)


def test_an_initramfs_that_assembles_disks_is_refused(own: Path) -> None:
    initramfs = own / f"boot/initrd.img-{se_tree.RELEASE}"
    se_tree.make_initramfs(initramfs, "/usr/lib/secex-firstboot/check-root", "/usr/sbin/lvm")
    with pytest.raises(Refusal, match="maps, assembles or fetches disks by itself, with lvm"):
        check(own)


@needs.mounting()
def test_a_tree_in_which_something_is_mounted_is_refused(own: Path, tmp_path: Path) -> None:
    (own / "srv").mkdir()
    with small_disk(own / "srv", 1), pytest.raises(Refusal, match=f"something is mounted in {own}: srv"):
        tree.unpack(CONTEXT, own, tmp_path / "made")


# --- sizes ---


def test_content_is_counted_as_the_file_system_will_have_it(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as stream:
        stream.truncate(1 << 40)
        stream.seek(1 << 30)
        stream.write(b"something")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    assert Content.of(tmp_path).size < 64 << 10
    assert Content.of(tmp_path).files == 4  # with the two directories
    before = Content.of(tmp_path).size
    os.setxattr(tmp_path / "sparse", "user.large", bytes(300))
    assert Content.of(tmp_path).size == before + 4096


def test_a_tree_of_links_and_attributes_has_room(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "directory").mkdir(parents=True)
    for number in range(4000):
        (root / f"link-{number}").symlink_to("directory")
    for number in range(3000):
        (root / f"file-{number}").touch()
        os.setxattr(root / f"file-{number}", "user.signature", number.to_bytes(4, "big") * 75)
    content = Content.of(root)
    size = -(-volumes.file_system_size("ext4", content, 0) // MIB) * MIB
    volumes.make_ext4(CONTEXT, tmp_path / "image", root, content, label="root", size=size, same=SAME)


# --- where a build works ---


def test_a_link_in_place_of_its_directory_is_not_followed(outside: Path, tmp_path: Path) -> None:
    target = Outputs(tmp_path / "linux")
    target.work.symlink_to(outside)
    with pytest.raises(Refusal, match="is no private directory of a build"), outputs.working(target):
        pass
    assert untouched(outside)


def test_a_directory_that_others_may_write_is_none_of_its_own(tmp_path: Path) -> None:
    target = Outputs(tmp_path / "linux")
    target.work.mkdir()
    target.work.chmod(0o777)
    with pytest.raises(Refusal, match="is no private directory of a build"), outputs.working(target):
        pass


def test_a_name_that_e2fsprogs_would_take_apart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"has a \?"), outputs.working(Outputs(tmp_path / "li?ux")):
        pass


# --- published images ---


def file_system(content: Path, image: Path) -> Path:
    made = Content.of(content)
    volumes.make_ext4(CONTEXT, image, content, made, label="boot", size=16 * MIB, same=SAME)
    return image


def boot_of(own: Path) -> Path:
    check(own)
    sealing.keep_loaders(plain(own), own / "boot")
    return own / "boot"


def test_of_boot_comes_what_an_image_starts_with(own: Path, tmp_path: Path) -> None:
    boot = boot_of(own)
    (boot / "more").write_text("that nobody asks for")
    boot_files.fetch(file_system(boot, tmp_path / "image"), tmp_path / "made", sealing.LOADERS_ON_BOOT)
    found = {
        str(path.relative_to(tmp_path / "made")) for path in (tmp_path / "made").rglob("*") if path.is_file()
    }
    names = {f"vmlinuz-{se_tree.RELEASE}", f"initrd.img-{se_tree.RELEASE}", *sealing.LOADERS_ON_BOOT}
    assert found == names | {f"loader/entries/system-{se_tree.RELEASE}.conf"}
    for name in names:
        assert (tmp_path / "made" / name).read_bytes() == (boot / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/../../outside/file", "is no name of a file that an image starts with"),
        ("/a b", "is no name of a file that an image starts with"),
        ("/loader", "/loader on boot is no regular file"),
        ("/link", "/link on boot is no regular file"),
        ("/missing", "/missing is missing on boot"),
    ],
)
def test_an_entry_that_names_something_else_is_refused(
    name: str, says: str, own: Path, outside: Path, tmp_path: Path
) -> None:
    boot = boot_of(own)
    (boot / "link").symlink_to(outside / "file")
    (boot / f"loader/entries/system-{se_tree.RELEASE}.conf").write_text(f"linux {name}\n")
    with pytest.raises(Refusal, match=says):
        boot_files.fetch(file_system(boot, tmp_path / "image"), tmp_path / "made", sealing.LOADERS_ON_BOOT)
    assert untouched(outside)


def test_a_boot_loader_that_is_a_link_is_refused(own: Path, outside: Path, tmp_path: Path) -> None:
    boot = boot_of(own)
    (boot / sealing.LOADERS / "stage3.bin").unlink()
    (boot / sealing.LOADERS / "stage3.bin").symlink_to(outside / "file")
    with pytest.raises(Refusal, match=r"stage3\.bin on boot is no regular file"):
        boot_files.fetch(file_system(boot, tmp_path / "image"), tmp_path / "made", sealing.LOADERS_ON_BOOT)


def test_a_hash_tree_for_less_than_all_proves_nothing(tmp_path: Path) -> None:
    data, hashes = tmp_path / "data", tmp_path / "hashes"
    data.write_bytes(os.urandom(MIB))

    def root_hash(*options: str) -> str:
        command: list[str | Path] = ["veritysetup", "format", *options, data, hashes]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return str(said.split("Root hash:")[1].split()[0])

    proven = root_hash()
    found = volumes.verify(CONTEXT, data, hashes, name="root", root_hash=proven)
    assert found is not None
    assert found.tree_bytes == size_of(hashes)
    hashes.unlink()
    half = root_hash("--data-blocks=128")
    assert volumes.verify(CONTEXT, data, hashes, name="root", root_hash=half) is None


def test_nothing_behind_a_hash_tree_goes_along(
    built: Outputs, hosts: dict[str, Host], tmp_path: Path
) -> None:
    copy = copy_of(built, tmp_path)
    parts = {each.name: each for each in Metadata.load(built.metadata).partitions}
    change(copy.image, parts["boothash"].start + parts["boothash"].size - 4096)
    mine = Outputs(tmp_path / "mine")
    adopted(copy, hosts["mine"], mine)
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", mine.image, raw], check=True)
    with raw.open("rb") as stream:
        stream.seek(parts["boothash"].start + parts["boothash"].size - 4096)
        assert stream.read(8) == bytes(8)


def test_an_image_that_is_for_other_hosts_is_damaged(built: Outputs) -> None:
    other = HostKey(document="another.crt", hash="e" * 64)
    metadata = Metadata.load(built.metadata).model_copy(update={"host_keys": (other,)})
    found = inspect.inspect(CONTEXT, built.image, metadata=metadata)
    assert found.damage == ["a boot image is for other hosts than the metadata say"]


def test_a_default_that_is_not_offered_is_told(built: Outputs, tmp_path: Path) -> None:
    """A copy of the program table's first program, with another place to start at, for nobody's choice."""
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", built.image, raw], check=True)
    with raw.open("r+b") as stream:
        record = stream.read(512)
        (table_at,) = struct.unpack_from(">Q", record, 16)
        stream.seek(table_at * 512)
        table = bytearray(stream.read(512))
        (program_at,) = struct.unpack_from(">Q", table, 16)
        stream.seek(program_at * 512)
        program = bytearray(stream.read(512))
        execute = next(at for at in range(32, 512, 32) if program[at + 23] == 1)
        program[execute + 24] ^= 1
        free = partition(built, "se") // 512 - 8
        stream.seek(free * 512)
        stream.write(program)
        table[32:48] = table[16:32]
        struct.pack_into(">Q", table, 16, free)
        stream.seek(table_at * 512)
        stream.write(table)
    found = inspect.inspect(CONTEXT, raw, metadata=Metadata.load(built.metadata))
    assert "what starts if nobody chooses is none of those that the boot map offers" in found.damage
    assert [each.default for each in found.boot_images] == [True, False]


def test_verification_without_anything_that_proves_is_no_success(built: Outputs, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="nothing says what the hash trees have to prove: --metadata"):
        inspect.inspect(CONTEXT, built.image, verify=True)
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", built.image, raw], check=True)
    subprocess.run(["sfdisk", "--quiet", "--delete", raw, "5", "6"], check=True)
    found = inspect.inspect(CONTEXT, raw, metadata=Metadata.load(built.metadata), verify=True)
    assert found.kind is Kind.BEGUN
    assert found.damage == ["there is no hash tree, and so nothing is proven: it is a guest's disk"]


def test_a_file_system_that_cannot_be_read_is_damage(built: Outputs, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", built.image, raw], check=True)
    subprocess.run(["sfdisk", "--quiet", "--delete", raw, "5", "6"], check=True)
    with raw.open("r+b") as stream:
        for name in ("boot", "root"):
            stream.seek(partition(built, name))
            stream.write(b"LUKS\xba\xbe")
        stream.seek(partition(built, "se") + 1024 + 0x63)
        stream.write(b"\x80")  # a feature that nobody knows
    assert any(
        "cannot be read in the file system of se" in each for each in inspect.inspect(CONTEXT, raw).damage
    )


def test_half_a_boot_image_is_told(built: Outputs, tmp_path: Path) -> None:
    raw, file = tmp_path / "raw", tmp_path / "sdboot"
    subprocess.run(["qemu-img", "convert", "-O", "raw", built.image, raw], check=True)
    where = f"{raw}?offset={partition(built, 'se')}"
    subprocess.run(["debugfs", "-R", f"dump /sdboot {file}", where], check=True, capture_output=True)
    os.truncate(file, 100_000)
    with pytest.raises(FirstbootError, match="encrypted pages, and 100000 bytes in all: it is cut short"):
        inspect.inspect(CONTEXT, file)


def test_an_image_that_was_enlarged_is_sound(built: Outputs, tmp_path: Path) -> None:
    copy = copy_of(built, tmp_path)
    subprocess.run(["qemu-img", "resize", "-q", copy.image, "2G"], check=True)
    assert look(copy).damage == []


def test_a_disk_larger_than_any_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "huge.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "100T"], check=True)
    with pytest.raises(Refusal, match="says that it has 109951162777600 bytes"):
        inspect.inspect(CONTEXT, image)


def test_a_name_with_a_colon_is_a_file(
    built: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(built, tmp_path)
    copy.image.rename(tmp_path / "nbd:127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    assert secex.main(["inspect", "nbd:127.0.0.1:9", "--metadata", "copy.json"]) == 0
    assert "SE-ready image" in capsys.readouterr().out


def test_metadata_that_are_a_pipe_are_refused(built: Outputs, tmp_path: Path) -> None:
    copy = copy_of(built, tmp_path)
    copy.metadata.unlink()
    os.mkfifo(copy.metadata)
    with pytest.raises(Refusal, match="it is missing or no regular file"):
        Metadata.load(copy.metadata)


def test_a_terminal_gets_no_commands(
    built: Outputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(built, tmp_path)
    values = json.loads(copy.metadata.read_text()) | {"\x1b]0;title\x07": 1}
    copy.metadata.write_text(json.dumps(values))
    assert secex.main(["inspect", str(copy.image)]) == 3
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\\x1b]0;title\\x07" in said


def test_a_partition_se_without_room_is_refused_before_anything_is_made(
    tree: Path, hosts: dict[str, Host], tmp_path: Path
) -> None:
    wanted = made_of(tree, hosts, sizes=recipe.Sizes(se=5))
    with pytest.raises(Refusal, match="partition se is too small by"):
        build.build(CONTEXT, wanted, Outputs(tmp_path / "linux"), sealed=False)
