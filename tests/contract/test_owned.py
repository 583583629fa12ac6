"""Names that first boot owns, and their neighbours that it does not."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pytest
from support import REPOSITORY

from secex_firstboot.agent import places
from secex_firstboot.contract import owned, paths
from secex_firstboot.contract.partitions import VOLUMES
from secex_firstboot.roots import overlay

SYSTEMD = REPOSITORY / "systemd"


@pytest.mark.parametrize("unit", sorted(path.name for path in SYSTEMD.glob("secex-firstboot*.service")))
def test_each_of_our_units_is_owned(unit: str) -> None:
    assert owned.is_unit(unit)


@pytest.mark.parametrize(
    "name",
    [
        *("secex-firstboot-new.service", "secex-firstboot-grow.timer", "secex-firstboot@x.service"),
        *("systemd-cryptsetup@root.service", "systemd-cryptsetup@boot.service"),
        # Templates, and names that begin alike: their drop-ins count for the unit.
        *("systemd-cryptsetup@.service", "systemd-.service", "dev-.device", "dev-mapper-.device"),
        *("dev-mapper-root.device", "dev-mapper-boot.device"),
        *("-.mount", "boot.mount", "boot.automount", "boot-loader.mount", "etc.mount", "usr-lib.mount"),
        *("etc-luks.mount", r"etc-secex\x2dfirstboot.mount", r"\x2esecex\x2dfirstboot.mount"),
        *(r"etc-secex\x2dfirstboot.conf.mount", r"var-lib-secex\x2dfirstboot.mount"),
    ],
)
def test_what_is_said_of_a_unit_that_first_boot_needs_is_owned(name: str) -> None:
    assert owned.is_unit(name)


@pytest.mark.parametrize(
    "name",
    [
        *("user.service", "secex-first.service", "my-secex-firstboot.service", "secex.service"),
        *("systemd-cryptsetup@data.service", "systemd-cryptsetup@rootless.service", "service"),
        *("systemd-cryptsetup-.service", "systemd-journald.service", "dev-mapper-data.device", "dev.device"),
        *("var.mount", "var-lib.mount", "srv-boot.mount", "etc-containers.mount", "boots.mount"),
        *("boot.service", "cryptsetup.target", "systemd-.socket"),
    ],
)
def test_other_units_are_the_configs(name: str) -> None:
    assert not owned.is_unit(name)


@pytest.mark.parametrize("volume", VOLUMES)
def test_the_mappings_of_our_volumes_are_owned(volume: str) -> None:
    for suffix in ("", "_dif", "_verity", "_old", "_tree", "_target", "_new", "_new_dif"):
        assert owned.is_mapping(f"{volume}{suffix}")
        assert owned.is_link_to_mapping(f"dm-name-{volume}{suffix}")
        assert owned.is_luks_name(f"{volume}{suffix}")
        assert owned.is_luks_name(f"{volume}{suffix}.header")


@pytest.mark.parametrize(
    "name", ["root_data", "boot_a", "root_", "root_dif_x", "root-dif", "data_dif", "roots"]
)
def test_other_mappings_are_the_configs(name: str) -> None:
    assert not owned.is_mapping(name)
    assert not owned.is_link_to_mapping(f"dm-name-{name}")
    assert not owned.is_luks_name(name)


@pytest.mark.parametrize(
    ("path", "units"),
    [
        ("/etc/systemd/system/a.service", ["a.service"]),
        ("/etc/systemd/system/a.service.d/x.conf", ["a.service", "x.conf"]),
        ("/usr/lib/systemd/system/b.target.wants/a.service", ["b.target", "a.service"]),
        ("/etc/systemd/system.control/a.service.requires/c.service", ["a.service", "c.service"]),
        ("/etc/systemd/system", []),
        ("/etc/systemd/network/a.service", []),
        ("/etc/systemd/systems/a.service", []),
    ],
)
def test_the_units_that_a_path_is_about(path: str, units: list[str]) -> None:
    assert owned.units_in(PurePosixPath(path)) == units


def test_the_places_that_the_agent_writes_to_are_owned() -> None:
    for path in (places.STATE, paths.LUKS_KEYS, paths.SEALED, paths.SYSTEM_REPORT, paths.GROWN):
        assert owned.is_below(PurePosixPath(path), owned.TREES)
    assert owned.is_below(PurePosixPath("/", overlay.TOP), owned.TREES)
    assert PurePosixPath(paths.SETTINGS) in owned.SETTINGS
    assert owned.is_luks_name(paths.SEALED.name)


def test_the_contract_imports_nothing_of_ours_but_the_basics() -> None:
    package = Path(owned.__file__).parent
    for module in package.glob("*.py"):
        assert not re.search(
            r"^\s*(from|import) secex_firstboot\.(?!basic|contract)", module.read_text(), re.MULTILINE
        ), module
