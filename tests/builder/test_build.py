"""An image is built, sealed, adopted and looked at, of a tree that is the least there can be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from harness import ultravisor
from harness.site import Host, make_host
from support import host_keys, needs, se_tree
from support.builds import CONTEXT, adopted, change, copy_of, look, made_of, opened, partition, sdboot

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.builder import build, inspect, recipe, volumes
from secex_firstboot.builder.inspect import Kind, Verity
from secex_firstboot.builder.outputs import Outputs
from secex_firstboot.builder.recipe import Trust
from secex_firstboot.contract.key_kind import KeyKind
from secex_firstboot.contract.metadata import Metadata
from secex_firstboot.hostkeys import document
from secex_firstboot.storage import progress_record

pytestmark = needs.programs(
    "mkfs.ext4", "debugfs", "veritysetup", "qemu-img", "qemu-io", "sfdisk", "gpg", "cpio"
)

PRIVATE_KEY = "usr/lib/coreos/ignition.asc"


# --- build ---


def test_a_build_leaves_image_public_key_and_metadata(built: Outputs) -> None:
    assert sorted(path.name for path in built.image.parent.iterdir()) == [
        "linux.json",
        "linux.pub.asc",
        "linux.qcow2",
    ]
    metadata = Metadata.load(built.metadata)
    for name, digest in metadata.outputs.items():
        assert subprocess.check_output(["sha256sum", built.image.with_name(name)], text=True).startswith(
            digest
        )
    assert built.public_key.read_bytes().startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----")
    assert metadata.boot_entry.release == se_tree.RELEASE
    assert {"e2fsprogs", "cryptsetup", "qemu-img"} <= metadata.tools.keys()


def test_its_hash_trees_prove_everything_and_its_boot_map_leads_to_the_image(
    built: Outputs, hosts: dict[str, Host]
) -> None:
    found = look(built, verify=True, hosts=(hosts["first"],))
    assert (found.kind, found.damage) == (Kind.IMAGE, [])
    assert {part.name: part.verity for part in found.partitions if part.verity} == {
        "boot": Verity.PROVEN,
        "root": Verity.PROVEN,
    }
    assert found.first_boot == "has the room it needs"
    (image,) = found.boot_images
    assert [key.name for key in image.host_keys] == ["first"]
    assert image.default
    assert not image.dumping_allowed


def test_the_boot_image_has_the_root_hashes_and_the_private_key(
    built: Outputs, hosts: dict[str, Host], tree: Path, tmp_path: Path
) -> None:
    metadata = Metadata.load(built.metadata)
    image = opened(built, hosts["first"], tmp_path)
    words = image.command_line.split()
    assert "ignition.firstboot" in words
    for name, volume in metadata.volumes.items():
        assert f"{name}fs.roothash={volume.root_hash}" in words
    assert image.kernel.startswith((tree / f"boot/vmlinuz-{se_tree.RELEASE}").read_bytes())
    assert b"-----BEGIN PGP PRIVATE KEY BLOCK-----" in image.ramdisk
    assert PRIVATE_KEY.encode() in image.ramdisk


def test_the_private_key_is_nowhere_else(built: Outputs, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", built.image, raw], check=True)
    for file in (raw, built.public_key, built.metadata):
        assert b"PGP PRIVATE KEY" not in file.read_bytes()


def test_what_the_tree_has_is_in_the_file_systems(built: Outputs, tree: Path, tmp_path: Path) -> None:
    metadata = Metadata.load(built.metadata)
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", built.image, raw], check=True)
    (root,) = (part for part in metadata.partitions if part.name == "root")
    where = f"{raw}?offset={root.start}"
    content = subprocess.run(
        ["debugfs", "-R", "cat /usr/bin/hard-link", where], capture_output=True, check=True
    ).stdout
    assert content == (tree / "usr/bin/program").read_bytes()
    listed = subprocess.run(
        ["debugfs", "-R", "stat /usr/bin/program", where], capture_output=True, check=True, text=True
    ).stdout
    assert "Links: 2 " in listed
    assert (
        "/dev/mapper/root / ext4"
        in subprocess.run(
            ["debugfs", "-R", "cat /etc/fstab", where], capture_output=True, check=True, text=True
        ).stdout
    )


def test_the_tree_stays_as_it_was(built: Outputs, tree: Path) -> None:
    assert not (tree / "etc/fstab").exists()
    assert not (tree / "boot/loader").exists()


@pytest.mark.parametrize("kind", ["directory", "tar"])
def test_the_same_input_and_time_make_the_same_file_systems(
    kind: str, tree: Path, hosts: dict[str, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    source = tree
    if kind == "tar":
        source = tmp_path / "tree.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            archive.add(tree, ".")
    found = []
    for name, mask in (("one", 0o022), ("two", 0o077)):
        before = os.umask(mask)
        try:
            found.append(build.build(CONTEXT, made_of(source, hosts), Outputs(tmp_path / name)))
        finally:
            os.umask(before)
    assert found[0].volumes == found[1].volumes
    assert found[0].partitions == found[1].partitions
    assert found[0].config_key != found[1].config_key
    assert found[0].outputs != found[1].outputs


def test_a_given_config_key_is_taken(
    tree: Path, hosts: dict[str, Host], built: Outputs, tmp_path: Path
) -> None:
    image = opened(built, hosts["first"], tmp_path)
    start = image.ramdisk.index(b"-----BEGIN PGP PRIVATE")
    end = image.ramdisk.index(b"-----END PGP PRIVATE KEY BLOCK-----", start)
    key = tmp_path / "key.asc"
    key.write_bytes(image.ramdisk[start:end] + b"-----END PGP PRIVATE KEY BLOCK-----\n")
    made = build.build(CONTEXT, made_of(tree, hosts, config_key=key), Outputs(tmp_path / "again"))
    assert made.config_key == Metadata.load(built.metadata).config_key


def test_what_opens_an_image_is_kept_on_request_for_its_maker_alone(
    tree: Path, hosts: dict[str, Host], built: Outputs, tmp_path: Path
) -> None:
    assert not list(built.image.parent.glob("*.header*")) + list(built.image.parent.glob("*.cck"))
    outputs = Outputs(tmp_path / "linux")
    build.build(CONTEXT, made_of(tree, hosts, keep_header=True, keep_cck=True), outputs)
    kept = {suffix: outputs.named(suffix) for suffix in (".header", ".header-key", ".cck")}
    assert {path.stat().st_mode & 0o777 for path in kept.values()} == {0o600}
    header = kept[".header"].read_bytes()
    assert header in sdboot(outputs, tmp_path)
    area = AESGCM(kept[".header-key"].read_bytes()).decrypt(header[16:28], header[-144:], header[:-144])
    assert area[:32] == kept[".cck"].read_bytes()
    assert not any("header" in name or "cck" in name for name in Metadata.load(outputs.metadata).outputs)


def test_documents_are_proven_as_first_boot_proves_them(
    tree: Path, hosts: dict[str, Host], tmp_path: Path
) -> None:
    needs.require("openssl")
    files = {}
    for name, content in (host_keys.CHAIN.certificates() | host_keys.CHAIN.crls()).items():
        files[name] = tmp_path / name
        files[name].write_bytes(content)
    trust = Trust(
        roots=(files["root.crt"],),
        certificates=tuple(
            path for name, path in files.items() if name.endswith(".crt") and name != "root.crt"
        ),
        crls=tuple(path for name, path in files.items() if name.endswith(".crl")),
        offline=True,
    )
    outputs = Outputs(tmp_path / "proven")
    made = build.build(CONTEXT, made_of(tree, hosts, trust=trust), outputs)
    assert len(made.roots) == 1
    assert b"usr/lib/secex-firstboot/certs/owner-0.crt" in opened(outputs, hosts["first"], tmp_path).ramdisk
    forged = tmp_path / "forged.crt"
    forged.write_bytes(host_keys.forged())
    with pytest.raises(Refusal, match=r"the host-key document forged\.crt is not signed"):
        build.build(CONTEXT, made_of(tree, hosts, trust=trust, host_keys=(forged,)), outputs)
    assert look(outputs).damage == []


# --- seal, adopt ---


def test_an_adopted_image_has_the_same_volumes_and_nothing_of_the_publishers(
    built: Outputs, hosts: dict[str, Host], tmp_path: Path
) -> None:
    mine, theirs = Outputs(tmp_path / "mine"), Metadata.load(built.metadata)
    made = adopted(built, hosts["mine"], mine)
    assert made.volumes == theirs.volumes
    assert made.config_key != theirs.config_key
    found = look(mine, verify=True, hosts=(hosts["mine"],))
    assert found.damage == []
    assert [key.name for key in found.boot_images[0].host_keys] == ["mine"]
    assert (
        opened(mine, hosts["mine"], tmp_path).command_line
        == opened(built, hosts["first"], tmp_path).command_line
    )
    with pytest.raises(ultravisor.Refused):
        opened(mine, hosts["first"], tmp_path)
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", mine.image, raw], check=True)
    everything = raw.read_bytes()
    assert sdboot(mine, tmp_path)[0x14000:][:4096] in everything
    assert sdboot(built, tmp_path)[0x14000:][:4096] not in everything


def test_an_image_that_was_built_unsealed_is_sealed_elsewhere(
    tree: Path, hosts: dict[str, Host], tmp_path: Path
) -> None:
    outputs = Outputs(tmp_path / "linux")
    made = build.build(CONTEXT, made_of(tree, hosts, host_keys=()), outputs, sealed=False)
    assert (made.config_key, made.host_keys) == (None, ())
    assert not outputs.public_key.exists()
    assert "there is no boot record" in "".join(look(outputs).damage)
    adopted(outputs, hosts["first"], outputs)
    assert look(outputs, verify=True).damage == []
    assert outputs.public_key.exists()


@pytest.mark.parametrize("name", ["boot", "root", "boothash", "roothash"])
def test_a_changed_image_is_damaged_and_not_adopted(
    name: str, built: Outputs, hosts: dict[str, Host], tmp_path: Path
) -> None:
    copy = copy_of(built, tmp_path)
    change(copy.image, partition(built, name) + 4096 + 70)
    volume = name.removesuffix("hash")
    found = look(copy, verify=True)
    assert found.damage == [f"the content of {volume} is not what its root hash proves"]
    assert look(copy).damage == []
    with pytest.raises(Refusal, match=f"{volume} of .*copy.qcow2 is not what the metadata say"):
        adopted(copy, hosts["mine"], Outputs(tmp_path / "mine"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.json", "copy.qcow2"]


def test_metadata_of_another_image_are_refused(
    built: Outputs, hosts: dict[str, Host], tmp_path: Path
) -> None:
    copy = copy_of(built, tmp_path)
    values = json.loads(copy.metadata.read_text())
    values["volumes"]["root"]["root_hash"] = "0" * 64
    copy.metadata.write_text(json.dumps(values))
    with pytest.raises(Refusal, match=r"root of .* is not what the metadata say"):
        adopted(copy, hosts["mine"], Outputs(tmp_path / "mine"))
    values["partitions"][0]["size"] += 4096
    copy.metadata.write_text(json.dumps(values))
    with pytest.raises(Refusal, match="has other partitions than the metadata say"):
        adopted(copy, hosts["mine"], Outputs(tmp_path / "mine"))


@pytest.mark.parametrize(
    ("change_it", "says"),
    [
        (lambda values: values.pop("volumes"), "volumes: Field required"),
        (lambda values: values.update(format=2), "format: Input should be 1"),
        (lambda values: values.update(more=2), "more: Extra inputs are not permitted"),
        (lambda values: values["volumes"]["boot"].update(root_hash="A" * 64), "String should match pattern"),
    ],
)
def test_metadata_of_another_form_are_refused(
    change_it: Callable[[dict[str, Any]], object], says: str, built: Outputs, tmp_path: Path
) -> None:
    values = json.loads(built.metadata.read_text())
    change_it(values)
    path = tmp_path / "other.json"
    path.write_text(json.dumps(values))
    with pytest.raises(Refusal, match=says):
        Metadata.load(path)


# --- inspect ---


def test_a_bare_boot_image_is_looked_at(built: Outputs, hosts: dict[str, Host], tmp_path: Path) -> None:
    file = tmp_path / "sdboot"
    file.write_bytes(sdboot(built, tmp_path))
    names = [document.parse("its host", hosts["first"].document.read_bytes())]
    found = inspect.inspect(CONTEXT, file, documents=names)
    assert found.kind is Kind.BOOT_IMAGE
    assert [key.name for key in found.boot_images[0].host_keys] == ["its host"]
    file.write_bytes(b"no image".ljust(1 << 20, b"\0"))
    with pytest.raises(FirstbootError, match="0 SE headers instead of one"):
        inspect.inspect(CONTEXT, file)


def test_an_image_for_a_hybrid_host_says_so_and_is_opened_by_it(built: Outputs, tmp_path: Path) -> None:
    host = make_host("h", tmp_path / "hostkeys", host_keys.CHAIN, hybrid=True)
    mine = Outputs(tmp_path / "mine")
    adopted(built, host, mine)
    (key,) = Metadata.load(mine.metadata).host_keys
    assert (key.kind, key.hash) == (KeyKind.HYBRID, ultravisor.host_key_hash(host.key).hex())
    (found,) = look(mine).boot_images
    assert (found.header_version, found.header_size) == ("0x200", 2240)
    assert [(each.kind, each.hash) for each in found.host_keys] == [(key.kind, key.hash)]
    assert opened(mine, host, tmp_path).command_line


def test_a_boot_record_that_is_gone_is_damage(built: Outputs, tmp_path: Path) -> None:
    copy = copy_of(built, tmp_path)
    change(copy.image, 0)
    assert look(copy).damage == ["the disk does not start: there is no boot record"]


def test_a_raw_and_a_compressed_image_are_looked_at_like_any_other(built: Outputs, tmp_path: Path) -> None:
    wanted = look(built)
    for number, options in enumerate((["-O", "raw"], ["-c", "-O", "qcow2"])):
        image = tmp_path / f"image-{number}"
        subprocess.run(["qemu-img", "convert", *options, built.image, image], check=True)
        assert inspect.inspect(CONTEXT, image, metadata=Metadata.load(built.metadata)) == wanted


def test_a_truncated_image_is_refused_or_damaged(built: Outputs, tmp_path: Path) -> None:
    content = built.image.read_bytes()
    for part in (100, 4096, len(content) // 3, len(content) - (1 << 20)):
        image = tmp_path / "cut.qcow2"
        image.write_bytes(content[:part])
        try:
            found = inspect.inspect(CONTEXT, image, metadata=Metadata.load(built.metadata), verify=True)
        except FirstbootError:
            continue
        assert found.damage


def test_what_first_boot_lacks_is_told(tree: Path, hosts: dict[str, Host], tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "linux")
    build.build(CONTEXT, made_of(tree, hosts, sizes=recipe.Sizes(behind=1)), outputs)
    found = look(outputs)
    assert found.damage == []
    assert re.search(r"is too small by \d+ MiB: power off and enlarge the image", found.first_boot)


def test_boot_may_fill_its_partition(tree: Path, hosts: dict[str, Host], tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "linux")
    build.build(CONTEXT, made_of(tree, hosts, sizes=recipe.Sizes(boot_room=0)), outputs)
    found = look(outputs)
    boot = next(each for each in found.partitions if each.name == "boot")
    assert boot.size == Metadata.load(outputs.metadata).volumes["boot"].size
    assert (found.first_boot, found.damage) == ("has the room it needs", [])


def test_a_guests_disk_is_looked_at_in_the_middle_of_its_first_boot_and_after_it(
    built: Outputs, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", built.image, disk], check=True)

    def look_again() -> tuple[Kind, list[str], list[str]]:
        found = inspect.inspect(CONTEXT, disk, metadata=Metadata.load(built.metadata))
        return found.kind, [each.content for each in found.partitions], found.damage

    def encrypt(name: str) -> None:
        with disk.open("r+b") as stream:
            stream.seek(partition(built, name))
            stream.write(b"LUKS\xba\xbe".ljust(4096, b"\0"))

    subprocess.run(["sfdisk", "--quiet", "--delete", disk, "5", "6"], check=True)
    assert look_again() == (Kind.BEGUN, ["ext4", "not yet encrypted", "not yet encrypted"], [])
    encrypt("boot")
    assert look_again() == (Kind.BEGUN, ["ext4", "encrypted", "not yet encrypted"], [])
    encrypt("root")
    assert look_again() == (Kind.GUEST, ["ext4", "encrypted", "encrypted"], [])
    (tmp_path / "record").write_text("as far as the copy has come")
    se = f"{disk}?offset={partition(built, 'se')}"
    command = f"write {tmp_path / 'record'} {progress_record.NAME}"
    subprocess.run(["debugfs", "-w", "-R", command, se], check=True, capture_output=True)
    assert look_again()[0] is Kind.BEGUN


# --- what goes wrong ---


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Outputs]:
    """A build's outputs, which have to stay as they are."""
    outputs = Outputs(tmp_path / "out/linux")
    outputs.image.parent.mkdir()
    for path in (outputs.image, outputs.public_key, outputs.metadata):
        path.write_text("old")
    yield outputs
    assert {path.name: path.read_text() for path in outputs.image.parent.iterdir()} == dict.fromkeys(
        ("linux.qcow2", "linux.pub.asc", "linux.json"), "old"
    )


