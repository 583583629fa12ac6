"""Debian's hooks for kernels, as linux-image packages call them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support import REPOSITORY
from support.machine import put

HOOK = (REPOSITORY / "packaging/kernel-hook").read_text()
REFUSES = 3


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """A provisioned one, in which secex-firstboot writes down what it is called with."""
    put(tmp_path / "etc/luks/root", b"key")
    for path in ("usr/lib/secex-firstboot/check-volume", "bin/secex-firstboot"):
        put(tmp_path / path, b'#!/bin/sh\necho "$*" >> "$SAID"\nexit "$CODE"\n')
        (tmp_path / path).chmod(0o755)
    for when in ("postinst", "prerm", "postrm"):
        hook = tmp_path / f"etc/kernel/{when}.d/zz-secex-firstboot"
        put(hook, HOOK.replace(" /etc/", f" {tmp_path}/etc/").replace(" /usr/", f" {tmp_path}/usr/").encode())
        hook.chmod(0o755)
    return tmp_path


def call(guest: Path, when: str, parameters: str | None, code: int = 0) -> tuple[int, str]:
    """The hook's exit code, and what it called."""
    environment = {"PATH": f"{guest}/bin:{os.environ['PATH']}", "SAID": f"{guest}/said", "CODE": str(code)}
    if parameters is not None:
        environment["DEB_MAINT_PARAMS"] = parameters
    hook = guest / f"etc/kernel/{when}.d/zz-secex-firstboot"
    done = subprocess.run([hook, "7.2", "/boot/vmlinuz-7.2"], env=environment, check=False)
    said = guest / "said"
    return done.returncode, said.read_text().strip() if said.exists() else ""


@pytest.mark.parametrize(
    ("when", "parameters", "called"),
    [
        ("postinst", "configure 7.1", "--kernel-added=7.2"),
        ("postinst", "'configure' ''", "--kernel-added=7.2"),
        ("postinst", None, "--kernel-added=7.2"),
        ("postinst", "abort-upgrade 7.3", ""),
        ("prerm", "remove", "--kernel-goes=7.2"),
        ("prerm", "upgrade 7.3", ""),
        ("prerm", "'failed-upgrade' '7.3'", ""),
        ("postrm", "remove", "--kernel-gone=7.2"),
        ("postrm", "'purge'", "--kernel-gone=7.2"),
        ("postrm", "upgrade 7.3", ""),
        ("postrm", "failed-upgrade 7.1", ""),
        ("postrm", "abort-install", ""),
    ],
)
def test_a_kernel_that_is_replaced_by_another_build_of_itself_does_not_go(
    guest: Path, when: str, parameters: str | None, called: str
) -> None:
    assert call(guest, when, parameters) == (0, called)


@pytest.mark.parametrize(
    ("when", "parameters", "code"),
    [("postinst", "configure", 0), ("prerm", "remove", REFUSES), ("postrm", "remove", 0)],
)
def test_only_a_kernel_that_is_needed_stops_the_package_manager(
    guest: Path, when: str, parameters: str, code: int
) -> None:
    assert call(guest, when, parameters, REFUSES)[0] == code


@pytest.mark.parametrize("gone", ["etc/luks/root", "usr/lib/secex-firstboot/check-volume"])
def test_without_the_package_or_a_first_boot_nothing_is_done(guest: Path, gone: str) -> None:
    (guest / gone).unlink()
    assert call(guest, "postinst", "configure", REFUSES) == (0, "")
