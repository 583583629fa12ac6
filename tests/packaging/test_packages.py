"""What the packages say stands in several places: that it is the same."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from support import REPOSITORY

import secex_firstboot

CONTROL = (REPOSITORY / "packaging/deb/control").read_text()
SPEC = (REPOSITORY / "packaging/rpm/secex-firstboot.spec").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
NAMES = {"python-gnupg": "gnupg", "systemd-python": "systemd"}
"""Where distributions do not say python3- and the project's name."""
ENABLED = {
    f"secex-firstboot-{name}"
    for name in (
        "grow.service",
        "hosts.timer",
        "image.service",
        "restart.service",
        "tidy.service",
        "update.path",
    )
}


def needed(requirements: list[str]) -> set[tuple[str, str]]:
    pairs = (each.split(">=") for each in requirements)
    return {(f"python3-{NAMES.get(name, name)}", version) for name, version in pairs}


def of_deb(package: str) -> set[tuple[str, str]]:
    (depends,) = re.findall(rf"^Package: {package}\n(?:.+\n)*?Depends: ((?:.+\n )*.+)", CONTROL, re.MULTILINE)
    return set(re.findall(r"(python3-[a-z]+)(?: \(>= ([\d.]+)\))?", depends))


def of_rpm(package: str) -> set[tuple[str, str]]:
    firstboot, tools = SPEC.split("%package -n secex-tools")
    text = tools if package == "secex-tools" else firstboot
    return set(re.findall(r"^Requires: +(python3-[a-z]+)(?: >= ([\d.]+))?", text, re.MULTILINE))


@pytest.mark.parametrize("of", [of_deb, of_rpm])
def test_the_packages_depend_on_what_the_project_does(of: Callable[[str], set[tuple[str, str]]]) -> None:
    assert of("secex-tools") == needed(PROJECT["dependencies"])
    assert of("secex-firstboot") == needed(PROJECT["optional-dependencies"]["guest"])


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["version"]
    assert secex_firstboot.__version__ == version
    assert (REPOSITORY / "packaging/deb/changelog").read_text().startswith(f"secex-firstboot ({version}-1) ")
    assert re.search(rf"^Version: +{re.escape(version)}$", SPEC, re.MULTILINE)
    assert f"{version}\n" in (REPOSITORY / "CHANGELOG.md").read_text()


def files_of(package: str) -> list[str]:
    return (REPOSITORY / f"packaging/deb/{package}.install").read_text().split()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    where = [f"DESTDIR={root}", "PYTHONDIR=/usr/lib/python3/dist-packages"]
    subprocess.run(["make", "--silent", "-C", REPOSITORY, "install", *where], check=True)
    return root


def test_every_file_is_in_one_package(installed: Path) -> None:
    """The builds refuse what no package has; what both have is refused when they are installed."""
    listed = files_of("secex-firstboot") + files_of("secex-tools")
    for path in installed.rglob("*"):
        if path.is_file():
            name = path.relative_to(installed)
            places = [str(place) for place in (name, *name.parents)]
            assert sum(place in listed for place in places) == 1, name


def test_tools_bring_no_unit_no_setting_and_nothing_for_an_initramfs() -> None:
    assert not any(re.search("systemd|sysctl|dracut", line) for line in files_of("secex-tools"))


def test_the_units_of_the_running_system_are_those_that_the_preset_enables(installed: Path) -> None:
    assert {path.name for path in (installed / "usr/lib/systemd/system").iterdir()} == {
        *ENABLED,
        "secex-firstboot-hosts.service",
        "secex-firstboot-update.service",
        "ostree-finalize-staged.service.d",
        "rpm-ostreed.service.d",
        "coreos-ignition-firstboot-complete.service.d",
    }
    preset = (installed / "usr/lib/systemd/system-preset/80-secex-firstboot.preset").read_text()
    assert set(re.findall(r"^enable (.+)$", preset, re.MULTILINE)) == ENABLED
    assert re.search(rf"^%global units {' '.join(sorted(ENABLED))}$", SPEC, re.MULTILINE)


def test_units_name_a_manual_page_that_is_installed(installed: Path) -> None:
    pages = {path.name for path in (installed / "usr/share/man").rglob("*.[1-8]")}
    named = {
        f"{name}.{section}"
        for path in installed.rglob("*.service")
        for name, section in re.findall(
            r"^Documentation=man:([\w-]+)\((\d)\)$", path.read_text(), re.MULTILINE
        )
    }
    assert named and named <= pages


def test_the_command_runs_what_the_project_names(installed: Path) -> None:
    for name, entry in PROJECT["scripts"].items():
        command = installed / "usr/bin" / name
        assert command.stat().st_mode & 0o777 == 0o755
        assert f"from {entry.replace(':', ' import ')}\n" in command.read_text()


def test_the_table_of_messages_is_installed_beside_its_reader(installed: Path) -> None:
    table = installed / "usr/lib/python3/dist-packages/secex_firstboot/owner/messages.json"
    assert table.read_text() == (REPOSITORY / "secex_firstboot/owner/messages.json").read_text()


def test_the_installed_package_has_metadata(installed: Path) -> None:
    (found,) = (installed / "usr/lib/python3/dist-packages").glob("secex_firstboot-*.dist-info/METADATA")
    lines = found.read_text().splitlines()
    assert "Requires-Dist: cryptography>=42" in lines
    assert 'Requires-Dist: systemd-python>=234; extra == "guest"' in lines
