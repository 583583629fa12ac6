"""What a step of the state machine is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from secex_firstboot.basic.files import exists
from secex_firstboot.contract import paths


class Stage(StrEnum):
    """The systemd unit that runs a step; Ignition's own stages run in between."""

    CONFIG = "config"
    PROVISION = "provision"
    MOUNT = "mount"
    SEAL = "seal"


class State(StrEnum):
    DONE = "done"
    READY = "ready"  # it can be performed now
    WAITING = "waiting"  # an earlier step, or Ignition, comes first


@dataclass(frozen=True)
class Status:
    """The answer to "is it done?"; ``detail`` says what was seen, or what performing the step would do."""

    state: State
    detail: str

    @property
    def done(self) -> bool:
        return self.state is State.DONE


def done(detail: str) -> Status:
    return Status(State.DONE, detail)


def ready(detail: str) -> Status:
    return Status(State.READY, detail)


def waiting(detail: str) -> Status:
    return Status(State.WAITING, detail)


class Phase(StrEnum):
    """How far the boot record has come; shown by what this boot brought with it, not by notes on a disk."""

    FIRST = "SE-ready image"  # started from the builder's sdboot; nothing is committed
    COMMITTED = "committed"  # the personalised sdboot is in place, or was started
    PROVISIONED = "provisioned"  # started from a sealed sdboot
    ELSEWHERE = "another machine"  # a workstation, or a system that secex-firstboot did not make


@dataclass(frozen=True)
class Context:
    """What steps share: the kernel command line, and where they tell a person how far they are.

    ``say`` takes one line, ``warn`` one that also goes into the report; ``progress`` is called with (label,
    bytes done, bytes in all).
    """

    command_line: str
    say: Callable[[str], None] = field(default=lambda line: None)
    warn: Callable[[str], None] = field(default=lambda line: None)
    progress: Callable[[str, int, int], None] = field(default=lambda label, done, total: None)

    @property
    def phase(self) -> Phase:
        if exists(paths.COMMITTED):
            return Phase.COMMITTED
        if exists(paths.LUKS_KEYS / "root") or exists(paths.SYSROOT / "etc/luks/root"):
            return Phase.PROVISIONED
        if paths.CMDLINE_FIRSTBOOT in (word.split("=")[0] for word in self.command_line.split()):
            return Phase.FIRST
        return Phase.ELSEWHERE

    def argument(self, name: str) -> str | None:
        """The value of ``name=value`` on the kernel command line, or None."""
        for word in self.command_line.split():
            key, equals, value = word.partition("=")
            if key == name and equals:
                return value
        return None


class Step(ABC):
    """One idempotent transition. ``observe`` looks and never changes anything; ``perform`` does the step.

    Both may raise Refusal: something is wrong or missing, and nothing was destroyed. Performing a step that
    is done, or again after it was cut short, ends in the same place.
    """

    name: str
    summary: str
    stage: Stage
    destructive = False

    @abstractmethod
    def observe(self, context: Context) -> Status: ...

    @abstractmethod
    def perform(self, context: Context) -> None: ...


def kernel_command_line() -> str:
    return Path("/proc/cmdline").read_text(encoding="utf-8").strip()
