"""Whether what a guest runs is made of an image: its evidence beside what the image's maker says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from secex_firstboot.contract.command_line import parameters
from secex_firstboot.contract.evidence import Evidence
from secex_firstboot.ignition.config import KernelArguments
from secex_firstboot.sdboot import options


class Verdict(StrEnum):
    SAME = "the image's"
    OTHER = "NOT THE IMAGE'S"
    UNTOLD = "not told"


@dataclass(frozen=True)
class Compared:
    what: str
    verdict: Verdict
    detail: str = ""

    @property
    def is_bad(self) -> bool:
        return self.verdict is Verdict.OTHER


def compare(
    evidence: Evidence,
    *,
    root_hashes: Mapping[str, str],
    kernel: str,
    initramfs: Sequence[str],
    of_entry: str,
) -> Iterator[Compared]:
    """``root_hashes``, ``kernel``, ``initramfs`` (SHA-256) and the options ``of_entry`` are the image's.

    An update has another kernel or initramfs, and that shows. Words of the command line are told, and are no
    verdict: a config and an administrator may change them.
    """
    runs = evidence.image
    volumes = dict(evidence.root_hashes)
    yield Compared(
        "volumes",
        Verdict.UNTOLD if not volumes else _verdict(same=volumes == dict(root_hashes)),
        "what first boot verified and encrypted",
    )
    yield Compared("kernel", _verdict(same=runs.inputs.get("kernel") == kernel), runs.kernel)
    yield Compared("initramfs", _verdict(same=runs.initramfs == list(initramfs)))
    if not runs.command_line:
        yield Compared("options", Verdict.UNTOLD)
        return
    expected = parameters(options.system_command_line(of_entry, KernelArguments(), [], []))
    found = parameters(runs.command_line)
    changes = [f"with {word}" for word in found if word not in expected]
    changes += [f"without {word}" for word in expected if word not in found]
    yield Compared("options", Verdict.SAME, "; ".join(changes))


def _verdict(*, same: bool) -> Verdict:
    return Verdict.SAME if same else Verdict.OTHER
