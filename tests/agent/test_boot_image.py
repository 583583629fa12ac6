"""What the boot images keep from the host: logins, a network in the initramfs, other hosts."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY, TEST_VECTORS, elsewhere

from secex_firstboot.agent import boot_image, places
from secex_firstboot.agent.step import Context
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.contract import paths
from secex_firstboot.ignition import local_login
from secex_firstboot.sdboot import image, options
from secex_firstboot.sdboot.boot_entry import BootEntry
from secex_firstboot.sdboot.options import first_boot_command_line

VECTORS = TEST_VECTORS / "se-image"
NO_LOCAL_LOGIN = REPOSITORY / "dracut/no-local-login.ign"
IMAGE = (
    "root=/dev/mapper/root init_on_free=1 systemd.gpt_auto=0 fsck.mode=skip console=ttysclp0 "
    "ignition.platform.id=metal rd.neednet=1 secex.headroom=64"
)
DROP_IN = "50-secex-no-local-login.conf"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere.move(monkeypatch, tmp_path)
    merge()


def merge(**config: Any) -> None:
    """What Ignition leaves of the user's config."""
    places.IGNITION_MERGED_CONFIG.parent.mkdir(parents=True, exist_ok=True)
    places.IGNITION_MERGED_CONFIG.write_text(json.dumps({"ignition": {"version": "3.3.0"}, **config}))


def forbid_logins() -> None:
    places.IGNITION_BASE_CONFIGS.mkdir(parents=True)
    shutil.copy(NO_LOCAL_LOGIN, places.IGNITION_BASE_CONFIGS / paths.NO_LOCAL_LOGIN.name)


# --- logins ---


def masked_by_ignition() -> set[str]:
    units = json.loads(NO_LOCAL_LOGIN.read_text())["systemd"]["units"]
    return {unit["name"] for unit in units if unit.get("mask")}


def masked(command_line: str) -> set[str]:
    return {word.partition("=")[2] for word in command_line.split() if word.startswith("systemd.mask=")}


def test_what_ignition_masks_the_command_line_masks() -> None:
    forbid_logins()
    line = boot_image.system_command_line(IMAGE)
    assert masked(line) == masked_by_ignition()
    assert {"serial-getty@.service", "debug-shell.service", "sshd-vsock.socket"} < masked(line)
    assert {"systemd.condition_first_boot=no", "systemd.firstboot=no", "systemd.ssh_auto=no"} < set(
        line.split()
    )


def test_an_image_that_allows_logins_has_nothing_of_it() -> None:
    assert "systemd." not in boot_image.system_command_line(IMAGE).replace("systemd.gpt_auto=0", "")
    assert local_login.unit_files(boot_image.login_units()) == {}


def test_the_image_does_not_take_it_back_with_words_of_its_own() -> None:
    forbid_logins()
    words = boot_image.system_command_line(
        f"{IMAGE} systemd.firstboot=yes systemd.condition-first-boot=1"
    ).split()
    switches = [
        word for word in words if word.partition("=")[0].endswith(("firstboot", "first-boot", "first_boot"))
    ]
    assert switches == ["systemd.condition_first_boot=no", "systemd.firstboot=no"]


def test_masks_of_the_image_stay_and_none_is_there_twice() -> None:
    forbid_logins()
    own = "systemd.mask=own.service systemd.mask=getty@.service"
    words = boot_image.system_command_line(f"{IMAGE} {own}").split()
    assert words.count("systemd.mask=own.service") == words.count("systemd.mask=getty@.service") == 1


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"shouldExist": ["audit=0", 'x="a b"', "quiet"]},
    {"shouldNotExist": ["console=ttysclp0", "secex-test"]},
    {"shouldExist": ["quiet", "audit=0"], "shouldNotExist": ["loglevel=7"]},
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("own", ["", "quiet -- init", "systemd.mask=getty@.service systemd.firstboot=yes"])
def test_made_of_what_it_has_made_it_is_the_same_whatever_its_number(
    arguments: dict[str, Any], own: str
) -> None:
    """libostree carries on what an image had."""
    forbid_logins()
    merge(kernelArguments=arguments)
    line = boot_image.system_command_line(f"{IMAGE} loglevel=7 {own}")
    assert boot_image.system_command_line(line) == line
    numbered = options.numbered(options.numbered(line, 7), 8)
    assert numbered.split().count("secex.generation=8") == 1
    assert "secex.generation=7" not in numbered
    assert boot_image.system_command_line(numbered) == line


