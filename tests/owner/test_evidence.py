"""What a guest runs, beside what the maker of an image says of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.boot_image import State
from secex_firstboot.contract.evidence import BootImage, Evidence
from secex_firstboot.owner.evidence import Verdict, compare

KERNEL, INITRAMFS, NEWER = "0a" * 32, ["1a" * 32, "1b" * 32], "0b" * 32
HASHES = {"boot": "2a" * 32, "root": "2b" * 32}
OPTIONS = "root=LABEL=root quiet secex.headroom=64"
SEALED = "quiet secex.headroom=64 root=/dev/mapper/root systemd.gpt_auto=0 fsck.mode=skip secex.generation=1"


def image(generation: int = 1, kernel: str = KERNEL, line: str = SEALED) -> BootImage:
    inputs = {f"initramfs {number}": digest for number, digest in enumerate(INITRAMFS)}
    return BootImage(
        generation=generation,
        state=State.UP,
        kernel="6.12",
        command_line=line,
        header="",
        host_keys=(),
        inputs=inputs | {"kernel": kernel, "command line": "00" * 32},
    )


def evidence(*images: BootImage, running: int | None = 1, hashes: dict[str, str] | None = None) -> Evidence:
    return Evidence(
        running=running, images=images or (image(),), root_hashes=HASHES if hashes is None else hashes
    )


def verdicts(of: Evidence, **change: Any) -> dict[str, Verdict]:
    given: dict[str, Any] = {
        "root_hashes": HASHES,
        "kernel": KERNEL,
        "initramfs": INITRAMFS,
        "of_entry": OPTIONS,
    }
    return {each.what: each.verdict for each in compare(of, **given | change)}


def test_a_guest_of_the_image_is_the_images() -> None:
    assert set(verdicts(evidence()).values()) == {Verdict.SAME}


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("volumes", {"root_hashes": HASHES | {"root": "ff" * 32}}),
        ("volumes", {"root_hashes": {}}),
        ("kernel", {"kernel": NEWER}),
        ("initramfs", {"initramfs": INITRAMFS[:1]}),
        ("initramfs", {"initramfs": INITRAMFS[::-1]}),
    ],
)
def test_whatever_is_another_is_named(what: str, change: dict[str, Any]) -> None:
    assert [name for name, each in verdicts(evidence(), **change).items() if each is Verdict.OTHER] == [what]


def test_the_image_that_runs_is_compared_and_not_the_newest() -> None:
    both = (image(2, NEWER), image(1))
    assert verdicts(evidence(*both, running=1))["kernel"] is Verdict.SAME
    assert verdicts(evidence(*both, running=2))["kernel"] is Verdict.OTHER
    assert verdicts(evidence(*both, running=None))["kernel"] is Verdict.OTHER


def test_words_that_a_config_or_an_administrator_has_changed_are_told() -> None:
    line = f"{SEALED.removeprefix('quiet ')} audit=1"
    (options,) = (
        each
        for each in compare(
            evidence(image(line=line)), root_hashes={}, kernel="", initramfs=[], of_entry=OPTIONS
        )
        if each.what == "options"
    )
    assert options.detail == "with secex.generation=1; with audit=1; without quiet"
    assert not options.is_bad


def test_what_an_older_version_did_not_keep_is_not_told() -> None:
    found = verdicts(evidence(image(line=""), hashes={}))
    assert (found["volumes"], found["options"]) == (Verdict.UNTOLD, Verdict.UNTOLD)


def test_evidence_is_read_as_it_was_written_and_anything_else_is_refused() -> None:
    text = evidence().model_dump_json()
    assert Evidence.parse("a", text.encode()) == evidence()
    changes: list[dict[str, Any]] = [{"images": []}, {"more": 1}, {"format": 2}, {"attestation": "signed"}]
    for change in changes:
        with pytest.raises(Refusal, match="a is no evidence of a guest: "):
            Evidence.parse("a", json.dumps(json.loads(text) | change).encode())
