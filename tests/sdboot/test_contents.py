"""What the steps hand to the builder of the sdboot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support import TEST_VECTORS

from secex_firstboot.agent.step import Context
from secex_firstboot.ignition.config import KernelArguments
from secex_firstboot.sdboot import create, options
from secex_firstboot.sdboot.boot_entry import BootEntry
from secex_firstboot.sdboot.contents import build_sdboot
from secex_firstboot.sdboot.initramfs import File

VECTORS = TEST_VECTORS / "se-image"


def test_a_host_with_two_documents_gets_one_key_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no pvimg or genprotimg
    monkeypatch.setattr(create, "BOOT_LOADER_DIRECTORIES", (tmp_path,))
    documents = tmp_path / "hostkeys"
    for name in ("stage3a.bin", "stage3b_reloc.bin"):
        (tmp_path / name).write_bytes(bytes(8000))
    documents.mkdir()
    for name in ("host-a.crt", "host-b.crt"):
        shutil.copy(VECTORS / name, documents)
    again = x509.load_pem_x509_certificate((VECTORS / "host-a.crt").read_bytes())
    (documents / "host-a-again.crt").write_bytes(again.public_bytes(Encoding.DER))

    entry = BootEntry("", "", VECTORS / "kernel.bin", (VECTORS / "ramdisk.bin",), "")
    build_sdboot(
        Context(""),
        entry,
        tmp_path,
        command_line="quiet",
        overlay={"/a": File(b"")},
        documents=documents,
        archive=tmp_path / "overlay",
        scratch=tmp_path,
    )

    image = (tmp_path / "sdboot.new").read_bytes()
    slots = image.index(b"IBMSecEx") + 32
    assert int.from_bytes(image[slots : slots + 8], "big") == 2


@pytest.mark.parametrize(
    "line",
    [
        "root=LABEL=root systemd.gpt_auto=1 quiet ignition.firstboot",
        "rd.systemd.gpt_auto=1 quiet rd.systemd.gpt-auto",
        "quiet fsck.mode=force fsck.repair=yes forcefsck fastboot",
        "quiet",
    ],
)
def test_both_command_lines_name_our_root_leave_the_hosts_partitions_alone_and_repair_nothing(
    line: str,
) -> None:
    ours = ["root=/dev/mapper/root", "systemd.gpt_auto=0", "fsck.mode=skip"]
    assert options.first_boot_command_line(line).split() == [
        "quiet", *ours, "ignition.firstboot", "gpt",
    ]  # fmt: skip
    arguments = KernelArguments.model_validate({"shouldNotExist": ["quiet"]})
    assert options.system_command_line(line, arguments, [], []).split() == ours
