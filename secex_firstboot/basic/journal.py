"""The systemd journal and service manager, where there is one."""

from __future__ import annotations

try:
    import systemd.daemon
    import systemd.journal
except ModuleNotFoundError:  # on a workstation, where nobody listens; the dracut module insists on it
    _LISTENING = False
else:
    _LISTENING = True


def status(line: str) -> None:
    """What ``systemctl status`` shows for the unit; does nothing outside a unit."""
    if _LISTENING:
        systemd.daemon.notify(f"STATUS={line}")


def step_done(step: str, seconds: float) -> None:
    """A structured entry, for ``journalctl SECEX_FIRSTBOOT_STEP=…``."""
    if _LISTENING:
        systemd.journal.send(
            f"secex-firstboot: {step} done in {seconds} s",
            PRIORITY=systemd.journal.LOG_DEBUG,
            SECEX_FIRSTBOOT_STEP=step,
            SECEX_FIRSTBOOT_SECONDS=str(seconds),
        )
