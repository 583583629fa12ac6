"""What a step of the state machine is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum

from secex_firstboot.agent import places
from secex_firstboot.basic import context
from secex_firstboot.basic.files import exists
from secex_firstboot.contract import parameters, paths
from secex_firstboot.contract.dry_run import Described, State


class Stage(StrEnum):
    """The systemd unit that runs a step; Ignition's own stages run in between."""

    CONFIG = "config"
    PROVISION = "provision"
    MOUNT = "mount"
    SEAL = "seal"


@dataclass(frozen=True)
class Status:
    """The answer to "is it done?": DONE, READY or WAITING.

    ``detail`` says what was seen, or what performing the step would do.
    """

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


class Context(context.Context):
    """With what it tells about the boot."""

    @property
    def phase(self) -> Phase:
        if exists(places.COMMITTED):
            return Phase.COMMITTED
        if exists(paths.LUKS_KEYS / "root") or exists(places.SYSROOT / "etc/luks/root"):
            return Phase.PROVISIONED
        if parameters.is_there(self.command_line, parameters.FIRSTBOOT):
            return Phase.FIRST
        return Phase.ELSEWHERE


class Step(ABC):
    """One idempotent transition. ``observe`` looks and never changes anything; ``perform`` does the step.

    Both may raise Refusal: something is wrong or missing, and nothing was destroyed. Performing a step that
    is done, or again after it was cut short, ends in the same place.
    """

    name: str
    summary: str
    stage: Stage
    destructive = False

    @property
    def described(self) -> Described:
        return Described(self.name, self.destructive)

    @abstractmethod
    def observe(self, context: Context) -> Status: ...

    @abstractmethod
    def perform(self, context: Context) -> None: ...
