"""``secex domain``: what libvirt and QEMU say of what it writes, and what it says of domains."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import json_schemas, needs, se_disk
from support.openpgp_messages import armored, packet

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.cli import secex
from secex_firstboot.cli.verb import Exit
from secex_firstboot.owner import domain, domain_check, xml_lines
from secex_firstboot.owner.domain import Guest

NOBODY = 65534
SCHEMAS = Path("/usr/share/libvirt/schemas/domain.rng")
ENCRYPTED = armored(packet(1, bytes(16)) + packet(18, b"\1" + bytes(64)))
GUEST = Guest(
    "guest", Path("/nowhere/disk.qcow2"), "qcow2", Path("/nowhere/config.asc"), Path("/nowhere/log")
)
WRITTEN = domain.xml(GUEST)
SYSTEM = "<serial>system</serial>"


def ids(text: str, *, later: bool = False) -> list[str]:
    checked = domain_check.check_domain(xml_lines.parse(text.encode()), later=later)
    return [each.error.id for each in checked.findings]


def changed(*pairs: tuple[str, str]) -> str:
    text = WRITTEN
    for old, new in pairs:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    return text


# --- what libvirt and QEMU say of what is written ---


@needs.programs("virt-xml-validate", "xmllint")
@pytest.mark.skipif(not SCHEMAS.exists(), reason="needs libvirt's schemas")
@pytest.mark.parametrize(
    "guest",
    [
        GUEST,
        Guest("later", Path("/nowhere/disk.raw"), "raw", None, Path("/log"), loadparm="2"),
        Guest("a.b+c", Path('/a & b/<it\'s>, "q".img'), "raw", Path("/x,y"), Path("/ü"), network="none"),
    ],
    ids=lambda guest: guest.name,
)
def test_libvirt_s_schema_takes_what_is_written(guest: Guest, tmp_path: Path) -> None:
    file = tmp_path / "guest.xml"
    file.write_text(domain.xml(guest))
    subprocess.run(["virt-xml-validate", file, "domain"], check=True)
    file.write_text(domain.xml(guest).replace("s390-pv", "s390-pw"))
    assert subprocess.run(["virt-xml-validate", file, "domain"], capture_output=True).returncode


Virsh = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def virsh() -> Iterator[Virsh]:
    """libvirt's driver of QEMU inside of virsh, in a directory of its own: there is no daemon.

    As root it would want the users that a package of the daemon makes. ``text`` is the file of the command.
    """
    needs.require("virsh", "qemu-system-s390x", "setpriv")
    with tempfile.TemporaryDirectory() as directory:
        user: list[str] = []
        if os.geteuid() == 0:
            os.chown(directory, NOBODY, NOBODY)
            user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        places = ("HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
        driver = ["virsh", "--quiet", "-c", f"qemu:///embed?root={directory}/root"]

        def run(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
            file = Path(directory, "guest.xml")
            file.write_text(text)
            return subprocess.run(
                [*user, *driver, *words, *([str(file)] if text else [])],
                capture_output=True,
                text=True,
                env=os.environ | dict.fromkeys(places, directory),
                timeout=120,
            )

        if "<arch>s390x</arch>" not in (told := run("domcapabilities", "--arch", "s390x")).stdout:
            pytest.skip(f"needs libvirt's driver of QEMU: {told.stderr[-200:]}")
        yield run


def test_libvirt_takes_the_domain_but_for_what_a_mainframe_alone_has(virsh: Virsh) -> None:
    if "<s390-pv supported='yes'/>" in virsh("domcapabilities", "--arch", "s390x").stdout:
        assert virsh("define", "--validate", text=WRITTEN).returncode == 0
        return
    emulated = changed(('type="kvm"', 'type="qemu"'))
    for text, fault in (
        (WRITTEN, "does not support virt type 'kvm'"),
        (emulated, "S390 PV launch security is not supported"),
    ):
        refused = virsh("define", "--validate", text=text)
        assert refused.returncode and fault in refused.stderr
    plain = emulated.replace('<cpu mode="host-model" />', "").replace('<launchSecurity type="s390-pv" />', "")
    defined = virsh("define", "--validate", text=plain)
    assert defined.returncode == 0, defined.stderr
    # As libvirt writes it: what was taken away here is missing, and nothing else.
    told = virsh("dumpxml", "guest").stdout
    assert sorted(ids(told)) == ["SX-DOMAIN-07", "SX-DOMAIN-11", "SX-DOMAIN-12"]


@needs.programs("qemu-system-s390x")
def test_qemu_takes_the_command_but_for_what_a_mainframe_alone_has(tmp_path: Path) -> None:
    for name in ("disk, with a comma.raw", "config.asc"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    guest = Guest(
        "guest", tmp_path / "disk, with a comma.raw", "raw", tmp_path / "config.asc", tmp_path / "log"
    )
    words = [word for each in domain.command_line(guest) for word in each]
    if platform.machine() != "s390x":
        whole = subprocess.run([*words, "-S"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert whole.returncode and "s390-pv-guest" in whole.stderr
    for mainframe_s, here in (
        ("s390-ccw-virtio,accel=kvm,confidential-guest-support=pv0", "s390-ccw-virtio,accel=tcg"),
        ("s390-pv-guest,id=pv0", "rng-builtin,id=pv0"),
        ("host", "max"),
    ):
        words[words.index(mainframe_s)] = here
    words = [word.replace("stdio,", "null,", 1).replace(",signal=off", "") for word in words]
    asked = [{"execute": name} for name in ("qmp_capabilities", "query-block", "quit")]
    answered = subprocess.run(
        [*words, "-S", "-qmp", "stdio"],
        input="".join(json.dumps(each) for each in asked),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert answered.returncode == 0, answered.stderr
    (disks,) = (
        told
        for line in answered.stdout.splitlines()
        if isinstance(told := json.loads(line).get("return"), list)
    )
    files = {each["device"]: (each["inserted"]["file"], each["inserted"]["ro"]) for each in disks}
    assert files == {"system": (str(guest.image), False), "config": (str(guest.config), True)}


@pytest.mark.parametrize(
    ("wrong", "id"),
    [
        ({"name": "a/b"}, "SX-DOMAIN-04"),
        ({"name": ""}, "SX-DOMAIN-04"),
        ({"network": "-net"}, "SX-DOMAIN-04"),
        ({"image": Path("/a\nb")}, "SX-DOMAIN-05"),
        ({"config": Path("/a\x1bb")}, "SX-DOMAIN-05"),
    ],
)
def test_a_guest_that_cannot_be_written_down_is_refused(wrong: dict[str, Any], id: str) -> None:
    with pytest.raises(Refusal, match=id):
        Guest(**{**vars(GUEST), **wrong})


# --- what is said of a domain ---


def test_what_is_written_lacks_nothing() -> None:
    assert ids(WRITTEN) == []


IOMMU = ('<driver name="qemu" type="qcow2" />', '<driver name="qemu" type="qcow2" iommu="on" />')
NO_LAUNCH = ('<launchSecurity type="s390-pv" />', "")


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ([('type="kvm"', 'type="qemu"')], ["SX-DOMAIN-07"]),
        ([('arch="s390x"', 'arch="x86_64"')], ["SX-DOMAIN-08"]),
        ([('machine="s390-ccw-virtio"', 'machine="s390-ccw-virtio-9.2"')], []),
        ([('machine="s390-ccw-virtio"', 'machine="pc"')], ["SX-DOMAIN-09"]),
        ([("</os>", "<kernel>/vmlinuz</kernel></os>")], ["SX-DOMAIN-10"]),
        ([('<cpu mode="host-model" />', "")], ["SX-DOMAIN-11"]),
        ([('<cpu mode="host-model" />', '<cpu mode="host-passthrough"/>')], []),
        ([('<cpu mode="host-model" />', '<cpu mode="custom"><model>gen15b</model></cpu>')], ["SX-DOMAIN-11"]),
        (
            [
                (
                    '<cpu mode="host-model" />',
                    '<cpu mode="custom"><feature policy="require" name="unpack"/></cpu>',
                )
            ],
            [],
        ),
        (
            [
                (
                    '<cpu mode="host-model" />',
                    '<cpu mode="host-model"><feature policy="disable" name="unpack"/></cpu>',
                )
            ],
            ["SX-DOMAIN-11"],
        ),
        ([NO_LAUNCH], ["SX-DOMAIN-12"]),
        ([NO_LAUNCH, ('<memballoon model="none" />', "")], ["SX-DOMAIN-12", "SX-DOMAIN-14"]),
        ([NO_LAUNCH, IOMMU, ('<model type="virtio" />', "")], ["SX-DOMAIN-13", "SX-DOMAIN-13"]),
        ([("s390-pv", "sev")], ["SX-DOMAIN-12"]),
        ([NO_LAUNCH, IOMMU], ["SX-DOMAIN-13", "SX-DOMAIN-13"]),
        (
            [
                NO_LAUNCH,
                IOMMU,
                ('<driver name="qemu" type="raw" />', '<driver name="qemu" type="raw" iommu="on"/>'),
                ('<model type="virtio" />', '<model type="virtio"/><driver iommu="on"/>'),
            ],
            [],
        ),
        ([('type="qcow2" />', 'type="qcow2" iommu="off"/>')], ["SX-DOMAIN-13"]),
        ([('<memballoon model="none" />', "")], ["SX-DOMAIN-14"]),
        ([('<memballoon model="none" />', '<memballoon model="virtio"/>')], ["SX-DOMAIN-14"]),
        ([("</devices>", '<hostdev mode="subsystem" type="pci"/></devices>')], ["SX-DOMAIN-15"]),
        ([("</devices>", '<hostdev mode="subsystem" type="mdev" model="vfio-ap"/></devices>')], []),
        ([('<memory unit="MiB">2048</memory>', "")], ["SX-DOMAIN-16"]),
        ([('unit="MiB">2048', 'unit="furlong">2048')], ["SX-DOMAIN-16"]),
        ([('unit="MiB">2048', 'unit="MiB">-1')], ["SX-DOMAIN-16"]),
        ([('unit="MiB">2048', 'unit="MiB">1023')], ["SX-DOMAIN-17"]),
        ([('unit="MiB">2048', 'unit="MiB">1024')], []),
        ([("<devices>", "<memoryBacking><hugepages/></memoryBacking><devices>")], ["SX-DOMAIN-18"]),
        ([('<boot order="1" />', ""), ("<readonly />", '<readonly /><boot order="1"/>')], ["SX-DOMAIN-19"]),
        (
            [('order="1"', 'order="2"'), ('type="network">', 'type="network"><boot order="1"/>')],
            ["SX-DOMAIN-19"],
        ),
        ([('<boot order="1" />', ""), ("</os>", '<boot dev="network"/></os>')], ["SX-DOMAIN-19"]),
        ([('<boot order="1" />', ""), ("</os>", '<boot dev="hd"/></os>')], []),
        ([('<boot order="1" />', ""), ("<devices>", '<devices><disk device="cdrom"/>')], []),
        ([(SYSTEM, SYSTEM + "<readonly/>")], ["SX-DOMAIN-20"]),
        ([(SYSTEM, SYSTEM + "<transient/>")], ["SX-DOMAIN-20"]),
        ([('type="qcow2" />', 'type="qcow2" cache="unsafe"/>')], ["SX-DOMAIN-21"]),
        ([('type="qcow2" />', 'type="qcow2" cache="none"/>')], []),
        ([('<boot order="1" />', '<boot order="1" loadparm="1"/>')], []),
        ([('<boot order="1" />', '<boot order="1" loadparm="2"/>')], ["SX-DOMAIN-22"]),
        ([("ignition_crypted", "config")], ["SX-DOMAIN-25"]),
        (
            [(SYSTEM, "<serial>ignition_crypted</serial>")],
            ["SX-DOMAIN-19", "SX-DOMAIN-29", "SX-DOMAIN-28", "SX-DOMAIN-26"],
        ),
        ([('dev="vdb" bus="virtio"', 'dev="sda" bus="scsi"')], ["SX-DOMAIN-27"]),
        ([('type="raw"', 'type="qcow2"')], ["SX-DOMAIN-28"]),
        ([("<readonly />", "")], ["SX-DOMAIN-29"]),
        ([('type="sclp"', 'type="virtio"')], ["SX-DOMAIN-31"]),
        ([('<log file="/nowhere/log" append="on" />', "")], ["SX-DOMAIN-32"]),
    ],
)
def test_each_thing_that_is_missing_is_told(wrong: list[tuple[str, str]], expected: list[str]) -> None:
    assert ids(changed(*wrong)) == expected


def test_a_finding_has_the_line_that_it_is_about() -> None:
    text = changed(("<readonly />", ""), ('type="raw"', 'type="qcow2"'))
    checked = domain_check.check_domain(xml_lines.parse(text.encode()))
    lines = text.splitlines()
    assert ['type="qcow2"' in lines[each.line - 1] for each in checked.findings if each.line] == [False, True]
    assert [each.advice for each in checked.findings] == [True, False]


@pytest.mark.parametrize(
    ("memory", "mib"),
    [
        ("<memory>1048576</memory>", 1024),
        ("<memory unit='KiB'> 1048576 </memory>", 1024),
        ("<memory unit='k'>1048576</memory>", 1024),
        ("<memory unit='bytes'>1073741824</memory>", 1024),
        ("<memory unit='b'>1073741824</memory>", 1024),
        ("<memory unit='MB'>1074</memory>", 1024),
        ("<memory unit='GiB'>2</memory>", 2048),
        ("<memory unit='G'>2</memory>", 2048),
        ("<memory unit='TB'>1</memory>", 953674),
        ("<memory unit='PiB'>1</memory>", None),
        ("<memory>1e9</memory>", None),
        ("<memory>9999999999999999999</memory>", None),
    ],
)
def test_memory_is_counted_in_libvirt_s_units(memory: str, mib: int | None) -> None:
    assert domain_check._mib(xml_lines.parse(memory.encode())) == mib


def test_after_the_first_boot_no_config_is_needed_and_the_image_before_can_be_chosen() -> None:
    without = domain.xml(Guest(**{**vars(GUEST), "config": None, "loadparm": "2"}))
    assert ids(without, later=True) == []
    assert ids(WRITTEN, later=True) == ["SX-DOMAIN-24"]
    assert ids(without.replace('loadparm="2"', 'loadparm="3"'), later=True) == ["SX-DOMAIN-22"]


# --- with its files ---


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return se_disk.make(tmp_path, 300)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.asc"
    path.write_bytes(ENCRYPTED + bytes(-len(ENCRYPTED) % 512))
    return path


def looked_at(image: Path, config: Path | None) -> domain_check.Checked:
    text = domain.xml(Guest("guest", image, "raw", config, Path("/nowhere/log")))
    return domain_check.check_domain(xml_lines.parse(text.encode()))


def test_an_image_and_its_config_are_a_first_boot_that_lacks_nothing(image: Path, config: Path) -> None:
    assert looked_at(image, config) == domain_check.Checked(first_boot=True)


def test_a_disk_without_room_is_told_in_the_words_of_first_boot(tmp_path: Path, config: Path) -> None:
    checked = looked_at(se_disk.make(tmp_path, 130), config)
    assert [each.error.id for each in checked.findings] == ["SX-DISK-28"]


def test_a_provisioned_disk_is_no_first_boot(image: Path, config: Path) -> None:
    for number in ("5", "6"):
        subprocess.run(["sfdisk", "--quiet", "--delete", image, number], check=True)
    assert looked_at(image, None) == domain_check.Checked(first_boot=False)
    assert [each.error.id for each in looked_at(image, config).findings] == ["SX-DOMAIN-24"]


def test_a_config_that_is_not_encrypted_is_told(image: Path, config: Path) -> None:
    config.write_bytes(b'{"ignition": {"version": "3.3.0"}}'.ljust(512))
    (found,) = looked_at(image, config).findings
    assert found.error.id.startswith("SX-CONFIG-") and not found.advice


def test_a_config_that_ends_within_a_block_is_told(image: Path, config: Path) -> None:
    config.write_bytes(ENCRYPTED)
    (found,) = looked_at(image, config).findings
    assert found.error.id == "SX-DOMAIN-30" and found.advice


@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_nothing_but_regular_files_is_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    checked = looked_at(path, path)
    assert len(checked.untold) == 2 and not checked.findings


# --- hostile XML ---

BILLION = '<!DOCTYPE a [<!ENTITY b "ha">]><domain>&b;</domain>'


@pytest.mark.parametrize(
    ("content", "id"),
    [
        (BILLION, "SX-DOMAIN-03"),
        ("<a>" * 200 + "</a>" * 200, "SX-DOMAIN-03"),
        ("<domain><a></domain>", "SX-DOMAIN-03"),
        ("", "SX-DOMAIN-03"),
        ("\0", "SX-DOMAIN-03"),
        ("<network/>", "SX-DOMAIN-06"),
        ("<domain>" + " " * (1 << 20) + "</domain>", "SX-DOMAIN-02"),
    ],
    ids=["document type", "deep", "unbalanced", "empty", "NUL", "another", "large"],
)
def test_what_is_no_domain_is_refused(tmp_path: Path, content: str, id: str) -> None:
    path = tmp_path / "guest.xml"
    path.write_text(content)
    with pytest.raises(Refusal, match=id):
        domain_check.check(path)


def test_a_domain_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="SX-DOMAIN-01"):
        domain_check.check(tmp_path / "none.xml")


def test_an_empty_domain_lacks_much_and_breaks_nothing() -> None:
    assert "SX-DOMAIN-12" in ids("<domain/>")


# --- as a person calls it ---


def test_what_is_made_of_an_image_passes_the_check(
    image: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        secex.main(["domain", str(image), "--config", str(config), "--console", "/nowhere/log"]) == Exit.DONE
    )
    written = capsys.readouterr()
    assert written.err == ""
    path = image.with_name("guest.xml")
    path.write_text(written.out)
    assert secex.main(["domain", "--check", str(path)]) == Exit.DONE
    assert "a first boot" in capsys.readouterr().out


def test_a_disk_that_is_no_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "none.qcow2"):
        assert secex.main(["domain", str(path)]) == Exit.REFUSED
        told = capsys.readouterr()
        assert "SX-DOMAIN-33" in told.err and told.out == ""


def test_qemu_s_command_is_one_for_a_shell(
    image: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert secex.main(["domain", str(image), "--config", str(config), "--qemu", "--memory=4096"]) == Exit.DONE
    words = shlex.split(capsys.readouterr().out.replace("\\\n", ""))
    assert words[0] == "qemu-system-s390x" and words[words.index("-m") + 1] == "4096M"


def test_what_is_wrong_with_image_or_config_is_told_beside_the_domain(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert secex.main(["domain", str(image)]) == Exit.FAILED
    told = capsys.readouterr()
    assert "SX-DOMAIN-25" in told.err and told.out.startswith("<domain ")


def test_programs_get_what_the_schema_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "guest.xml"
    path.write_text(changed(('unit="MiB">2048', 'unit="MiB">5'), ("ignition_crypted", "config")))
    assert secex.main(["domain", "--check", str(path), "--json"]) == Exit.FAILED
    printed = json.loads(capsys.readouterr().out)
    json_schemas.validate(printed, "domain")
    levels = {each["id"]: each["level"] for each in printed["findings"]}
    assert levels == {"SX-DOMAIN-17": "advice", "SX-DOMAIN-25": "wrong"}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["image", "--check=guest.xml"],
        ["--check=guest.xml", "--memory=1"],
        ["image", "--json"],
        ["image", "--later"],
        ["image", "--memory=0"],
        ["image", "--cpus=two"],
    ],
)
def test_options_that_do_not_go_together_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        secex.main(["domain", *words])
    assert stopped.value.code == Exit.USAGE
