"""The report of a first boot: which steps ran, how long each took, how much memory was used. No secrets."""

from __future__ import annotations

import threading
from pathlib import Path

from pydantic import BaseModel

from secex_firstboot import __version__
from secex_firstboot.agent import places
from secex_firstboot.basic.files import exists, write_private


class StepReport(BaseModel):
    name: str
    seconds: float
    outcome: str


class Report(BaseModel):
    version: str = __version__
    peak_memory_mib: int = 0
    """The most memory in use in the whole guest (MemTotal - MemAvailable), sampled while steps ran."""
    total_memory_mib: int = 0
    steps: list[StepReport] = []
    warnings: list[str] = []

    @property
    def summary(self) -> str:
        seconds = sum(step.seconds for step in self.steps)
        return (
            f"{seconds:.0f} s in its steps, peak memory {self.peak_memory_mib} of {self.total_memory_mib} MiB"
        )

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
