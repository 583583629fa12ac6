"""``secex host``"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secex_firstboot.cli import table
from secex_firstboot.cli.verb import Exit, add_json, print_json

if TYPE_CHECKING:
    from secex_firstboot.owner.host import Host, OfAHost

EXAMPLES = """\
  secex host
      on the host: machine, kernel, ultravisor, QEMU and libvirt, with what is missing
  secex host HKD-3931-0275AB8.crt HKD-3931-0275CD8.crt
      which of these documents is this machine's?
  secex host --root copies/
      of another host, from copies of its files: secex(1) says which
"""

SCHEMA = 1  # raised when a program that reads what is printed would no longer understand it


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("documents", type=Path, nargs="*", metavar="FILE", help="a host-key document")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="read copies of a host's files there, in place of this machine's own (default: %(default)s)",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> Exit:
    from secex_firstboot.owner import host

    found = host.look(host.Source(options.root), options.documents)
    if options.json:
        print_json(_json(found))
    else:
        print(*_page(found), sep="\n")
    return Exit.FAILED if any(not each.advice for each in found.findings) else Exit.DONE


def _json(found: Host) -> dict[str, Any]:
    """docs/host.schema.json"""
    return {
        "schema": SCHEMA,
        **vars(found),
        "ultravisor": found.ultravisor and asdict(found.ultravisor),
        "documents": [asdict(each) for each in found.documents],
        "findings": [each.as_json for each in found.findings],
    }


def _page(found: Host) -> Iterator[str]:
    rows: list[tuple[str, list[str]]] = [
        ("machine", [_machine(found)]),
        ("kernel", [_kernel(found)]),
        ("ultravisor", list(_ultravisor(found))),
        ("keys", list(found.keys)),
        ("documents", [_document(each) for each in found.documents]),
        ("libvirt", [_libvirt(found)]),
        ("memory", list(_memory(found))),
        ("missing", [f"{'advice: ' if each.advice else ''}{each.error}" for each in found.findings]),
        ("not told", found.untold),
    ]
    yield from table.page(rows)


def _machine(found: Host) -> str:
    name = f"IBM {found.machine}" if found.machine else "not known here"
    kind = f" ({found.machine_type})" if found.machine_type else ""
    return f"{name}{kind}" + (f", LPAR {found.partition}" if found.partition else "")


def _kernel(found: Host) -> str:
    words = {True: "with prot_virt=1", False: "WITHOUT prot_virt=1", None: "its command line is not told"}
    return f"{found.kernel or 'not told'}, {words[found.prot_virt]}"


def _ultravisor(found: Host) -> Iterator[str]:
    yield {True: "ready for guests", False: "NOT READY", None: "not told"}[found.ready]
    if told := found.ultravisor:
        if told.max_guests is not None:
            yield f"at most {told.max_guests} guests, of {told.max_cpus or 'some'} processors"
        yield f"boot images of version {', '.join(map(hex, told.headers)) or 'not told'}"
        yield f"attestation: {_yes(told.attestation)}; secrets for a guest: {_or_not_told(told.secrets)}"


def _document(each: OfAHost) -> str:
    whose = {True: "THIS MACHINE", False: "another machine", None: "not told whose"}[each.this_machine]
    return f"{each.file}: {whose}: {each.kind} {each.hash}"


def _libvirt(found: Host) -> str:
    return (
        f"{found.libvirt or 'not told'}, QEMU {found.qemu or 'not told'}, s390-pv: {_yes(found.s390_pv)},"
        f" unpack: {_yes(found.unpack)}"
    )


def _memory(found: Host) -> Iterator[str]:
    from secex_firstboot.owner.domain import LEAST_MEMORY

    yield f"{_or_not_told(found.available)} of {_or_not_told(found.memory)} MiB are available"
    yield (
        f"first boot was tried with {LEAST_MEMORY} MiB and more; of a guest's memory 64 MiB, or what swiotlb="
        " says on its kernel command line, in pieces of 2 KiB, are for its devices alone"
    )


def _yes(told: bool | None) -> str:
    return {True: "yes", False: "NO", None: "not told"}[told]


def _or_not_told(told: int | None) -> str:
    return "not told" if told is None else str(told)
