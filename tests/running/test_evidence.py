"""What a guest tells of its boot images."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest
from support import TEST_VECTORS, plain

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.contract.boot_image import Arguments, Image, Images, Origin, State
from secex_firstboot.contract.evidence import Evidence
from secex_firstboot.roots import system_image
from secex_firstboot.running import evidence
from secex_firstboot.sdboot import image

SDBOOT = TEST_VECTORS / "se-image/two-keys.img"
HYBRID = TEST_VECTORS / "se-header-v2/header-v2-start.bin"  # up to the one host key's hash
HASHES = {"boot": "2a" * 32, "root": "2b" * 32}


def made(generation: int, header: bytes = b"") -> Image:
    return Image(
        generation=generation,
        identity="",
        kernel="6.12",
        state=State.UP,
        inputs={"kernel": "0a" * 32},
        command_line="quiet" if header else "",
        header=b64encode(header).decode(),
    )


def test_it_tells_each_image_by_its_header_and_what_it_is_made_of(tmp_path: Path) -> None:
    header = image.header_bytes(SDBOOT)
    system_image.remember(plain(tmp_path), Arguments(), {}, {}, {}, {}, Origin(root_hashes=HASHES))
    system_image.record(plain(tmp_path), Images(newest=made(7, header), fallback=made(6)))
    found = evidence.gather(Context("secex.generation=7"), plain(tmp_path))
    newest, fallback = found.images
    with SDBOOT.open("rb") as stream:
        assert newest.host_keys == tuple(key.hex() for key in image.key_slots(stream))
    assert len(newest.host_keys) == 2
    assert header.startswith(b"IBMSecEx")
    assert (found.running, found.image, found.root_hashes, found.attestation) == (7, newest, HASHES, None)
    assert (fallback.host_keys, fallback.header) == ((), "")


def test_of_an_image_for_hybrid_hosts_it_tells_their_longer_hashes(tmp_path: Path) -> None:
    start = HYBRID.read_bytes()
    system_image.record(plain(tmp_path), Images(newest=made(1, start.ljust(2240, b"\0"))))
    found = evidence.gather(Context(""), plain(tmp_path))
    assert found.image.host_keys == (start[-64:].hex(),)
    assert Evidence.parse("evidence", found.model_dump_json().encode()) == found


def test_of_a_guest_that_an_older_version_has_set_up_it_tells_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(FirstbootError, match="no record of the boot images: secex update makes one"):
        evidence.gather(Context(""), plain(tmp_path))
    system_image.record(plain(tmp_path), Images(newest=made(1)))
    found = evidence.gather(Context(""), plain(tmp_path))
    assert (found.running, found.root_hashes) == (None, {})
