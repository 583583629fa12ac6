"""The life of a provisioned guest: power on and off, commands, restarts, and what its boot images are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import console, firstboot, site
from harness.firstboot import Site
from harness.guest import Disk, Guest, Network

LONG = 3600.0  # seconds; bounds a guest that hangs, measures nothing


@dataclass
class Life:
    """``seen``: what was found, by the name of the stage. ``system``, ``logs``: the guest's disk, and where
    its consoles' logs go, if not the site's.
    """

    where: Site
    network: Network
    seen: dict[str, Any] = field(default_factory=dict)
    system: Disk | None = None
    logs: Path | None = None
    number: int = 0

    @contextmanager
    def start(
        self, host: str = "customer-1", others: Sequence[Disk] = (), system: Disk | None = None
    ) -> Iterator[Guest]:
        """Power on, with the disk behind another path on request; at the end power off."""
        self.number += 1
        keys = [site.Host(host, self.where.directory / "hostkeys").key]
        log = (self.logs or self.where.directory) / f"life-{self.number}.log"
        system = system or self.system or Disk(self.where.disk, "system")
        with Guest(disks=[system, *others], host_keys=keys, network=self.network, console_log=log) as guest:
            yield guest

    def shell(self, guest: Guest, command: str) -> str:
        done = guest.ssh(command, self.where.identity, timeout=LONG)
        if done.returncode:
            raise AssertionError(f"{command!r} in the guest: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout.strip()

    def up(self, guest: Guest) -> dict[str, Any]:
        """Wait until the system is up and says so; its boot images, and its kernel."""
        firstboot.wait_for_system(guest, firstboot.BOOT_TIMEOUT)
        self.shell(guest, "systemctl start secex-firstboot-image.service")
        images: dict[str, Any] = json.loads(self.shell(guest, "secex status --json"))["boot_images"]
        return images | {"kernel": self.shell(guest, "uname -r")}

    def restart(self, guest: Guest) -> dict[str, Any]:
        guest.ssh("systemctl --no-block reboot", self.where.identity)
        guest.wait_for(console.LINUX, LONG)
        return self.up(guest)

    def power_off(self, guest: Guest) -> None:
        assert firstboot.power_off(guest, self.where.identity) == "guest-shutdown"


def newest_is_up(seen: dict[str, Any]) -> bool:
    """It runs, starts if nobody chooses, and has come up."""
    newest = seen["newest"]
    return bool(seen["running"] == seen["starts"] == newest["generation"] and newest["state"] == "up")
