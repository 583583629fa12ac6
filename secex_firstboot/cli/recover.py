"""``secex recover``"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secex_firstboot.cli import evidence, sealing, table
from secex_firstboot.cli.verb import Exit, add_files, add_json, print_json

if TYPE_CHECKING:
    from secex_firstboot.contract.recovery import Recovery
    from secex_firstboot.hostkeys.document import Document

EXAMPLES = """\
  secex recover /dev/sdb --evidence my-guest.json
      what your recovery key opens of this disk, and whether it is that guest's
  secex recover /dev/sdb --evidence my-guest.json --open
      boot and root as /dev/mapper/recover-boot and recover-root; --close when done
  secex recover /dev/sdb --evidence my-guest.json --hostkey new-1.crt --hostkey new-2.crt \\
          --root DigiCertRoot.crt --cert ibm-z-host-key-signing-gen2.crt --cert DigiCertCA.crt
      the disk starts on these machines from now on, and on no others
"""

_IN_MEMORY = "/run"  # file-hierarchy(7)
_UNPROVEN = "nothing proves whose this is, and the host may have put its own there: --evidence FILE"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("disk", type=Path, metavar="DISK", help="the guest's disk, which nobody uses")
    parser.add_argument(
        "--evidence",
        type=Path,
        metavar="FILE",
        help="what secex evidence --json once printed in the guest: the disk has to be its",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--open", action="store_true", help="open boot and root, and leave them open")
    what.add_argument("--close", action="store_true", help="close them")
    add_files(what, "hostkey", "host-key document of a machine that the disk shall start on")
    sealing.add_proof(parser, "certificate of a root CA: it proves --hostkey")
    add_json(parser)


def run(options: argparse.Namespace) -> Exit:
    import tempfile

    from secex_firstboot.basic import memory
    from secex_firstboot.owner import recover
    from secex_firstboot.storage import disk

    if options.close:
        recover.close_volumes()
        return Exit.DONE
    memory.lock()
    context = sealing.context(options)
    found_disk = disk.of_device(options.disk)
    with tempfile.TemporaryDirectory(prefix="secex-recover-", dir=_IN_MEMORY) as directory:
        work = Path(directory)
        documents, proofs = _proven(options, work) if options.hostkey else ([], {})
        found = recover.find(found_disk, work)
        if options.evidence:
            recover.prove(found, evidence.read(options.evidence))
        else:
            context.warn(_UNPROVEN)
        devices: dict[str, Path] = {}
        made = None
        if options.open:
            devices = recover.open_volumes(found_disk, found, work)
        if documents:
            made = recover.start_on(context, found_disk, found, documents, proofs, work)
    if options.json:
        print_json(
            {
                "found": found.model_dump(mode="json", exclude={"boot", "root"}),
                "proven": options.evidence is not None,
                "open": {name: str(device) for name, device in devices.items()},
                "made": made and made.generation,
            }
        )
        return Exit.DONE
    print(*_page(found, proven=options.evidence is not None), sep="\n")
    for name, device in devices.items():
        print(f"{name} is open: {device}")
    if made:
        print(f"boot image {made.generation} is what starts next, on the machines that were named alone")
    return Exit.DONE


def _proven(options: argparse.Namespace, work: Path) -> tuple[Sequence[Document], dict[str, bytes]]:
    from secex_firstboot.hostkeys import document, proof
    from secex_firstboot.hostkeys.certificates import read_file

    documents = [document.parse(document.system_name(each.name), read_file(each)) for each in options.hostkey]
    roots = {path.name: read_file(path) for path in options.root}
    given = [(path.name, read_file(path)) for path in (*options.cert, *options.crl)]
    context = sealing.context(options)
    if options.no_verify:
        context.warn("nothing proves that the host keys are those of IBM Z")
    else:
        proof.by_files(context, documents, roots, given, offline=options.offline, scratch=work)
    return documents, dict(given)


def _page(found: Recovery, *, proven: bool) -> Iterator[str]:
    rows: tuple[tuple[str, list[str]], ...] = (
        ("left with", [f"boot image {found.generation}, kernel {found.kernel or 'unknown'}"]),
        ("options", [found.command_line]),
        ("hosts", list(found.hosts)),
        ("opens", [f"{name}: partition {volume.partition}" for name, volume in found.volumes.items()]),
        ("whose", ["the guest's that gave the evidence" if proven else "NOT PROVEN"]),
    )
    yield from table.page(rows)