def test_there_is_room_for_it_on_the_command_line(tmp_path: Path) -> None:
    """With an image's own options, and on the kernels that take least (896 bytes were Linux 5.15's)."""
    forbid_logins()
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bytes(1 << 17))
    line = boot_image.system_command_line(
        f"{IMAGE} rd.znet=qeth,0.0.0600,0.0.0601,0.0.0602,layer2=1 crashkernel=196M"
    )
    assert len(line) < 896
    assert image.command_line_component(line, kernel)


def test_the_initramfs_has_masks_and_drop_ins_for_the_system() -> None:
    forbid_logins()
    files = local_login.unit_files(boot_image.login_units())
    assert {name for name, content in files.items() if content == b""} == masked_by_ignition()
    assert set(files) - masked_by_ignition() == {
        f"{unit}.service.d/{DROP_IN}" for unit in ("emergency", "rescue")
    }
    for unit in ("emergency", "rescue"):
        assert b"FailureAction=poweroff-force" in files[f"{unit}.service.d/{DROP_IN}"]


def test_what_the_users_config_takes_back_is_not_forbidden_twice() -> None:
    forbid_logins()
    getty = "serial-getty@.service"
    other = {"name": DROP_IN, "contents": "[Unit]\n"}
    merge(
        systemd={
            "units": [
                {"name": getty, "mask": False},
                {"name": "debug-shell.service", "enabled": True},
                {"name": "rescue.service", "dropins": [other]},
                {"name": "emergency.service", "dropins": [{"name": "other.conf", "contents": "[Unit]\n"}]},
            ]
        }
    )
    left = masked_by_ignition() - {getty}
    assert (
        masked(boot_image.system_command_line(IMAGE)) == left
    )  # Ignition masks what is enabled and not unmasked
    assert set(local_login.unit_files(boot_image.login_units())) == left | {f"emergency.service.d/{DROP_IN}"}


# --- network ---

FOR_NETWORK = [
    "rd.neednet=1",
    "rd.neednet",
    "ip=dhcp",
    "ip=10.0.0.2::10.0.0.1:255.255.255.0:guest:encc0:none",
    "nameserver=10.0.0.1",
    "rd.peerdns=0",
    "rd.route=10.0.1.0/24:10.0.0.1",
    "rd.net.timeout.carrier=5",
    "bootdev=encc0",
    "BOOTIF=01-02-03-04-05-06-07",
    "ifname=net0:02:03:04:05:06:07",
    "vlan=net0.1:net0",
    "bond=bond0:a,b",
    "team=team0:a,b",
    "bridge=br0:a",
]
FOR_DEVICES = [
    "rd.znet=qeth,0.0.0600,0.0.0601,0.0.0602,layer2=1",
    "rd.zdev=no-auto",
    "rd.zfcp=0.0.1900",
    "net.ifnames=0",
    "ipv6.disable=1",
    "cio_ignore=all,!0.0.0600",
]


@pytest.mark.parametrize("option", FOR_NETWORK)
def test_later_boots_have_no_network_in_the_initramfs(option: str) -> None:
    assert option not in boot_image.system_command_line(f"a {option} b").split()
    assert option in first_boot_command_line(f"a {option} b").split()
    assert option in boot_image.system_command_line(f"a {option} b secex.network=always").split()


@pytest.mark.parametrize("option", FOR_DEVICES)
def test_what_makes_the_systems_devices_stays(option: str) -> None:
    assert option in boot_image.system_command_line(f"a {option} b").split()


@pytest.mark.parametrize("option", FOR_NETWORK)
def test_a_config_that_wants_one_is_refused_unless_the_image_has_it(option: str) -> None:
    merge(kernelArguments={"shouldExist": ["quiet", f"a {option}"]})
    with pytest.raises(Refusal, match=r"kernelArguments\.shouldExist\[1\] is one of .*secex\.network=always"):
        boot_image.system_command_line(IMAGE)
    assert option in boot_image.system_command_line(f"{IMAGE} secex.network=always").split()


# --- hosts ---


def build(se: Path) -> bytes:
    entry = BootEntry("", "", VECTORS / "kernel.bin", (VECTORS / "ramdisk.bin",), "")
    boot_image.build(Context(""), entry, se, command_line="quiet", overlay={})
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
    places.HOST_KEYS.mkdir(parents=True)
    places.RUNTIME.mkdir(parents=True)
    shutil.copy(VECTORS / "host-a.crt", places.HOST_KEYS / "ibm-z-hostkey-a")
    with pytest.raises(FirstbootError, match="the image that pvimg made is not for exactly the host keys"):
        build(se)
    assert not list(se.iterdir())
    shutil.copy(VECTORS / "host-b.crt", places.HOST_KEYS / "ibm-z-hostkey-b")
    assert build(se) == image.read_bytes()
