"""``secex evidence``, as a person and as a program reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support import REPOSITORY

from secex_firstboot.cli import secex
from secex_firstboot.cli.verb import Exit
from secex_firstboot.contract.boot_image import State
from secex_firstboot.contract.evidence import BootImage, Evidence
from secex_firstboot.contract.metadata import BootEntry, Metadata, Partition, Volume
from secex_firstboot.contract.partitions import LAYOUT
from secex_firstboot.running import evidence, system

SCHEMA = json.loads((REPOSITORY / "docs/evidence.schema.json").read_text())
KERNEL, HOST, HASH = "0a" * 32, "1a" * 32, "2a" * 32
FOUND = Evidence(
    running=7,
    images=(
        BootImage(
            generation=7,
            state=State.UP,
            kernel="6.12\x1b[31m",
            command_line="root=/dev/mapper/root quiet",
            header="SUJNU2VjRXg=",
            host_keys=(HOST,),
            inputs={"kernel": KERNEL, "initramfs 0": KERNEL},
        ),
    ),
    root_hashes={"boot": HASH, "root": HASH},
)


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "check_provisioned", lambda root, nothing: None)
    monkeypatch.setattr(evidence, "gather", lambda context, root: FOUND)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "guest.json"
    path.write_text(FOUND.model_dump_json())
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.json"
    metadata(KERNEL).write(path)
    return path


def metadata(kernel: str) -> Metadata:
    partitions = (
        Partition(number=each.number, name=each.name, start=at << 20, size=1 << 20)
        for at, each in enumerate(LAYOUT, start=1)
    )
    volume = Volume(file_system="ext4", size=1 << 20, root_hash=HASH)
    return Metadata(
        disk_size=1 << 30,
        partitions=tuple(partitions),
        volumes={"boot": volume, "root": volume},
        boot_entry=BootEntry(release="6.12", kernel=kernel, initramfs=(KERNEL,), options="quiet"),
        agent="0.1.0",
    )


def printed(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    code = secex.main(["evidence", *map(str, words)])
    return code, capsys.readouterr().out


@pytest.mark.usefixtures("guest")
def test_in_a_guest_it_is_told_as_the_schema_says(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = printed(capsys, "--json")
    assert code == Exit.DONE
    jsonschema.validate(found := json.loads(text), SCHEMA)
    assert found["attestation"] is None
    assert Evidence.parse("it", text.encode()) == FOUND


@pytest.mark.usefixtures("guest")
def test_people_read_what_runs_for_whom_and_that_nobody_attests_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, text = printed(capsys)
    assert code == Exit.DONE
    assert "image 7     kernel 6.12\\x1b[31m, runs: up" in text
    assert f"  hosts     {HOST}" in text
    assert f"{KERNEL}  kernel" in text
    assert "attested    no: the guest says so itself" in text


def test_a_guest_of_the_image_ends_with_0_and_another_with_1(
    capsys: pytest.CaptureFixture[str], file: Path, image: Path
) -> None:
    code, text = printed(capsys, file, "--image", image)
    assert code == Exit.DONE
    assert "kernel      the image's" in text
    metadata("ff" * 32).write(image)
    code, text = printed(capsys, file, "--image", image)
    assert code == Exit.FAILED
    assert "kernel      NOT THE IMAGE'S" in text


def test_a_program_reads_the_same(capsys: pytest.CaptureFixture[str], file: Path, image: Path) -> None:
    _, text = printed(capsys, file, "--image", image, "--json")
    rows: dict[str, Any] = {row["what"]: row for row in json.loads(text)["compared"]}
    assert {what: row["verdict"] for what, row in rows.items()} == dict.fromkeys(
        ("volumes", "kernel", "initramfs", "options"), "same"
    )


def test_what_is_no_evidence_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    assert secex.main(["evidence", str(tmp_path / "other.json")]) == Exit.REFUSED
    assert "other.json is no evidence of a guest" in capsys.readouterr().err
