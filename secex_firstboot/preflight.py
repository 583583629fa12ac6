"""``--dry-run --config FILE [--disk IMAGE]`` on a workstation: what first boot would say of config and image.

Every check runs that needs neither the guest nor its secrets, with the code that first boot runs, and so its
words. The config is looked at as it is: what it merges from elsewhere, Ignition merges at first boot.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secex_firstboot import process
from secex_firstboot.errors import FirstbootError, Refusal
from secex_firstboot.ignition import config, kernel_arguments, openpgp, ownership
from secex_firstboot.machine import Observation
from secex_firstboot.plan import Source, lay_out
from secex_firstboot.step import Context, State
from secex_firstboot.steps import STEPS
from secex_firstboot.steps.hostkeys import Proof
from secex_firstboot.steps.personalise import DEFAULT_HEADROOM
from secex_firstboot.storage import filesystem
from secex_firstboot.storage.disk import HASH_PARTITIONS, PARTITIONS, SECTOR, Disk, Partition

_QCOW2 = b"QFI\xfb"  # QEMU: docs/interop/qcow2.txt
_VERITY = b"verity\0\0"  # cryptsetup: docs/on-disk format of dm-verity, struct verity_sb


@dataclass(frozen=True)
class Preflight:
    """``certificates`` is the directory whose root certificates the image trusts."""

    config_file: Path
    image: Path | None
    certificates: Path
    verification: Literal["strict", "no"]
    context: Context

    def run(self) -> list[Observation]:
        """What each step would say, as far as it can be told here."""
        image = self.image
        looks: dict[str, Callable[[], str]] = {
            "config": self._look_at_config,
            "hostkeys": self._prove_host_keys,
        }
        if image:
            looks["personalise"] = lambda: _lay_out(image)
        seen = []
        for step in STEPS:
            if step.name not in looks:
                seen.append(Observation(step, State.WAITING, "can only be told at first boot"))
                continue
            try:
                seen.append(Observation(step, State.READY, looks[step.name]()))
            except (FirstbootError, OSError) as error:
                seen.append(Observation(step, "refused", str(error)))
        return seen

    def _read(self) -> config.Config:
        with self.config_file.open("rb") as stream:
            text = stream.read(openpgp.CONFIG_LIMIT + 1)
        if len(text) > openpgp.CONFIG_LIMIT:
            raise Refusal(
                f"{self.config_file} is larger than a config may be", "let Ignition fetch the large files"
            )
        return config.parse(text)

    def _look_at_config(self) -> str:
        found = self._read()
        ownership.check(found, devices=())
        kernel_arguments.check(found.kernel_arguments)
        return f"a config of specification {found.ignition.version}"

    def _prove_host_keys(self) -> str:
        with tempfile.TemporaryDirectory() as scratch:
            proof = Proof(self._read(), self.certificates, self.verification, Path(scratch), self.context)
            names = [document.name for document in proof.documents()]
        return f"{len(names)} documents: {', '.join(names)}"


def _lay_out(image: Path) -> str:
    with _raw(image) as raw:
        disk = _disk(raw, shown_as=image)
        boot, root = (_source(raw, disk, name) for name in ("boot", "root"))
        plan = lay_out(disk, boot, root, DEFAULT_HEADROOM, record_key="0" * 64)
    return f"encrypt boot and root in place, on a disk of {disk.size >> 20} MiB: " + ", ".join(
        f"{each.name} {each.source_size >> 20} MiB ({each.file_system})" for each in plan.volumes
    )


@contextmanager
def _raw(image: Path) -> Iterator[Path]:
    with image.open("rb") as stream:
        is_qcow2 = stream.read(4) == _QCOW2
    if not is_qcow2:
        yield image
        return
    with tempfile.TemporaryDirectory() as directory:
        raw = Path(directory, "raw")
        process.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw])
        yield raw


def _disk(raw: Path, shown_as: Path) -> Disk:
    table: dict[str, Any] = json.loads(process.run(["sfdisk", "--json", raw]))["partitiontable"]
    block = int(table.get("sectorsize", SECTOR))
    expected, known, others = PARTITIONS | HASH_PARTITIONS, {}, []
    for row in table["partitions"]:
        number = int(row["node"].removeprefix(str(raw)).lstrip("p"))
        start, size = (int(row[key]) * block for key in ("start", "size"))
        found = Partition(number, row.get("name", ""), raw, row.get("uuid", ""), start, size)
        if expected.get(found.name) == number:
            known[found.name] = found
        else:
            others.append(found)
    missing = ", ".join(f"{number} {name!r}" for name, number in expected.items() if name not in known)
    if missing:
        raise Refusal(f"{shown_as} has no partition {missing}", "start from an unchanged SE-ready image")
    return Disk(shown_as, raw.stat().st_size, block, known, tuple(others))


def _source(raw: Path, disk: Disk, name: str) -> Source:
    partition = disk.partitions[name]
    return Source(
        root_hash="0" * 64,
        size=_covered(raw, disk.partitions[f"{name}hash"].start, name),
        file_system=filesystem.identify(raw, name, offset=partition.start),
    )


def _covered(raw: Path, offset: int, name: str) -> int:
    """How many bytes the hash tree at ``offset`` covers."""
    with raw.open("rb") as stream:
        stream.seek(offset)
        superblock = stream.read(512)
    if superblock[:8] != _VERITY:
        raise Refusal(f"partition {name}hash has no dm-verity hash tree", "build the image again")
    return int.from_bytes(superblock[64:68], "little") * int.from_bytes(superblock[72:80], "little")
