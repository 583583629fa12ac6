"""What is left on partition ``se`` for the owner's recovery keys: encrypted, as it lies on the host's disk.

Whoever opens it opens the volumes; it has the same for every boot image, and beside that what says which
disk it is of. All else that a boot image is made of is on the volumes.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StringConstraints

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.hashes import HostKeyHash

MESSAGE = "recovery.gpg"  # on partition se
SIZE = 2 << 20  # bytes before it is encrypted, whatever is in it
LIMIT = SIZE + (1 << 20)  # bytes of the message


def _decoded(text: object) -> bytes:
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise ValueError("is no base64")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("is no base64") from None


_Bytes = Annotated[
    bytes,
    BeforeValidator(_decoded),
    PlainSerializer(lambda content: base64.b64encode(content).decode(), when_used="json"),
]
_Text = Annotated[str, StringConstraints(max_length=64 << 10)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Volume(_Model):
    """``partition``: its UUID in the partition table; ``opens``: the detached LUKS2 header, and behind it its
    key of 64 bytes, as in the system's /etc/luks."""

    partition: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
    opens: Annotated[_Bytes, Field(max_length=640 << 10, repr=False)]


class Recovery(_Model):
    """``generation``, ``kernel``, ``command_line`` and ``hosts`` (hashes of their keys) are those of the
    boot image that it was left with, for people: nothing is made of them."""

    format: Literal[1] = 1
    generation: Annotated[int, Field(ge=0)]
    kernel: _Text
    command_line: _Text
    hosts: Annotated[tuple[HostKeyHash, ...], Field(max_length=256)]
    boot: Volume
    root: Volume

    @property
    def volumes(self) -> dict[str, Volume]:
        return {"boot": self.boot, "root": self.root}

    def padded(self) -> bytes:
        """SIZE bytes: how much is in it does not show."""
        text = self.model_dump_json().encode()
        if len(text) > SIZE:
            raise ValueError(f"{len(text)} bytes are more than {SIZE}")
        return text.ljust(SIZE)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Raises Refusal for what ``padded`` has not made; nothing of it is quoted."""
        try:
            if len(content) != SIZE:
                raise ValueError("it has another length")
            return cls.model_validate_json(content)
        except ValueError:
            raise Refusal(
                "SX-RECOVER-05",
                f"what {MESSAGE} holds is not what secex-firstboot leaves for recovery keys",
                "use a copy of the disk with the guest's own, or a newer secex",
            ) from None
