"""``secex recover``, as far as it is said and asked; what it does: tests/owner/test_recover.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import TEST_VECTORS, needs
from support.host_keys import CHAIN, certify

from secex_firstboot.basic import memory
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.cli import recover as verb
from secex_firstboot.cli import secex
from secex_firstboot.cli.verb import Exit
from secex_firstboot.contract.boot_image import Image
from secex_firstboot.contract.recovery import Recovery, Volume
from secex_firstboot.owner import recover
from secex_firstboot.storage import disk

SECRET = b"header and key"
VOLUME = Volume(partition="0e4a2f11-6a0c-4a6e-9d1b-2b6f3a1d90d1", opens=SECRET)
FOUND = Recovery(
    generation=7, kernel="6.12", command_line="quiet", hosts=("0f" * 32,), boot=VOLUME, root=VOLUME
)
EVIDENCE = '{"running": 1, "images": [{"generation": 1, "state": "up", "kernel": "", "command_line": "", "header": "", "host_keys": [], "inputs": {}}], "root_hashes": {}}'  # noqa: E501


@pytest.fixture(autouse=True)
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done of the disk."""
    done: list[str] = []

    def prove(found: object, evidence: object) -> None:
        raise Refusal("SX-TEST-01", "of another guest")

    def open_volumes(*_: object) -> dict[str, Path]:
        done.append("open")
        return {"root": Path("/dev/mapper/recover-root")}

    def start_on(context: object, disk: object, found: object, documents: list[object], *_: object) -> Image:
        done.append(f"start on {', '.join(each.name for each in documents)}")  # type: ignore[attr-defined]
        return Image(generation=8, identity="", kernel="", inputs={})

    monkeypatch.setattr(verb, "_IN_MEMORY", str(tmp_path))
    monkeypatch.setattr(memory, "lock", lambda: None)
    monkeypatch.setattr(disk, "of_device", lambda path: None)
    monkeypatch.setattr(recover, "find", lambda disk, work: FOUND)
    monkeypatch.setattr(recover, "prove", prove)
    monkeypatch.setattr(recover, "open_volumes", open_volumes)
    monkeypatch.setattr(recover, "start_on", start_on)
    return done


def test_it_shows_what_was_left_and_that_nothing_proves_whose_it_is(
    capsys: pytest.CaptureFixture[str], done: list[str], tmp_path: Path
) -> None:
    assert secex.main(["recover", "/dev/sdb"]) == Exit.DONE
    said = capsys.readouterr()
    assert "boot image 7, kernel 6.12" in said.out
    assert "whose       NOT PROVEN" in said.out
    assert "WARNING: nothing proves whose this is" in said.err
    assert (done, list(tmp_path.iterdir())) == ([], [])


def test_what_opens_the_volumes_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert secex.main(["recover", "/dev/sdb", "--json"]) == Exit.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["found"].keys() == {"format", "generation", "kernel", "command_line", "hosts"}
    assert (found["proven"], found["open"], found["made"]) == (False, {}, None)


def test_with_the_evidence_of_another_guest_nothing_is_opened(
    capsys: pytest.CaptureFixture[str], done: list[str], tmp_path: Path
) -> None:
    evidence = tmp_path / "guest.json"
    evidence.write_text(EVIDENCE)
    assert secex.main(["recover", "/dev/sdb", "--open", "--evidence", str(evidence)]) == Exit.REFUSED
    assert "of another guest" in capsys.readouterr().err
    assert done == []


def test_opened_it_says_where(capsys: pytest.CaptureFixture[str], done: list[str]) -> None:
    assert secex.main(["recover", "/dev/sdb", "--open"]) == Exit.DONE
    assert "root is open: /dev/mapper/recover-root\n" in capsys.readouterr().out
    assert done == ["open"]


@needs.programs("openssl")
def test_only_a_proven_document_is_one_to_start_on(
    capsys: pytest.CaptureFixture[str], done: list[str], tmp_path: Path
) -> None:
    files = CHAIN.certificates() | CHAIN.crls()
    words = ["recover", "/dev/sdb", "--offline"]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        option = "--root" if name == "root.crt" else "--crl" if name.endswith(".crl") else "--cert"
        words += [option, str(tmp_path / name)]
    (tmp_path / "HKD-1.crt").write_bytes(certify("a"))
    assert secex.main([*words, "--hostkey", str(TEST_VECTORS / "se-image/host-a.crt")]) == Exit.REFUSED
    assert done == []
    assert secex.main([*words, "--hostkey", str(tmp_path / "HKD-1.crt")]) == Exit.DONE
    assert done == ["start on ibm-z-hostkey-HKD-1"]
    assert "boot image 8 is what starts next" in capsys.readouterr().out
