"""The report of a first boot: which steps ran, how long each took, how much memory was used. No secrets."""

from __future__ import annotations

from pydantic import BaseModel, FiniteFloat

from secex_firstboot import __version__


class StepReport(BaseModel):
    name: str
    seconds: FiniteFloat
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
