"""The stand-in for /sys/firmware/uv that guests under test have, really mounted in a namespace of its own."""

from __future__ import annotations

import subprocess

from support import REPOSITORY, needs

SCRIPT = REPOSITORY / "vm-tests/dracut/prot-virt-guest.sh"
# As systemd has it: what is mounted somewhere is mounted wherever that is bound, too.
RUN = """
    mount --make-rshared / && mount -t tmpfs tmpfs /run && sh "$0" || exit
    cat /sys/firmware/uv/prot_virt_guest
    grep -c " /run/secex-test/firmware " /proc/self/mountinfo
"""


@needs.root
def test_it_shows_a_secure_guest_and_is_one_mount_deep() -> None:
    """Two deep, systemd did not always get to the end of a shutdown."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", RUN, SCRIPT], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1"]
