"""What a provisioned system knows of its boot images beyond what is on its root anyway: files there."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from secex_firstboot.contract.settings import Fallback


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Arguments(_Kept):
    """What becomes of the boot entry's options: the config's kernelArguments, and what keeps logins off."""

    should_exist: tuple[str, ...] = ()
    should_not_exist: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()


class Origin(_Kept):
    """The image that first boot made the system of: by the root hash of each of its volumes."""

    root_hashes: dict[str, str]


class State(StrEnum):
    """How far a boot image has come."""

    NEW = "new"  # it has not been started yet
    TRIED = "tried"  # the machine was asked to start it at the restart that followed
    FAILED = "failed"  # after that the one before it was up, and not this one
    UP = "up"  # the system that it starts has come up


class Image(_Kept):
    """A boot image. ``generation`` is the number on its command line, see parameters.GENERATION; ``identity``
    tells its file from others, see boot_record.identity. ``inputs``: of what it was made, the SHA-256 each.
    ``deployment``: of a system made by ostree, what it starts, as a path on the volume; empty for any other.
    ``header``: its SE header in base64; empty, as ``command_line``, if an older version has made it.
    """

    generation: int
    identity: str
    kernel: str
    state: State = State.NEW
    inputs: dict[str, str]
    deployment: str = ""
    command_line: str = ""
    header: str = ""


class Images(_Kept):
    """Those in the boot map: the newest, and if there is one, the one to fall back to."""

    newest: Image
    fallback: Image | None = None
    setting: Fallback = Fallback.TRY

    @property
    def there(self) -> list[Image]:
        """One or two, the newest first."""
        return [each for each in (self.newest, self.fallback) if each]

    @property
    def generations(self) -> set[int]:
        return {each.generation for each in self.there}

    def needed(self, running: int) -> list[Image]:
        """The one to fall back to, and the one whose number is ``running``; 0 is first boot's own session."""
        runs = running or min(self.generations)
        return [each for each in self.there if each is self.fallback or each.generation == runs]

    @property
    def are_up(self) -> bool:
        """Whether each is known to come up."""
        return all(each.state is State.UP for each in self.there)

    @property
    def starts_newest(self) -> bool:
        """Whether it is what starts if nobody chooses. An image that has not come up is no better than it."""
        if not self.fallback or self.newest.state is State.UP:
            return True
        if self.newest.state is State.FAILED:
            return False
        return self.setting is Fallback.DIRECT or self.fallback.state is not State.UP
