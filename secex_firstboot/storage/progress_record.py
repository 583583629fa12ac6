"""The progress record on ``se``: how far re-encryption has come, found again after a crash.

The host can read, change, delete or put back an older file. So it is authenticated with a key that only the
personalised sdboot holds, and an older record or none leads to reading source blocks that are gone, which
dm-verity refuses: never to other content.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import write_private

NAME = "firstboot-record"
_LIMIT = 4096  # bytes
_TAG_SIZE = hashlib.sha256().digest_size


class Progress(StrEnum):
    UNTOUCHED = "untouched"
    SAVED = "saved"  # the head of the source (and its hash tree) also lies at the end of the disk
    PLACED = "placed"  # header, superblock and journal of the target are written; copying may have begun
    COPIED = "copied"
    ZEROED = (
        "zeroed"  # tail and headroom, once the image's rest was erased; never again, as the file system grows
    )
    FINISHED = "finished"


class VolumeProgress(BaseModel):
    progress: Progress = Progress.UNTOUCHED
    copied_from: int | None = Field(default=None, ge=0)
    """Every source byte at or above this offset is in the target, on stable storage."""

    @property
    def is_complete(self) -> bool:
        """Whether the target holds all of the source, so that it can have been mounted since."""
        if self.progress is Progress.PLACED:
            return self.copied_from == 0
        return self.progress in (Progress.COPIED, Progress.ZEROED, Progress.FINISHED)


class ProgressRecord(BaseModel):
    boot: VolumeProgress = VolumeProgress()
    root: VolumeProgress = VolumeProgress()

    def of(self, volume: str) -> VolumeProgress:
        return self.boot if volume == "boot" else self.root


def load(se: Path, key: bytes) -> ProgressRecord:
    """The record on the mounted partition ``se``, or a fresh one. Raises FirstbootError if it is forged."""
    try:
        with (se / NAME).open("rb") as stream:
            content = stream.read(_LIMIT + 1)
    except FileNotFoundError:
        return ProgressRecord()
    tag, body = content[:_TAG_SIZE], content[_TAG_SIZE:]
    if len(content) > _LIMIT or not hmac.compare_digest(tag, _tag(key, body)):
        raise FirstbootError(
            "SX-DISK-34",
            "the progress record on partition se was not written by this first boot",
            "the disk was changed from outside; start again from the image",
        )
    try:
        return ProgressRecord.model_validate_json(body)
    except ValidationError:
        raise FirstbootError(
            "SX-DISK-35", "the progress record was written by another version of secex-firstboot"
        ) from None


def save(se: Path, key: bytes, record: ProgressRecord) -> None:
    """Replace the record; when this returns, a crash finds the new one."""
    body = record.model_dump_json().encode()
    write_private(se / NAME, _tag(key, body) + body)


def remove(se: Path) -> None:
    for name in (NAME, f"{NAME}.new"):
        (se / name).unlink(missing_ok=True)


def _tag(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")
