"""Whatever fails in the initramfs: no secret is left when a shell opens, and by default none opens at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import console, debian
from harness.guest import Direct, Guest
from harness.se_ready import OPTIONS

from secex_firstboot.sdboot.initramfs import Entry, File, write_archive

TIMEOUT = 900.0
SHELL = "secex.emergency=shell"
SECRET = File(b"secex-test-secret")
PLANTED: dict[str, Entry] = {
    name: SECRET
    for name in (
        "/usr/lib/coreos/ignition.asc",
        "/usr/lib/ignition/user.ign",
        "/etc/luks/root",
        "/etc/secex-firstboot/volumes/root/key",
        "/etc/secex-firstboot/plan.json",
        "/etc/secex-firstboot-overlay.cpio",
    )
}
# Talkative, too: what it prints is in the journal.
BROKEN: dict[str, Entry] = {
    "/etc/systemd/system/broken.service": File(
        b"[Unit]\nDefaultDependencies=no\nOnFailure=emergency.target\n"
        b"[Service]\nType=oneshot\nExecStart=/usr/bin/cat /etc/luks/root /nowhere\n"
    )
}
WAYS = {
    "rd.break": "rd.break=pre-udev",
    "rescue target": "rd.systemd.unit=rescue.target",
    "debug shell": "rd.systemd.debug_shell=ttysclp0",
    "a unit that fails": "rd.systemd.wants=broken.service",
}


@contextmanager
def initramfs_with(tmp_path: Path, files: dict[str, Entry], command_line: str) -> Iterator[Guest]:
    """A guest with the image's kernel and initramfs, and ``files`` added, as at a later boot."""
    tree = debian.build()
    initrd, overlay = tmp_path / "initrd", tmp_path / "overlay.cpio"
    shutil.copy(debian.initramfs(tree), initrd)
    write_archive(overlay, PLANTED | BROKEN | files)
    with initrd.open("ab") as stream:
        stream.write(bytes(-stream.tell() % 4) + overlay.read_bytes())
    direct = Direct(debian.kernel(tree), initrd, f"{OPTIONS} {command_line}")
    with Guest(direct=direct, console_log=tmp_path / "console.log") as guest:
        yield guest


@pytest.mark.sampled("ways to a shell")
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_a_shell_passes_the_clean_up(way: str, tmp_path: Path) -> None:
    with initramfs_with(tmp_path, {}, f"{WAYS[way]} {SHELL}") as guest:
        guest.wait_for(console.CLEAN, TIMEOUT)
        guest.wait_for(console.secrets_left("0"), TIMEOUT)
        guest.wait_for(console.SHELL_OPENS, TIMEOUT)


def test_a_secret_elsewhere_would_have_been_found(tmp_path: Path) -> None:
    """That is, the look for what is left can fail. Nothing else is left in the emergency target either."""
    command_line = f"rd.systemd.unit=emergency.target {SHELL}"
    with initramfs_with(tmp_path, {"/var/stray": SECRET}, command_line) as guest:
        guest.wait_for(console.CLEAN, TIMEOUT)
        guest.wait_for(console.left_at("/var/stray"), TIMEOUT)
        guest.wait_for(console.secrets_left("1"), TIMEOUT)
        guest.wait_for(console.SHELL_OPENS, TIMEOUT)


def test_if_the_users_config_is_not_decrypted_ignition_does_not_run(tmp_path: Path) -> None:
    """It would ask its platform for one, and that is the host's. Here the unit that decrypts just fails."""
    unit = (
        b"[Unit]\nDefaultDependencies=no\nAfter=basic.target\nBefore=ignition-fetch-offline.service\n"
        b"[Service]\nType=oneshot\nExecStart=/usr/bin/cat /nowhere\n"
    )
    failing: dict[str, Entry] = {"/etc/systemd/system/secex-firstboot-config.service": File(unit)}
    with initramfs_with(tmp_path, failing, "ignition.firstboot") as guest:
        guest.wait_for(console.CANNOT_START, TIMEOUT)
        assert guest.wait(TIMEOUT) == "guest-shutdown"
        assert "Starting ignition-" not in re.sub(r"\x1b\[[0-9;]*m", "", guest.console)


@pytest.mark.sampled("ways to a shell")
@pytest.mark.parametrize("way", ["rd.break", "a unit that fails"])
def test_by_default_the_power_goes_off(way: str, tmp_path: Path) -> None:
    """Also with the words that let dracut open a shell without a password."""
    with initramfs_with(tmp_path, {}, f"{WAYS[way]} rd.shell=1 SYSTEMD_SULOGIN_FORCE=1") as guest:
        guest.wait_for(console.CANNOT_START, TIMEOUT)
        assert guest.wait(TIMEOUT) == "guest-shutdown"
        assert console.POWERING_OFF in guest.console
        assert console.TESTS not in guest.console
