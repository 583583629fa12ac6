"""``secex evidence``"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secex_firstboot.cli import table
from secex_firstboot.cli.verb import Exit, add_json, print_json

if TYPE_CHECKING:
    from secex_firstboot.contract.evidence import BootImage, Evidence
    from secex_firstboot.owner.evidence import Compared

EXAMPLES = """\
  secex evidence --json > my-guest.json
      in the guest, or by ssh: what its boot images are, to be kept for later
  secex evidence my-guest.json --image my-linux.json
      on a workstation: is what it runs made of this image?
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="what secex evidence --json has printed in a guest (default: of this guest)",
    )
    parser.add_argument(
        "--image", type=Path, metavar="NAME.json", help="compare it with this image's metadata"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> Exit:
    evidence = read(options.file) if options.file else _own()
    compared = _compared(evidence, options.image) if options.image else []
    if options.json:
        rows = [
            {"what": each.what, "verdict": each.verdict.name.lower(), "detail": each.detail}
            for each in compared
        ]
        print_json(
            evidence.model_dump(mode="json")
            if not options.image
            else {"image": str(options.image), "compared": rows}
        )
    else:
        print(*(_comparison(compared) if options.image else _page(evidence)), sep="\n")
    return Exit.FAILED if any(each.is_bad for each in compared) else Exit.DONE


def read(path: Path) -> Evidence:
    """Raises Refusal if it is none."""
    from secex_firstboot.contract import evidence

    with path.open("rb") as stream:
        return evidence.Evidence.parse(path.name, stream.read(evidence.LIMIT))


def _own() -> Evidence:
    from secex_firstboot.running import system

    root = system.root()
    # Before more is imported, some of which only a guest has.
    system.check_provisioned(root, "name the file with a guest's evidence")

    from secex_firstboot.basic.context import Context, kernel_command_line
    from secex_firstboot.running import evidence

    return evidence.gather(Context(kernel_command_line()), root)


def _compared(evidence: Evidence, image: Path) -> Sequence[Compared]:
    from secex_firstboot.contract.metadata import Metadata
    from secex_firstboot.owner.evidence import compare

    made = Metadata.load(image)
    return list(
        compare(
            evidence,
            root_hashes={name: volume.root_hash for name, volume in made.volumes.items()},
            kernel=made.boot_entry.kernel,
            initramfs=made.boot_entry.initramfs,
            of_entry=made.boot_entry.options,
        )
    )


def _comparison(compared: Sequence[Compared]) -> Iterator[str]:
    yield from table.page(
        [(each.what, [str(each.verdict)] + [each.detail] * bool(each.detail)) for each in compared]
    )


def _page(evidence: Evidence) -> Iterator[str]:
    rows: list[tuple[str, list[str]]] = []
    for each in evidence.images:
        rows += [
            (f"image {each.generation}", [_state(each, evidence.running)]),
            ("  options", [each.command_line or "not kept"]),
            ("  hosts", list(each.host_keys) or ["not kept"]),
            ("  made of", [f"{digest}  {name}" for name, digest in each.inputs.items()]),
        ]
    volumes = [f"{digest}  {name}, as first boot found it" for name, digest in evidence.root_hashes.items()]
    rows += [("volumes", volumes or ["not kept"]), ("attested", ["no: the guest says so itself"])]
    yield from table.page(rows)


def _state(each: BootImage, running: int | None) -> str:
    runs = ", runs" if each.generation == running else ""
    return f"kernel {each.kernel or 'unknown'}{runs}: {each.state}"
