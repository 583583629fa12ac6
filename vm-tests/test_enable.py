"""A running system that first boot did not make starts as a Secure Execution guest: ``secex enable``.

It is the system of the tests, started from its plain root file system: QEMU loads kernel and initramfs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import console, debian, firstboot, site
from harness.firstboot import Site
from harness.guest import Direct, Disk, Guest, Network
from harness.se_ready import Recipe

OPTIONS = "root=PARTLABEL=root rw console=ttysclp0 mitigations=off"
CERTIFICATES = "/usr/lib/secex-firstboot/certs"

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def enabled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, str]:
    """The site with its disk, and what the command has said."""
    directory = tmp_path_factory.mktemp("enable")
    identity = site.make_ssh_identity(directory / "site")
    added = (
        ("root/.ssh/authorized_keys", identity.with_suffix(".pub").read_bytes()),
        ("etc/fstab", b"PARTLABEL=boot /boot ext4 defaults 0 0\n"),
    )
    recipe = Recipe(options=OPTIONS, root_added=added)
    with firstboot.make_site(directory / "site", recipe) as (where, _):
        firstboot.enlarge(where.image, where.disk, 2048)
    direct = Direct(debian.kernel(where.tree), debian.initramfs(where.tree), OPTIONS)
    system = Disk(where.disk, "system")
    log = directory / "plain.log"
    with Guest(disks=[system], direct=direct, network=Network(), console_log=log) as guest:
        firstboot.wait_for_system(guest, firstboot.BOOT_TIMEOUT)
        for path, content in files(where).items():
            guest.send(content, path, where.identity)
        done = guest.ssh("secex enable 2>&1", where.identity, timeout=firstboot.BOOT_TIMEOUT)
        assert done.returncode == 0, done.stdout
        firstboot.power_off(guest, where.identity)
    return where, done.stdout


def files(where: Site) -> dict[str, bytes]:
    """A host's document, and what proves it."""
    host = where.hosts["customer-1"]
    found = {f"/etc/se-hostkeys/ibm-z-hostkey-{host.name}": host.document.read_bytes()}
    for name, content in (where.chain.certificates() | where.chain.crls()).items():
        directory = CERTIFICATES if name == "root.crt" else "/etc/se-hostkeys/certs"
        found[f"{directory}/{name}"] = content
    return found


def test_it_says_plainly_what_is_not_protected(enabled: tuple[Site, str]) -> None:
    assert "/ and /boot are not encrypted: whoever owns the host reads and changes them" in enabled[1]


def test_it_starts_as_a_secure_execution_guest_of_its_hosts_and_of_no_other(
    enabled: tuple[Site, str], tmp_path: Path
) -> None:
    where, _ = enabled
    for host, starts in (("universal", False), ("customer-1", True)):
        keys, log = [where.hosts[host].key], tmp_path / f"{host}.log"
        with firstboot.start(where, Network(), host_keys=keys, log=log, with_config=False) as guest:
            if not starts:
                assert guest.wait(firstboot.BOOT_TIMEOUT) == "refused"
                continue
            words = guest.wait_for(console.COMMAND_LINE, firstboot.BOOT_TIMEOUT)[1].split()
            assert words == [
                *OPTIONS.split(),
                f"secex.headroom={Recipe.headroom}",
            ]  # as the boot entry has it
            firstboot.wait_for_system(guest, firstboot.BOOT_TIMEOUT)
            assert guest.ssh("findmnt -no SOURCE /", where.identity).stdout.startswith("/dev/vda")
