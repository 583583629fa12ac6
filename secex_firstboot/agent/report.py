"""The report of a first boot, while it is written."""

from __future__ import annotations

import threading
from pathlib import Path

from secex_firstboot.agent import places
from secex_firstboot.basic.files import exists, write_private
from secex_firstboot.contract import report


class Report(report.Report):
    """Each stage goes on with it; all of it is in the provisioned system at the end."""

    @classmethod
    def load(cls) -> Report:
        if exists(places.REPORT):
            return cls.model_validate_json(places.REPORT.read_text(encoding="utf-8"))
        return cls()

    def save(self, path: Path) -> None:
        write_private(path, self.model_dump_json(indent=2).encode() + b"\n")


class MemorySampler:
    """Looks at /proc/meminfo twice a second, in a thread, for the length of a ``with`` block."""

    def __init__(self) -> None:
        self.total_mib, self.peak_mib = 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            values = dict(line.split(":") for line in Path("/proc/meminfo").read_text("ascii").splitlines())
            total, available = (int(values[name].split()[0]) >> 10 for name in ("MemTotal", "MemAvailable"))
            self.total_mib, self.peak_mib = total, max(self.peak_mib, total - available)
            if self._stop.wait(0.5):
                return
