"""The systemd journal and service manager, where there is one."""

from __future__ import annotations

import systemd.daemon
import systemd.journal


def status(line: str) -> None:
    """What ``systemctl status`` shows for the unit; does nothing outside a unit."""
    systemd.daemon.notify(f"STATUS={line}")


def step_done(step: str, seconds: float) -> None:
    """A structured entry, for ``journalctl SECEX_FIRSTBOOT_STEP=…``."""
    systemd.journal.send(
        f"secex-firstboot: {step} done in {seconds} s",
        PRIORITY=systemd.journal.LOG_DEBUG,
        SECEX_FIRSTBOOT_STEP=step,
        SECEX_FIRSTBOOT_SECONDS=str(seconds),
    )
