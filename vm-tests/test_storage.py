"""What is under storage, and the encrypt steps, on real dm-crypt, dm-integrity and dm-verity in one guest.

inside/storage.py makes the observations; here is what they have to be.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness import debian, inside, null_header, remains, sample
from harness.guest import Disk
from harness.remains import Published

from secex_firstboot.contract.partitions import HASH_TREES, NUMBERS

MIB = 1 << 20
BOOT, ROOT, HEADROOM = 16 * MIB, 64 * MIB, 32 * MIB
DISK = 320 * MIB
SECTOR_SIZES = (4096, 512)
# serial: options that make boot and root; the first disk has sectors of 4096 bytes, the second of 512.
SE_DISKS = {
    "xfs4096": (["mkfs.ext4", "-b", "4096"], ["mkfs.xfs", "-s", "size=4096"]),
    "xfs512": (["mkfs.ext4", "-b", "1024"], ["mkfs.xfs", "-s", "size=512"]),
    "ext4": (["mkfs.ext4", "-b", "4096"], ["mkfs.ext4", "-b", "4096"]),
}
PARTITIONS = {  # name: MiB from the start of the disk, MiB
    "se": (1, 8),
    "boot": (9, 64),
    "root": (73, ROOT // MIB),
    "boothash": (73 + ROOT // MIB, 2),
    "roothash": (75 + ROOT // MIB, 2),
}
# --unsupported: smaller than 300 MiB; the rest keeps the random content of unused blocks.
QUIET = {"mkfs.ext4": ["-q", "-E", "nodiscard,lazy_itable_init=0"], "mkfs.xfs": ["-qfK", "--unsupported"]}
# Of the three, one is cut at every kind of record and meets a flipped bit; the others only once they have
# grown. Each open takes a guest seconds, so boot is encrypted once.
INTERRUPTED = "xfs4096"
ENCRYPTED = {INTERRUPTED: ["root"], "xfs512": ["boot", "root"], "ext4": ["root"]}
OTHERS = sample.kind("other disks", [serial for serial in SE_DISKS if serial != INTERRUPTED])
SECTORS_OF_VOLUMES = {"xfs4096": [4096, 4096], "xfs512": [512, 512], "ext4": [4096, 4096]}

Result = dict[str, Any]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Result:
    work = tmp_path_factory.mktemp("storage")
    se_disks = sample.wanted(request, "serial")
    facts: dict[str, Any] = {
        "headroom": HEADROOM,
        "disks": {serial: make_se_disk(work, serial) for serial in se_disks},
    }
    (work / "facts").write_text(json.dumps(facts).ljust(4096, "\0"))
    make_sparse(work / "scratch", 192 * MIB)
    null_header.make(work / "null-keyslot")
    serials = ("facts", "scratch", "null-keyslot", *se_disks)
    disks = [Disk(work / serial, serial, format="raw") for serial in serials]
    output = debian.REPOSITORY / "build" / "storage"
    output.mkdir(parents=True, exist_ok=True)
    script = debian.REPOSITORY / "vm-tests/inside/storage.py"
    published = {serial: published_on(work / serial, serial) for serial in se_disks}
    before = {serial: published[serial].found_in(work / serial) for serial in se_disks}
    answer = inside.run(script, disks=disks, log=output / "console.log")
    after = {serial: published[serial].found_in(work / serial) for serial in se_disks}
    return answer | {"facts": facts, "published, before": before, "published, afterwards": after}


def published_on(disk: Path, serial: str) -> Published:
    """What the volumes that are encrypted hold, and both hash trees."""
    places = [PARTITIONS[name] for name in (*ENCRYPTED[serial], *HASH_TREES.values())]
    return Published(remains.read(disk, start * MIB, size * MIB) for start, size in places)


def make_sparse(path: Path, size: int) -> None:
    with path.open("wb") as stream:
        stream.truncate(size)


def make_se_disk(work: Path, serial: str) -> dict[str, Any]:
    """A disk as the agent finds it, but for what boots; its root hashes, and digests of its volumes."""
    path = work / serial
    make_sparse(path, DISK)
    lines = [
        f"{NUMBERS[name]} : start={start}MiB, size={size}MiB, name={name}"
        for name, (start, size) in PARTITIONS.items()
    ]
    script = "\n".join(["label: gpt", *lines])
    subprocess.run(["sfdisk", "--quiet", path], input=script, text=True, check=True)
    make_sparse(work / "se", PARTITIONS["se"][1] * MIB)
    subprocess.run(["mkfs.ext4", "-q", work / "se"], check=True)
    put(work / "se", path, "se")
    hashes, digests = {}, {}
    for name, size, command in zip(("boot", "root"), (BOOT, ROOT), SE_DISKS[serial], strict=True):
        source, tree = work / name, work / f"{name}hash"
        source.write_bytes(os.urandom(size))
        subprocess.run([command[0], *QUIET[command[0]], *command[1:], source], check=True)
        tree.unlink(missing_ok=True)
        made = subprocess.run(
            ["veritysetup", "format", source, tree], check=True, capture_output=True, text=True
        )
        hashes[name] = made.stdout.split("Root hash:")[1].split()[0]
        digests[name] = hashlib.sha256(source.read_bytes()).hexdigest()
        put(source, path, name)
        put(tree, path, tree.name)
    return {
        "root hashes": hashes,
        "digests": digests,
        "encrypted": ENCRYPTED[serial],
        "interrupted": serial == INTERRUPTED,
    }


def put(content: Path, disk: Path, name: str) -> None:
    with disk.open("r+b") as stream:
        stream.seek(PARTITIONS[name][0] * MIB)
        stream.write(content.read_bytes())


# --- a volume made elsewhere and then placed on the disk ---


@pytest.fixture(params=SECTOR_SIZES, ids=lambda size: f"{size}-byte-sectors")
def volume(result: Result, request: pytest.FixtureRequest) -> Result:
    found = result[f"volume {request.param}"]
    assert isinstance(found, dict)
    assert found["sector size"] == request.param
    return found


@pytest.mark.parametrize("how", ["with journal", "without header on disk"])
def test_a_placed_volume_gives_back_what_was_written(volume: Result, how: str) -> None:
    assert volume["written without journal"] is None
    assert volume[f"read {how}"] is True


def test_a_flipped_bit_on_the_disk_is_an_io_error_in_its_sector_alone(volume: Result) -> None:
    assert volume["read errors"][:3] == [None, "EILSEQ", None]


def test_a_sector_that_was_never_written_is_an_io_error(volume: Result) -> None:
    assert volume["read errors"][3] == "EILSEQ"


def test_a_wrong_key_opens_nothing(volume: Result) -> None:
    refusal, mappings = volume["wrong key"]
    assert "the key opens no keyslot" in refusal
    assert mappings == []


def test_the_least_device_has_room_for_source_and_tail_and_little_more(volume: Result) -> None:
    assert len(volume["room"]) == 2
    assert all(0 <= room < 4096 for room in volume["room"].values()), volume["room"]


# --- a volume that Ignition made, opened anew ---


def test_a_volume_of_the_config_is_opened_anew_with_a_header_made_here(result: Result) -> None:
    """The right device, known by its UUID, encrypted as before, with the same content."""
    assert result["reopen"]["reopened"] == [True] * 4


def test_a_keyslot_that_every_key_opens_is_seen_through(result: Result) -> None:
    """cryptsetup opens it, and the mapping looks as it should: only that the host knows its volume key."""
    opens, cipher, refusal = result["reopen"]["null keyslot"]
    assert (opens, cipher) == (True, "aes-xts-plain64")
    assert "the key opens no keyslot of its own" in refusal


# --- an SE-ready disk, encrypted in place ---


@pytest.fixture(params=[INTERRUPTED, *OTHERS])
def serial(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def se_disk(result: Result, serial: str) -> Result:
    found = result[serial]
    assert isinstance(found, dict)
    return found


def test_the_sector_size_is_what_the_file_systems_allow(se_disk: Result, serial: str) -> None:
    assert se_disk["sector sizes"] == SECTORS_OF_VOLUMES[serial]


def test_a_wrong_root_hash_is_refused_and_leaves_nothing_open(se_disk: Result) -> None:
    refusal, mappings, error_with_the_right_one = se_disk["wrong root hash"]
    assert "does not match the root hash" in refusal
    assert mappings == []
    assert error_with_the_right_one is None


def test_a_block_that_was_zeros_is_zeros_and_any_other_is_proven(se_disk: Result) -> None:
    assert se_disk["damaged blocks"] == {"zeros": True, "other": "EIO"}


def test_a_flipped_bit_in_the_source_stops_the_copy_and_leaves_nothing_open(result: Result) -> None:
    refusal, flipped, mappings = result[INTERRUPTED]["bad source"]
    assert refusal.startswith("cannot read byte ")
    assert flipped - 4 * MIB < int(refusal.split()[3]) <= flipped
    assert mappings == []


def test_the_content_is_the_same_after_encryption_that_was_cut_again_and_again(
    result: Result, serial: str
) -> None:
    digests = result["facts"]["disks"][serial]["digests"]
    for name in ENCRYPTED[serial]:
        digest, cuts_that_never_came = result[serial][f"content of {name}"]
        assert digest == digests[name]
        assert cuts_that_never_came == []


def test_the_file_system_is_clean_afterwards(se_disk: Result, serial: str) -> None:
    for name in ENCRYPTED[serial]:
        tool, code, output = se_disk[f"file system of {name}"]
        assert code == 0, f"{tool}: {output}"


def test_root_grows_by_the_headroom(se_disk: Result) -> None:
    assert se_disk["growth of root"] == HEADROOM


def test_both_ends_of_the_volume_can_be_read_and_no_more_than_needed_is_written(se_disk: Result) -> None:
    assert se_disk["read errors"] == [None, "EILSEQ", None]


@pytest.mark.parametrize("serial", OTHERS)
def test_the_kernel_has_no_integrity_error_to_tell_of(result: Result, serial: str) -> None:
    assert result[serial]["integrity errors"] == []


def test_nothing_of_the_image_stays_on_the_disk(result: Result, serial: str) -> None:
    assert (
        len(result["published, before"][serial]) * 512 > ROOT * 0.8
    )  # so it would be found; mkfs writes zeros to tables
    assert result["published, afterwards"][serial] == []


def test_nothing_stays_open(result: Result) -> None:
    assert result["mappings left"] == []
