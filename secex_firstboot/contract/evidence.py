"""What tells an owner which boot images a guest has, and of what they are made; docs/evidence.schema.json.

The guest says it, from its encrypted root, and nobody has signed it: it is worth what the way is worth that
it came by. Nothing in it is secret, but the kernel command line may have what is for nobody else to read.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from secex_firstboot import __version__
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.validation import first_error
from secex_firstboot.contract.boot_image import State
from secex_firstboot.contract.hashes import HostKeyHash, Sha256

LIMIT = 4 << 20  # bytes

_Text = Annotated[str, StringConstraints(max_length=64 << 10)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BootImage(_Model):
    """``header``: the SE header in base64, which has a digest of every encrypted page; ``host_keys``: the
    hashes of the keys that it is for. ``inputs``: SHA-256 of each part that it was made of. What an older
    version has made has no ``header`` and no ``command_line``."""

    generation: Annotated[int, Field(ge=0)]
    state: State
    kernel: _Text
    command_line: _Text
    header: _Text
    host_keys: tuple[HostKeyHash, ...]
    inputs: dict[_Text, Sha256]

    @property
    def initramfs(self) -> list[str]:
        """SHA-256 of its parts, in their order, those of /boot alone."""
        names = [f"initramfs {number}" for number in range(len(self.inputs))]
        return [self.inputs[name] for name in names if name in self.inputs]


class Evidence(_Model):
    """``running``: the generation of the image that runs; None in first boot's own session. ``root_hashes``:
    of the volumes that first boot has verified and made the guest of, by their names; empty if an older
    version did. ``attestation``: of these images by the ultravisor; there is none yet."""

    format: Literal[1] = 1  # raised when a program that reads it would no longer understand it
    secex_firstboot: _Text = __version__
    running: int | None
    images: Annotated[tuple[BootImage, ...], Field(min_length=1, max_length=2)]
    root_hashes: dict[_Text, Sha256]
    attestation: None = None

    @property
    def image(self) -> BootImage:
        """The one that runs, or else the newest."""
        return next((each for each in self.images if each.generation == self.running), self.images[0])

    @classmethod
    def parse(cls, name: str, text: bytes) -> Self:
        """Raises Refusal if it is not what ``secex evidence --json`` prints."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise Refusal(
                "SX-EVIDENCE-01",
                f"{name} is no evidence of a guest: {first_error(error)}",
                "name what secex evidence --json has printed there",
            ) from None
