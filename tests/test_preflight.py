"""What a workstation can tell of a config and an image before any boot."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from harness import pki

from secex_firstboot.cli import main

MIB = 1 << 20
CHAIN = pki.make_chain(datetime.now(UTC))
DOCUMENT = pki.pem(CHAIN.document(pki.host_key("a").public_key()))


def file(path: str, content: bytes) -> dict[str, Any]:
    return {"path": path, "contents": {"source": f"data:;base64,{base64.b64encode(content).decode()}"}}


def host_key(content: bytes = DOCUMENT) -> dict[str, Any]:
    return file("/etc/se-hostkeys/ibm-z-hostkey-a", content)


def proof() -> list[dict[str, Any]]:
    files = {**CHAIN.certificates(), **CHAIN.crls()}
    return [file(f"/etc/se-hostkeys/certs/{name}", content) for name, content in files.items()]


@pytest.fixture
def look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    certificates = tmp_path / "certs"
    certificates.mkdir()
    (certificates / "root.crt").write_bytes(CHAIN.certificates()["root.crt"])

    def look(config: dict[str, Any], *options: str) -> tuple[int, dict[str, dict[str, str]]]:
        path = tmp_path / "config.ign"
        path.write_text(json.dumps({"ignition": {"version": "3.3.0"}} | config))
        arguments = ["--dry-run", "--json", f"--config={path}", f"--certificates={certificates}", *options]
        code = main(arguments)
        rows = json.loads(capsys.readouterr().out)["steps"]
        return code, {row["step"]: row for row in rows}

    return look


def test_a_good_config_passes_and_what_cannot_be_told_is_said(look):
    code, rows = look({"storage": {"files": [host_key(), *proof()]}})
    assert code == 0
    assert rows["config"]["detail"] == "a config of specification 3.3.0"
    assert rows["hostkeys"]["detail"] == "1 documents: ibm-z-hostkey-a"
    assert rows["seal"] == rows["seal"] | {"state": "waiting", "detail": "can only be told at first boot"}


def test_a_document_that_is_not_proven_is_refused_in_the_words_of_first_boot(look):
    other = pki.make_chain(datetime.now(UTC), signing_key={"key": pki.rsa_key("another")})
    forged = pki.pem(other.document(pki.host_key("a").public_key()))
    code, rows = look({"storage": {"files": [host_key(forged), *proof()]}})
    assert code == 1
    assert rows["hostkeys"]["state"] == "refused"
    assert rows["hostkeys"]["detail"].startswith(
        "the host-key document ibm-z-hostkey-a is not signed by the IBM host-key signing key"
    )


def test_without_verification_the_same_document_passes(look):
    code, rows = look({"storage": {"files": [host_key()]}}, "--hostkey-verify=no")
    assert (code, rows["hostkeys"]["state"]) == (0, "ready")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"storage": {"files": [file("/etc/luks/key", b"")]}}, "storage.files[0].path belongs to first boot"),
        ({"kernelArguments": {"shouldExist": ["rd.break"]}}, "kernelArguments.shouldExist[0] is one of rd*"),
        ({"storage": {"files": "x"}}, "storage.files: Input should be a valid array"),
        ({"ignition": {"version": "2.4.0"}}, "2.4.0 is not a version of Ignition's config specification 3"),
    ],
)
def test_a_config_that_first_boot_refuses_is_refused(look, config, says):
    code, rows = look(config)
    assert code == 1
    assert says in rows["config"]["detail"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path, 300)


def make_image(tmp_path: Path, size: int) -> Path:
    """An SE-ready image as far as its layout goes: file systems and hash trees, no sdboot."""
    if not all(map(shutil.which, ["sfdisk", "mkfs.ext4", "veritysetup", "qemu-img"])):
        pytest.skip("needs sfdisk, mkfs.ext4, veritysetup and qemu-img")
    sizes = {"se": (1, 8), "boot": (3, 64), "root": (4, 48), "boothash": (5, 2), "roothash": (6, 2)}
    raw, at, script = tmp_path / "image.raw", MIB, ["label: gpt"]
    raw.touch()
    os.truncate(raw, size * MIB)
    for name, (number, mib) in sizes.items():
        script.append(f"{number}: start={at // 512}, size={mib * MIB // 512}, name={name}")
        if name in ("boot", "root"):
            part = tmp_path / name
            part.touch()
            os.truncate(part, 32 * MIB)
            subprocess.run(["mkfs.ext4", "-q", "-b", "4096", part], check=True)
            subprocess.run(
                ["veritysetup", "format", part, tmp_path / f"{name}hash"], check=True, capture_output=True
            )
        if name != "se":
            with raw.open("r+b") as stream:
                stream.seek(at)
                stream.write((tmp_path / name).read_bytes())
        at += mib * MIB
    subprocess.run(["sfdisk", "--quiet", raw], input="\n".join(script), text=True, check=True)
    return raw


def test_an_image_is_laid_out_raw_or_qcow2(look, image, tmp_path):
    config = {"storage": {"files": [host_key(), *proof()]}}
    qcow2 = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", image, qcow2], check=True)
    for disk in (image, qcow2):
        code, rows = look(config, f"--disk={disk}")
        assert code == 0
        assert rows["personalise"]["detail"] == (
            "encrypt boot and root in place, on a disk of 300 MiB: boot 32 MiB (ext4), root 32 MiB (ext4)"
        )


def test_an_image_without_room_is_refused_with_the_mib_missing(look, tmp_path):
    image = make_image(tmp_path, 130)
    code, rows = look({"storage": {"files": [host_key(), *proof()]}}, f"--disk={image}")
    assert code == 1
    assert f"{image} is too small by" in rows["personalise"]["detail"]
    assert "qemu-img resize" in rows["personalise"]["detail"]


def test_an_image_without_a_partition_is_refused(look, image):
    subprocess.run(["sfdisk", "--quiet", "--delete", image, "6"], check=True)
    code, rows = look({"storage": {"files": [host_key(), *proof()]}}, f"--disk={image}")
    assert code == 1
    assert "has no partition 6 'roothash'" in rows["personalise"]["detail"]
