"""Running a Python script inside a guest, in the initramfs that has the agent, without a first boot.

The guest starts the kernel directly, runs the script as root with its disks, and powers off. What the script
prints as ``RESULT {json}`` is the answer; anything else is on the console.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import console, debian
from harness.guest import Direct, Disk, Guest
from secex_firstboot.sdboot.initramfs import File, joined, write_archive

_TIMEOUT = 3600.0  # seconds; bounds a guest that hangs, measures nothing

_SERVICE = """\
[Unit]
Description=Test: a script inside the guest
DefaultDependencies=no
Requires=basic.target systemd-udevd.service
After=basic.target systemd-udevd.service systemd-udev-trigger.service
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStartPre=udevadm settle
ExecStart=/usr/bin/python3 -I -u /usr/lib/secex-test/script.py
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
"""


def run(script: Path, *, disks: Sequence[Disk] = (), log: Path, memory_mib: int = 1024) -> dict[str, Any]:
    """The script's result, and how much was written to each disk; raises GuestError with the console's last
    lines if there is no result.
    """
    tree = debian.build()
    kernel = debian.kernel(tree)
    with tempfile.TemporaryDirectory() as directory:
        overlay, initrd = Path(directory, "overlay.cpio"), Path(directory, "initrd")
        write_archive(
            overlay,
            {
                "/usr/lib/secex-test/script.py": File(script),
                "/usr/lib/systemd/system/secex-test-script.service": File(_SERVICE.encode(), 0o644),
            },
        )
        with initrd.open("wb") as stream:
            stream.writelines(joined([debian.initramfs(tree), overlay]))
        direct = Direct(
            kernel, initrd, "console=ttysclp0 quiet rd.systemd.unit=secex-test-script.service root=none"
        )
        with Guest(disks=disks, direct=direct, memory_mib=memory_mib, console_log=log) as guest:
            result = guest.wait_for(console.RESULT, _TIMEOUT)[1]
            written = guest.written()
            guest.wait(120)
    answer = json.loads(result)
    assert isinstance(answer, dict)
    return answer | {"written": written}
