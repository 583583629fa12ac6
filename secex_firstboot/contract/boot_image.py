"""What a provisioned system knows of its boot image beyond what it is made of: files on its root."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Arguments(BaseModel):
    """What becomes of the boot entry's options: the config's kernelArguments, and what keeps logins off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    should_exist: tuple[str, ...] = ()
    should_not_exist: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()


class Made(BaseModel):
    """Of what the newest image was made: each input's name, and the SHA-256 of what it was."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: dict[str, str]
