"""The system of the tests is made from the packages that make deb builds. No guest is needed to see how."""

from __future__ import annotations

import subprocess

import pytest
from harness import debian

PACKAGES = ("secex-firstboot", "secex-tools")
UNITS = [
    f"secex-firstboot-{name}"
    for name in ("grow.service", "hosts.timer", "image.service", "tidy.service", "update.path")
]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_is_installed_with_all_that_it_depends_on(package: str) -> None:
    status = (debian.build() / "var/lib/dpkg/status").read_text()
    (found,) = (part for part in status.split("\n\n") if part.startswith(f"Package: {package}\n"))
    assert "\nStatus: install ok installed\n" in found


@pytest.mark.parametrize("unit", UNITS)
def test_its_scripts_have_enabled_the_unit(unit: str) -> None:
    target = "timers" if unit.endswith(".timer") else "multi-user"
    link = debian.build() / f"etc/systemd/system/{target}.target.wants" / unit
    assert str(link.readlink()) == f"/usr/lib/systemd/system/{unit}"


def test_nothing_is_left_when_the_packages_are_purged() -> None:
    """In a layer above the system, which goes with the command."""
    tree = debian.build()
    script = """
        mount -t tmpfs tmpfs /mnt && mkdir /mnt/upper /mnt/work &&
        mount -t overlay -o lowerdir="$1",upperdir=/mnt/upper,workdir=/mnt/work overlay "$1" &&
        mount --bind /proc "$1/proc" && chroot "$1" dpkg --purge secex-firstboot secex-tools >&2 &&
        umount "$1/proc" && find "$1" -xdev -name '*secex*' -not -name '*secex-test*'
    """
    argv = ["unshare", "--mount", "sh", "-ec", script, "sh", str(tree)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
