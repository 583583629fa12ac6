"""Whatever fails in the initramfs: no secret is left when a shell opens, and by default none opens at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
from harness import debian, firstboot, raw_disk, started
from harness.firstboot import Site
from harness.guest import Direct, Disk, Guest, Saved
from harness.se_image import OFFLINE, OPTIONS
from harness.started import Started

from secex_firstboot.sdboot.initramfs import Entry, File, write_archive
from secex_firstboot.steps import STEPS

TIMEOUT = 900.0
DISK_SIZE = 1 << 30  # bytes
SHELL = "secex.emergency=shell"
SHELL_OPENS = "Press Enter for system maintenance"  # sulogin(8)
SECRET = File(b"secex-test-secret")
PLANTED: dict[str, Entry] = {
    name: SECRET
    for name in (
        "/usr/lib/coreos/ignition.asc",
        "/usr/lib/ignition/user.ign",
        "/etc/luks/root",
        "/etc/luks/root.header",
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
    "emergency target": "rd.systemd.unit=emergency.target",
    "debug shell": "rd.systemd.debug_shell=ttysclp0",
    "a unit that fails": "rd.systemd.wants=broken.service",
}


@contextmanager
def initramfs_with(
    tmp_path: Path, files: dict[str, Entry], command_line: str, log: str = "console.log"
) -> Iterator[Guest]:
    """A guest with the image's kernel and initramfs, and ``files`` added, as at a later boot."""
    tree = debian.build()
    initrd, overlay = tmp_path / "initrd", tmp_path / "overlay.cpio"
    shutil.copy(debian.initramfs(tree), initrd)
    write_archive(overlay, PLANTED | BROKEN | files)
    with initrd.open("ab") as stream:
        stream.write(bytes(-stream.tell() % 4) + overlay.read_bytes())
    direct = Direct(debian.kernel(tree), initrd, f"{OPTIONS} {command_line}")
    with Guest(direct=direct, console_log=tmp_path / log) as guest:
        yield guest


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_a_shell_passes_the_clean_up(way: str, tmp_path: Path) -> None:
    with initramfs_with(tmp_path, {}, f"{WAYS[way]} {SHELL}") as guest:
        guest.wait_for("Keys, config, plan and journal are removed from memory, volumes are closed", TIMEOUT)
        guest.wait_for("secex-test: 0 left", TIMEOUT)
        guest.wait_for(SHELL_OPENS, TIMEOUT)


def test_a_secret_elsewhere_would_have_been_found(tmp_path: Path) -> None:
    """That is, the look for what is left can fail."""
    with initramfs_with(tmp_path, {"/var/stray": SECRET}, f"{WAYS['emergency target']} {SHELL}") as guest:
        guest.wait_for("secex-test: left: /var/stray", TIMEOUT)
        guest.wait_for("secex-test: 1 left", TIMEOUT)


@pytest.mark.parametrize("way", ["rd.break", "a unit that fails"])
def test_by_default_the_power_goes_off(way: str, tmp_path: Path) -> None:
    """Also with the words that let dracut open a shell without a password."""
    with initramfs_with(tmp_path, {}, f"{WAYS[way]} rd.shell=1 SYSTEMD_SULOGIN_FORCE=1") as guest:
        guest.wait_for("this guest cannot start", TIMEOUT)
        assert guest.wait(TIMEOUT) == "guest-shutdown"
        assert "Powering off." in guest.console
        assert "secex-test:" not in guest.console


@dataclass(frozen=True)
class Machine:
    """A disk whose guests open a shell after a failure, and fail where a further disk says."""

    where: Site
    kept: list[Started] = field(default_factory=list)

    @property
    def disk(self) -> Path:
        return self.where.directory / "disk.raw"

    def start(self, fail: str) -> Guest:
        log = self.where.directory / f"console-{fail}.log"
        guest = partial(self._guest, log, Disk(self.where.directory / "note", f"fail-{fail}", format="raw"))
        return guest(saved=started.find_or_keep(self.disk, self.kept, guest(), self.where.directory))

    def _guest(self, log: Path, note: Disk, saved: Saved | None = None) -> Guest:
        config = Disk(self.where.config_disk, "ignition_crypted", format="raw", read_only=True)
        return Guest(
            disks=[Disk(self.disk, "system", format="raw"), config, note],
            host_keys=[self.where.hosts[name].key for name in ("universal", "customer-1")],
            console_log=log,
            saved=saved,
        )


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    recipe = replace(OFFLINE, options=f"{OFFLINE.options} {SHELL} secex-test.fail")
    directory = tmp_path_factory.mktemp("emergency")
    with firstboot.make_site(directory, recipe, configure=firstboot.files_config) as (where, _):
        made = Machine(where)
        raw_disk.make(where.image, made.disk, DISK_SIZE)
        (directory / "note").write_bytes(bytes(512))
        yield made


@pytest.mark.parametrize("step", [step.name for step in STEPS])
def test_a_first_boot_that_fails_after_a_step_leaves_no_secret_and_goes_on_at_the_next_start(
    step: str, machine: Machine
) -> None:
    """One disk for all steps, in their order: each start has to get one step further than the one before."""
    with machine.start(fail=step.replace(" ", "-")) as guest:
        guest.wait_for(f"why: +the test lets {step} fail", TIMEOUT)
        found = guest.wait_for(r"secex-test: (\d+) left, of (\d+) secrets", TIMEOUT)
        assert found[1] == "0"
        assert int(found[2]) > 0
        guest.wait_for(SHELL_OPENS, TIMEOUT)