def test_a_source_that_is_none_is_refused(old: Outputs, hosts: dict[str, Host], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"what is this" * 1000)
    (tmp_path / "empty").mkdir()
    for name, says in (
        ("missing", "missing is missing"),
        ("file", "file cannot be unpacked"),
        ("empty", "empty has no root file system: no /etc and /usr"),
    ):
        with pytest.raises(Refusal, match=says):
            build.build(CONTEXT, made_of(tmp_path / name, hosts), old)


def test_without_a_document_nothing_is_begun(old: Outputs, tree: Path, hosts: dict[str, Host]) -> None:
    with pytest.raises(Refusal, match="no host-key document is given"):
        build.build(CONTEXT, made_of(tree, hosts, host_keys=()), old)


def test_a_document_on_another_curve_is_refused(
    old: Outputs, tree: Path, hosts: dict[str, Host], tmp_path: Path
) -> None:
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:secp384r1",
                "-nodes",
            ),
            *("-subj", "/CN=P-384", "-keyout", "/dev/null", "-out", tmp_path / "p384.crt"),
        ],
        check=True,
        capture_output=True,
    )
    with pytest.raises(Refusal, match="secp"):
        build.build(CONTEXT, made_of(tree, hosts, host_keys=(tmp_path / "p384.crt",)), old)


