"""What the steps hand to the builder of the sdboot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support import TEST_VECTORS

from secex_firstboot.agent.step import Context
from secex_firstboot.contract import paths
from secex_firstboot.sdboot import create
from secex_firstboot.sdboot.boot_entry import BootEntry
from secex_firstboot.sdboot.contents import build_sdboot, first_boot_command_line, system_command_line
from secex_firstboot.sdboot.initramfs import File

VECTORS = TEST_VECTORS / "se-image"


def test_a_host_with_two_documents_gets_one_key_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no pvimg or genprotimg
    monkeypatch.setattr(create, "BOOT_LOADER_DIRECTORIES", (tmp_path,))
    monkeypatch.setattr(paths, "STATE", tmp_path / "state")
    monkeypatch.setattr(paths, "HOST_KEYS", tmp_path / "state" / "hostkeys")
    for name in ("stage3a.bin", "stage3b_reloc.bin"):
        (tmp_path / name).write_bytes(bytes(8000))
    paths.HOST_KEYS.mkdir(parents=True)
    for name in ("host-a.crt", "host-b.crt"):
        shutil.copy(VECTORS / name, paths.HOST_KEYS)
    again = x509.load_pem_x509_certificate((VECTORS / "host-a.crt").read_bytes())
    (paths.HOST_KEYS / "host-a-again.crt").write_bytes(again.public_bytes(Encoding.DER))

    entry = BootEntry("", "", VECTORS / "kernel.bin", (VECTORS / "ramdisk.bin",), "")
    build_sdboot(Context(""), entry, tmp_path, command_line="quiet", overlay={"/a": File(b"")})

    image = (tmp_path / "sdboot.new").read_bytes()
    slots = image.index(b"IBMSecEx") + 32
    assert int.from_bytes(image[slots : slots + 8], "big") == 2


@pytest.mark.parametrize(
    "options",
    [
        "root=LABEL=root systemd.gpt_auto=1 quiet ignition.firstboot",
        "quiet fsck.mode=force fsck.repair=yes forcefsck fastboot",
        "quiet",
    ],
)
def test_both_command_lines_name_our_root_leave_the_hosts_partitions_alone_and_repair_nothing(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = tmp_path / "config.json"
    merged.write_text('{"ignition": {"version": "3.3.0"}, "kernelArguments": {"shouldNotExist": ["quiet"]}}')
    monkeypatch.setattr(paths, "IGNITION_MERGED_CONFIG", merged)
    ours = ["root=/dev/mapper/root", "systemd.gpt_auto=0", "fsck.mode=skip"]
    assert first_boot_command_line(options).split() == [
        "quiet", *ours, "ignition.firstboot", "gpt",
    ]  # fmt: skip
    assert system_command_line(options).split() == ours
