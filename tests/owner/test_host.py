"""``secex host``, of copies of a host's files, as they are asked for in secex(1)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support import host_keys, json_schemas

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.cli import host as verb
from secex_firstboot.cli import secex
from secex_firstboot.cli.verb import Exit
from secex_firstboot.hostkeys import key
from secex_firstboot.hostkeys.key import HostKey
from secex_firstboot.owner import host
from secex_firstboot.owner.host import Host, Source

OWN = key.key_hash(HostKey(host_keys.key("own"))).hex()
BACKUP = "ab" * 32
# As the kernel, virsh and a z16 write them; of what is not looked at, a line each.
FILES = {
    "proc/cmdline": "root=/dev/dasda1 prot_virt=1 BOOT_IMAGE=0\n",
    "proc/cpuinfo": (
        "vendor_id       : IBM/S390\n"
        "# processors    : 4\n"
        "facilities      : 0 1 2 3 4 155 156 158 161 165\n"
        "processor 0: version = FF,  identification = 0133E8,  machine = 3931\n"
    ),
    "proc/sysinfo": (
        "Manufacturer:         IBM\n"
        "Type:                 3931\n"
        "LPAR Number:          17\n"
        "LPAR Name:            SEHOST1\n"
    ),
    "proc/meminfo": "MemTotal:       33554432 kB\nMemFree:         1000000 kB\nMemAvailable:   16777216 kB\n",
    "proc/sys/kernel/osrelease": "6.14.0-s390x\n",
    "sys/firmware/uv/prot_virt_host": "1\n",
    "sys/firmware/uv/query/facilities": "ff1fffff00000000\n0\n0\n0\n",
    "sys/firmware/uv/query/supp_se_hdr_ver": "8000000000000000\n",
    "sys/firmware/uv/query/max_guests": "8388607\n",
    "sys/firmware/uv/query/max_cpus": "248\n",
    "sys/firmware/uv/query/max_secrets": "10\n",
    "sys/firmware/uv/keys/all": "\n".join([OWN, BACKUP, *["0" * 64] * 13]) + "\n",
    "virsh-version.txt": (
        "Compiled against library: libvirt 10.10.0\n"
        "Using library: libvirt 10.10.0\n"
        "Using API: QEMU 10.10.0\n"
        "Running hypervisor: QEMU 9.2.1\n"
    ),
    "virsh-domcapabilities.xml": (
        "<domainCapabilities><domain>kvm</domain><arch>s390x</arch>"
        "<cpu><mode name='host-model' supported='yes'><model>gen16a-base</model>"
        "<feature policy='require' name='unpack'/></mode></cpu>"
        "<features><s390-pv supported='yes'/></features></domainCapabilities>\n"
    ),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "host" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "host"


def look(root: Path, *documents: Path) -> Host:
    return host.look(Source(root), documents)


def ids(found: Host) -> list[str]:
    return [each.error.id for each in found.findings]


def document(directory: Path, who: str) -> Path:
    path = directory / f"{who}.crt"
    path.write_bytes(host_keys.certify(who))
    return path


def test_a_host_that_has_it_all_is_told_with_nothing_missing(root: Path) -> None:
    assert look(root) == Host(
        machine="z16 or LinuxONE 4",
        machine_type="3931",
        partition="SEHOST1",
        kernel="6.14.0-s390x",
        prot_virt=True,
        ready=True,
        ultravisor=host.Ultravisor(8388607, 248, (0x100,), True, 10),
        keys=tuple(sorted([OWN, BACKUP])),
        libvirt="10.10.0",
        qemu="9.2.1",
        s390_pv=True,
        unpack=True,
        memory=32768,
        available=16384,
    )


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("proc/sysinfo", "3931", "3906", "SX-HOST-02"),
        ("proc/sysinfo", "Type", "VM00 Name: LINUX\nType", "SX-HOST-03"),
        ("proc/cpuinfo", " 158", "", "SX-HOST-04"),
        ("proc/cpuinfo", " 158", " 1158", "SX-HOST-04"),
        ("sys/firmware/uv/query/supp_se_hdr_ver", "8", "4", "SX-HOST-07"),
        ("virsh-version.txt", "libvirt 10.10.0", "libvirt 7.5.9", "SX-HOST-10"),
        ("virsh-domcapabilities.xml", "s390-pv supported='yes'", "s390-pv supported='no'", "SX-HOST-11"),
        ("virsh-domcapabilities.xml", "'unpack'", "'vx'", "SX-HOST-11"),
        ("virsh-domcapabilities.xml", "'require'", "'disable'", "SX-HOST-11"),
        ("proc/meminfo", "16777216", "1024000", "SX-HOST-12"),
    ],
)
def test_what_is_missing_is_told(root: Path, file: str, old: str, new: str, expected: str) -> None:
    text = FILES[file]
    assert old in text
    (root / file).write_text(text.replace(old, new))
    assert ids(look(root)) == [expected]


@pytest.mark.parametrize(
    ("option", "ready", "expected"),
    [
        ("", "0", ["SX-HOST-05"]),
        ("prot_virt=0", "0", ["SX-HOST-05"]),
        ("prot_virt=1", "0", ["SX-HOST-06"]),
        ("prot_virt=on", "1", []),
        ("prot_virt=y", "1", []),
    ],
)
def test_a_kernel_that_hosts_none_is_told_with_the_reason(
    root: Path, option: str, ready: str, expected: list[str]
) -> None:
    (root / "proc/cmdline").write_text(f"root=/dev/dasda1 {option}\n")
    (root / "sys/firmware/uv/prot_virt_host").write_text(f"{ready}\n")
    assert ids(look(root)) == expected


def test_libvirt_of_the_first_version_that_knows_it_is_enough(root: Path) -> None:
    (root / "virsh-version.txt").write_text(FILES["virsh-version.txt"].replace("10.10.0", "7.6.0"))
    assert ids(look(root)) == []


def test_an_ultravisor_without_attestation_and_secrets_is_told(root: Path) -> None:
    (root / "sys/firmware/uv/query/facilities").write_text("ff1ffff000000000\n0\n0\n0\n")
    told = look(root).ultravisor
    assert told and (told.attestation, told.secrets) == (False, 0)


def test_the_machine_s_own_document_is_found_among_others(root: Path, tmp_path: Path) -> None:
    own, other = document(tmp_path, "own"), document(tmp_path, "other")
    found = look(root, other, own)
    assert [each.this_machine for each in found.documents] == [False, True]
    assert found.documents[1].hash == OWN
    assert ids(found) == []
    assert ids(look(root, other)) == ["SX-HOST-08"]


def test_a_workstation_tells_the_hash_of_a_document(root: Path, tmp_path: Path) -> None:
    (root / "proc/cpuinfo").write_text("processor : 0\nvendor_id : GenuineIntel\n")
    (root / "sys/firmware/uv/keys/all").unlink()
    found = look(root, document(tmp_path, "own"))
    assert ids(found) == ["SX-HOST-01"]
    assert [(each.hash, each.this_machine) for each in found.documents] == [(OWN, None)]


def test_what_is_no_document_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="SX-HOST-09"):
        look(root, tmp_path / "none.crt")
    broken = tmp_path / "broken.crt"
    broken.write_text("certificate")
    with pytest.raises(Refusal, match="SX-HOSTKEY-07"):
        look(root, broken)


def test_of_nothing_nothing_is_told(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert not found.findings and len(found.untold) == 6


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\0" * 100, b"<a>" * 1000, b"9" * 5000, b": : :\n" * 1000, b"LPAR Name: " + b"x" * 9000],
)
def test_nonsense_in_a_file_breaks_nothing_and_is_not_told(root: Path, name: str, content: bytes) -> None:
    (root / name).write_bytes(content)
    printed = json.dumps(verb._json(look(root)))
    assert len(printed) < 5000


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_not_there(root: Path, name: str) -> None:
    (root / name).unlink()
    os.mkfifo(root / name)
    look(root)


def test_programs_get_what_the_schema_describes(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = document(tmp_path, "own")
    assert secex.main(["host", f"--root={root}", "--json", str(own)]) == Exit.DONE
    json_schemas.validate(json.loads(capsys.readouterr().out), "host")
    assert secex.main(["host", f"--root={tmp_path / 'none'}", "--json"]) == Exit.DONE
    json_schemas.validate(json.loads(capsys.readouterr().out), "host")
    (root / "proc/sysinfo").write_text("Type: 2964\n")
    assert secex.main(["host", f"--root={root}", "--json"]) == Exit.FAILED
    json_schemas.validate(json.loads(capsys.readouterr().out), "host")


def test_people_get_a_page_of_printable_text(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "proc/sysinfo").write_text("Type: 3931\nLPAR Name: \x1b[31mRED\n")
    assert secex.main(["host", f"--root={root}", str(document(tmp_path, "own"))]) == Exit.DONE
    page = " ".join(capsys.readouterr().out.split())
    assert "\x1b" not in page
    for words in ("z16 or LinuxONE 4 (3931)", "with prot_virt=1", "8388607 guests", "0x100", "THIS MACHINE"):
        assert words in page


def test_this_machine_is_asked_and_says_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    code = secex.main(["host", "--json"])
    printed = json.loads(capsys.readouterr().out)
    json_schemas.validate(printed, "host")
    assert (code == Exit.FAILED) == any(each["level"] == "wrong" for each in printed["findings"])
