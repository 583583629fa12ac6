"""The step that makes the final boot image, after it enabled the system's units, as nothing after it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import needs
from support.machine import (
    Machine,
    header,
    observe,
)

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context
from secex_firstboot.agent.steps import seal
from secex_firstboot.agent.steps.seal import Seal
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.process import ToolError
from secex_firstboot.contract import paths
from secex_firstboot.contract.dry_run import State
from secex_firstboot.contract.partitions import VOLUMES
from secex_firstboot.roots import crypttab
from secex_firstboot.storage import devicemapper

SERVICE = "[Service]\nExecStart=/bin/true\n"
WANTED = "[Install]\nWantedBy=multi-user.target\n"
OURS = {
    "secex-firstboot-grow.service",
    "secex-firstboot-hosts.timer",
    "secex-firstboot-image.service",
    "secex-firstboot-restart.service",
    "secex-firstboot-tidy.service",
    "secex-firstboot-update.path",
}
NOT_ALL = "not all units could be enabled: look at them with systemctl preset-all"
NOT_READ = "unit files cannot be read, or not be enabled: look at the disk's health"

needs_systemctl = needs.programs("systemctl")


@pytest.fixture(autouse=True)
def files(machine: Machine) -> None:
    for directory in ("usr/lib/systemd/system", "etc/systemd/system", "etc/systemd/system-preset"):
        (places.SYSROOT / directory).mkdir(parents=True)
    config()
    preset("disable *")
    for name in OURS:
        unit(name)


def config(*units: dict[str, Any]) -> None:
    """What Ignition leaves of the user's config."""
    places.IGNITION_MERGED_CONFIG.parent.mkdir(parents=True, exist_ok=True)
    merged = {"ignition": {"version": "3.3.0"}, "systemd": {"units": list(units)}}
    places.IGNITION_MERGED_CONFIG.write_text(json.dumps(merged))


def preset(*lines: str) -> None:
    (places.SYSROOT / "etc/systemd/system-preset/20-ignition.preset").write_text("\n".join(lines) + "\n")


def unit(name: str, content: str = SERVICE + WANTED) -> None:
    (places.SYSROOT / "usr/lib/systemd/system" / name).write_text(content)


def enable() -> list[str]:
    """The warnings."""
    said: list[str] = []
    seal._enable_units(Context("", warn=said.append))
    return said


def links() -> set[str]:
    return {path.name for path in (places.SYSROOT / "etc/systemd/system").glob("*.wants/*")}


def enabled() -> set[str]:
    """Without our own."""
    return links() - OURS


@needs_systemctl
def test_our_units_are_enabled_whatever_the_presets_say() -> None:
    """Also where none could be read: the tidying must not hang on a block that the host spoils."""
    assert enable() == []
    assert links() == OURS


@needs_systemctl
def test_a_unit_of_ours_that_the_image_has_masked_is_named() -> None:
    (places.SYSROOT / "etc/systemd/system/secex-firstboot-grow.service").symlink_to("/dev/null")
    assert enable() == [
        "secex-firstboot-grow.service could not be enabled: the image has masked it, or does not have it"
    ]
    assert links() == OURS - {"secex-firstboot-grow.service"}


@needs_systemctl
def test_the_presets_units_are_enabled_before_the_system_starts() -> None:
    """Later starts are none that systemd takes for a first, and the power may fail in the one that is."""
    unit("wanted.service")
    unit("unwanted.service")
    preset("enable wanted.service", "disable *")
    assert enable() == []
    assert enabled() == {"wanted.service"}


@needs_systemctl
def test_the_configs_units_are_enabled_even_where_no_preset_could_be_read() -> None:
    """systemctl takes a directory of presets that gives an I/O error for an empty one."""
    for name in ("wanted.service", "instance@.service", "unwanted.service", "masked.service"):
        unit(name)
    config(
        {"name": "wanted.service", "enabled": True},
        {"name": "instance@a.service", "enabled": True},
        {"name": "unwanted.service", "enabled": False},
        {"name": "masked.service", "enabled": True, "mask": True},
    )
    assert enable() == []
    assert enabled() == {"wanted.service", "instance@a.service"}


@needs_systemctl
def test_a_unit_file_that_cannot_be_read_stops_the_sealing() -> None:
    """systemctl enables nothing at all then. Real: no line of a unit file may be this long."""
    unit("wanted.service")
    unit("a.service", "a" * (1 << 21))
    preset("enable *")
    with pytest.raises(FirstbootError, match=NOT_READ):
        enable()
    assert enabled() == set()
    unit("a.service")
    assert enable() == []
    assert enabled() == {"a.service", "wanted.service"}


