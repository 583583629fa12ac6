"""A public image is no machine: what would make all its guests the same one is not in it, or is refused.

That it can be replaced instead: test_errors.py.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from harness import console, firstboot, raw_disk, se_ready
from harness.se_ready import HOST_KEY, ONE_MACHINES, SMALL, Recipe

from secex_firstboot.agent.step import Context
from secex_firstboot.roots import identity
from secex_firstboot.roots.kinds import Plain

TIMEOUT = 900.0
REFUSED = replace(SMALL, root_added=ONE_MACHINES)


def test_an_image_of_the_recipe_is_no_machine(tmp_path: Path) -> None:
    """With everything in it, though the installed packages made SSH host keys."""
    with firstboot.make_site(tmp_path / "site", Recipe()) as (where, _):
        raw = tmp_path / "disk.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", where.image, raw], check=True)
        with se_ready.mounted(raw, raw_disk.partition(raw, "root"), tmp_path / "root") as tree:
            assert (tree / "etc/ssh/sshd_config").exists()
            assert not list((tree / "etc/ssh").glob("ssh_host_*"))
            identity.check(Context(""), Plain(tree, None))


def test_an_image_with_host_keys_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    with firstboot.make_site(tmp_path / "site", REFUSED) as (where, network):
        firstboot.enlarge(where.image, where.disk, 1024)
        before = tmp_path / "before.qcow2"
        firstboot.enlarge(where.image, before, 1024)
        keys, log = [where.hosts["universal"].key], tmp_path / "console.log"
        with firstboot.start(where, network, host_keys=keys, log=log) as guest:
            names = f"/{HOST_KEY}, /etc/machine-id: build it without, or with secex.identity=replace"
            guest.wait_for(console.why(f"the image holds what identifies one machine: {names}"), TIMEOUT)
            assert guest.wait(TIMEOUT) == "guest-shutdown"
        subprocess.run(["qemu-img", "compare", "-q", before, where.disk], check=True)
