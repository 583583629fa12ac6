"""What a build says of its image, for whoever adopts, checks or publishes it: NAME.json.

docs/image.schema.json describes it. Nothing in it is secret.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from secex_firstboot import __version__
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import is_regular, write_private
from secex_firstboot.basic.validation import first_error
from secex_firstboot.contract.hashes import HostKeyHash, Sha256
from secex_firstboot.contract.key_kind import KeyKind
from secex_firstboot.contract.partitions import LAYOUT, VOLUMES

_LIMIT = 1 << 20  # bytes

Fingerprint = Annotated[str, StringConstraints(pattern=r"^[0-9A-F]{40,64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Partition(_Model):
    """Bytes, from the start of the disk."""

    number: int
    name: str
    start: Annotated[int, Field(ge=0)]
    size: Annotated[int, Field(gt=0)]


class Volume(_Model):
    """What dm-verity proves: ``size`` bytes at the start of a partition."""

    file_system: Literal["ext4", "xfs"]
    size: Annotated[int, Field(gt=0)]
    root_hash: Sha256


class HostKey(_Model):
    """``hash``: of the public key. Hybrid (quantum-safe) keys are experimental."""

    document: str
    kind: KeyKind = KeyKind.CLASSICAL
    hash: HostKeyHash


class BootEntry(_Model):
    """``kernel`` and ``initramfs``: SHA-256 of the files; ``options``: those of the boot entry."""

    release: str
    kernel: Sha256
    initramfs: tuple[Sha256, ...]
    options: str


class Metadata(_Model):
    """``config_key``: the fingerprint of the OpenPGP key that configs are encrypted to, None if the image is
    not sealed. ``config_signers``: of the keys of which one must have signed a config, and said that it is
    for this image if ``config_bound``; none: anybody can send one. ``outputs``: SHA-256 of the other files
    of the build, by name."""

    format: Literal[1] = 1  # raised when a program that reads it would no longer understand it
    secex_firstboot: str = __version__
    disk_size: Annotated[int, Field(gt=0)]
    partitions: tuple[Partition, ...]
    volumes: dict[str, Volume]
    boot_entry: BootEntry
    agent: str
    config_key: Fingerprint | None = None
    config_signers: tuple[Fingerprint, ...] = ()
    config_bound: bool = False
    host_keys: tuple[HostKey, ...] = ()
    roots: tuple[Sha256, ...] = ()
    tools: dict[str, str] = {}
    outputs: dict[str, Sha256] = {}

    @model_validator(mode="after")
    def _names_everything(self) -> Self:
        if [(each.number, each.name) for each in self.partitions] != [
            (each.number, each.name) for each in LAYOUT
        ] or self.volumes.keys() != set(VOLUMES):
            raise ValueError("these are not the partitions and volumes of an image")
        sizes = {each.name: each.size for each in self.partitions}
        if any(each.size > sizes[name] for name, each in self.volumes.items()):
            raise ValueError("a volume is larger than its partition")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises Refusal if the file is not what ``write`` makes."""
        try:
            if not is_regular(path):
                raise FileNotFoundError(errno.ENOENT, "it is missing or no regular file")
            with path.open("rb") as stream:
                text = stream.read(_LIMIT)
        except OSError as error:
            raise Refusal(
                "SX-BUILD-05", f"{path} cannot be read: {error.strerror}", "name the build's NAME.json"
            ) from None
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise Refusal(
                "SX-BUILD-06", f"{path}: {first_error(error)}", "get it again from who published the image"
            ) from None

    def write(self, path: Path) -> None:
        write_private(path, self.model_dump_json(indent=2).encode() + b"\n")
        path.chmod(0o644)
