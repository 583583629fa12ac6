"""What the steps keep of a host-key document, and what they build with it."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from secex_firstboot import paths
from secex_firstboot.errors import FirstbootError, Refusal
from secex_firstboot.ignition import ownership
from secex_firstboot.sdboot.boot_entry import BootEntry
from secex_firstboot.step import Context
from secex_firstboot.steps.hostkeys import HostKeys
from secex_firstboot.steps.sdboot import build_sdboot
from secex_firstboot.storage import disk
from secex_firstboot.storage.disk import Disk

VECTORS = Path(__file__).parent / "vectors" / "se-image"
HOST_A, HOST_B = ((VECTORS / f"host-{name}.crt").read_bytes() for name in "ab")
DER_B = x509.load_pem_x509_certificate(HOST_B).public_bytes(Encoding.DER)


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE", "RUNTIME", "IGNITION_MERGED_CONFIG", "THIS_HOSTS_KEYS"):
        monkeypatch.setattr(paths, name, tmp_path / name)
    monkeypatch.setattr(paths, "HOST_KEYS", paths.STATE / "hostkeys")
    paths.RUNTIME.mkdir()
    monkeypatch.setattr(disk, "find_disk", lambda: Disk(Path("/dev/vda"), 1 << 30, 512, {}))
    monkeypatch.setattr(ownership, "device_numbers", lambda device: frozenset())


def fetch(**documents: bytes) -> None:
    """Perform the step with these documents in the config."""
    files = [
        {
            "path": f"/etc/se-hostkeys/ibm-z-hostkey-{name}",
            "contents": {"source": "data:;base64," + base64.b64encode(content).decode()},
        }
        for name, content in documents.items()
    ]
    merged = {"ignition": {"version": "3.3.0"}, "storage": {"files": files}}
    paths.IGNITION_MERGED_CONFIG.write_text(json.dumps(merged))
    HostKeys().perform(Context("secex.hostkey_verify=no"))


def test_a_document_is_kept_as_it_was_parsed_and_not_as_it_came() -> None:
    fetch(a=b"\n" + HOST_A.replace(b"\n", b"\r\n"), b=DER_B)
    assert {path.name: path.read_bytes() for path in paths.HOST_KEYS.iterdir()} == {
        "ibm-z-hostkey-a": HOST_A,
        "ibm-z-hostkey-b": HOST_B,
    }


def test_a_document_with_two_faces_is_not_kept() -> None:
    with pytest.raises(Refusal, match="ibm-z-hostkey-a holds something else beside its certificate"):
        fetch(a=DER_B + HOST_A)
    assert not paths.HOST_KEYS.exists()


def build(se: Path) -> bytes:
    entry = BootEntry("", "", VECTORS / "kernel.bin", (VECTORS / "ramdisk.bin",), "")
    build_sdboot(Context(""), entry, se, command_line="quiet", overlay={})
    return (se / "sdboot.new").read_bytes()


def test_an_image_that_a_builder_makes_for_other_hosts_never_becomes_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is given, this pvimg makes the image for two hosts that IBM's genprotimg once made."""
    image, tool = VECTORS / "two-keys.img", tmp_path / "bin" / "pvimg"
    tool.parent.mkdir()
    tool.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        f"shutil.copyfile('{image}', sys.argv[sys.argv.index('-o') + 1])\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    se = tmp_path / "se"
    se.mkdir()
    fetch(a=HOST_A)
    with pytest.raises(FirstbootError, match="the image that pvimg made is not for exactly the host keys"):
        build(se)
    assert not list(se.iterdir())
    fetch(a=HOST_A, b=DER_B)
    assert build(se) == image.read_bytes()