@pytest.mark.parametrize(
    "words",
    [
        'Failed to preset unit, file "secret.service": Input/output error',
        'Failed to preset unit, file "secret.service": Bad message',
        'Failed to preset unit, "secret.service" is not a valid unit name.',
        "Failed to preset unit, unit a.service is masked.\nFailed to preset: Input/output error.",
        'Failed to preset unit, "/usr/lib/systemd/system/secret.path" is not a valid unit name.',
        "Failed to enable unit: Input/output error",
        "Failed to preset unit secret.service: Bad message",
        "Failed to enable unit: Invalid unit name secret.service",
        "Failed to enable unit: Invalid unit name /usr/lib/systemd/system/secret.service",
        "Failed to enable unit: Unit a.service is masked\nFailed to enable unit: Input/output error",
        "",
    ],
)
def test_what_a_spoiled_block_makes_systemctl_say_stops_and_no_unit_is_named(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mock: systemctl fails. EIO is the kernel's; EUCLEAN and EBADMSG are the file system's."""

    def fail(argv: object, **_: object) -> str:
        raise ToolError("systemctl", 1, f"{words}\n")

    monkeypatch.setattr(seal, "run", fail)
    with pytest.raises(FirstbootError, match=NOT_READ) as error:
        enable()
    assert "secret" not in str(error.value)


def test_a_unit_of_the_config_that_fails_alone_stops_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock: only that unit cannot be enabled."""

    def fail(argv: list[str], **_: object) -> str:
        if argv[-1] in {"preset-all", *OURS}:
            return ""
        raise ToolError("systemctl", 1, 'Failed to enable unit, file "secret.service": Input/output error\n')

    monkeypatch.setattr(seal, "run", fail)
    config({"name": "secret.service", "enabled": False})
    assert enable() == []
    config({"name": "secret.service", "enabled": True})
    with pytest.raises(FirstbootError, match=NOT_READ):
        enable()


@needs_systemctl
@pytest.mark.parametrize(
    "bad",
    [
        {"bad.service": f"{SERVICE}[Install]\nAlias=bad.socket\n"},
        {"bad.service": f"{SERVICE}[Install]\nWantedBy=%Q.target\n"},
        {"bad.service": f"{SERVICE}[Install\n"},
        {"bad@.service": SERVICE + WANTED},
        {"bad.service": ""},
        {},
    ],
)
def test_a_unit_whose_own_fault_it_is_stops_nothing(bad: dict[str, str]) -> None:
    """With a bad [Install], masked, or none at all: the others are enabled, and it is named by its place."""
    unit("wanted.service")
    for name, content in bad.items():
        unit(name, content)
    preset("enable *")
    name = next(iter(bad), "bad.service")
    config({"name": name, "enabled": True}, {"name": "wanted.service", "enabled": True})
    place = "systemd.units[0] of the config could not be enabled: look at its [Install]"
    assert [line for line in enable() if line != NOT_ALL] == [place]
    assert "wanted.service" in enabled()


@pytest.mark.parametrize(
    "words",
    [
        "Failed to enable unit: Cannot alias bad.service as bad.socket",
        "Failed to enable unit: Invalid specifier in unit %Q.target",
        "/usr/lib/systemd/system/a.service:3: Invalid section header '[Install'\n"
        "/usr/lib/systemd/system/a.service:3: Invalid section header '[Install'\n"
        "Failed to preset unit a.service: Bad message\nFailed to preset unit a.service: Bad message",
        "Failed to enable unit: Refusing to operate on template unit bad@.service when destination unit "
        "multi-user.target is a non-template unit",
        "Failed to enable unit: Unit /etc/systemd/system/a.service is masked",
        "Failed to enable unit: Unit a.service does not exist",
        "Failed to enable unit: Cannot alias a.service as multi-user\n"
        "Failed to enable unit: Invalid unit name a\nFailed to enable unit: Invalid unit name ../x.target",
        "Failed to enable unit: File '/etc/systemd/system/other.service' already exists",
    ],
)
def test_a_units_own_fault_is_told_as_systemd_257_does(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock, with what Debian 13's systemctl said of such units: other words than that of Debian 12."""

    def fail(argv: list[str], **_: object) -> str:
        if argv[-1] == "a.service":
            raise ToolError("systemctl", 1, f"{words}\n")
        return ""

    monkeypatch.setattr(seal, "run", fail)
    config({"name": "a.service", "enabled": True})
    assert enable() == ["systemd.units[0] of the config could not be enabled: look at its [Install]"]


@needs_systemctl
def test_a_unit_without_an_install_section_is_taken_as_it_is() -> None:
    unit("static.service", SERVICE)
    preset("enable static.service")
    config({"name": "static.service", "enabled": True})
    assert enable() == []
    assert enabled() == set()


# --- when, and what the system gets of the volumes ---


def test_seal_waits_for_commit_point_and_mounts(machine: Machine) -> None:
    assert observe(machine, Seal()).detail == "the commit point comes first"
    machine.commit()
    assert observe(machine, Seal()).detail == "the encrypted volumes are mounted first"
    machine.mounts[places.SYSROOT / "boot"] = "253:1"
    assert observe(machine, Seal()).state is State.READY


def test_the_provisioned_system_gets_keys_detached_headers_and_crypttab(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "LUKS_KEYS", Path("/etc/luks"))
    monkeypatch.setattr(devicemapper, "crypt_mode", lambda name: f"aes-of-{name} integrity:32:aead")
    machine.commit()
    assert {str(path): content for path, content in seal.key_files().items()} == {
        f"/etc/luks/{name}": f"{header(name)}key of {name}".encode() for name in VOLUMES
    }
    lines = seal.crypttab_lines()
    assert [line.split() for line in lines if not line.startswith("#")] == [
        [
            name,
            f"PARTUUID=00000000-0000-4000-8000-00000000000{number}",
            f"/etc/luks/{name}",
            f"luks,header=/etc/luks/{name},keyfile-offset=557056,keyfile-size=64,"
            "x-initrd.attach,x-systemd.device-timeout=0,headless=yes",
        ]
        for name, number in (("boot", 3), ("root", 4))
    ]
    modes = [crypttab.mode(name, "\n".join(lines)) for name in VOLUMES]
    assert modes == [f"aes-of-{name} integrity:32:aead" for name in VOLUMES]