def test_without_room_for_it_nothing_is_left(
    old: Outputs, tree: Path, hosts: dict[str, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(volumes, "make_tree", full)
    with pytest.raises(
        FirstbootError, match="cannot be made: No space left on device: make sure that there is"
    ):
        build.build(CONTEXT, made_of(tree, hosts), old)


def test_what_a_killed_build_has_left_is_removed_by_the_next(
    tree: Path, hosts: dict[str, Host], tmp_path: Path
) -> None:
    outputs = Outputs(tmp_path / "linux")
    outputs.work.mkdir(mode=0o700)
    (outputs.work / "root/etc").mkdir(parents=True)
    (outputs.work / "root/etc/file").write_text("of a build that was killed")
    build.build(CONTEXT, made_of(tree, hosts), outputs)
    assert not outputs.work.exists()


def test_two_builds_at_one_place_do_not_mix(tree: Path, hosts: dict[str, Host], tmp_path: Path) -> None:
    from secex_firstboot.builder import outputs

    target = Outputs(tmp_path / "linux")
    with outputs.working(target), pytest.raises(Refusal, match="another build is at work"):
        build.build(CONTEXT, made_of(tree, hosts), target)


def test_a_partition_se_without_room_is_refused(old: Outputs, tree: Path, hosts: dict[str, Host]) -> None:
    with pytest.raises(Refusal, match=r"partition se is too small by .* MiB for the boot image"):
        build.build(CONTEXT, made_of(tree, hosts, sizes=recipe.Sizes(se=20)), old)


@pytest.mark.parametrize("value", ["now", "-1", "1" * 11])
def test_a_time_that_is_none_is_refused(
    value: str, old: Outputs, tree: Path, hosts: dict[str, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
    with pytest.raises(Refusal, match="SOURCE_DATE_EPOCH is no number of seconds"):
        build.build(CONTEXT, made_of(tree, hosts), old)
