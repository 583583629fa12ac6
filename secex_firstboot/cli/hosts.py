"""``secex hosts``"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secex_firstboot.cli import table
from secex_firstboot.cli.update import outcome
from secex_firstboot.cli.verb import Exit, add_json, print_json

if TYPE_CHECKING:
    from secex_firstboot.running.hosts import Judged

EXAMPLES = """\
  secex hosts list
      which machines may start the guest
  secex hosts add HKD-8561-1234567.crt --proof DigiCertCA.crt --proof ibm-z-host-key-signing.crt
      one more, after its document was proven genuine; the next start is for it as well
  secex hosts remove HKD-8561-7654321
      one less
  secex hosts check
      ask for revocation lists, and warn of documents that end within 90 days
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    add_json(what.add_parser("list", help="the documents, and how they stand as far as that is known here"))
    added = what.add_parser("add", help="prove documents genuine, and let their machines start the guest")
    added.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a host-key document")
    added.add_argument(
        "--proof",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a certificate or CRL that leads from the image's root to the documents",
    )
    added.add_argument(
        "--replace",
        action="store_true",
        help="in place of all that are there, as for hybrid (quantum-safe) documents, which are experimental",
    )
    removed = what.add_parser("remove", help="let machines start the guest no longer")
    removed.add_argument("names", nargs="+", metavar="NAME", help="as secex hosts list has it")
    removed.add_argument(
        "--moving", action="store_true", help="even this machine: the guest starts on another one next"
    )
    add_json(what.add_parser("check", help="ask for the newest revocation lists; for a timer, too"))


def run(options: argparse.Namespace) -> Exit:
    from secex_firstboot.running import system

    root = system.writable_root()
    # Before more is imported, some of which only a guest has.
    system.check_provisioned(root, "it has no hosts of its own")

    from secex_firstboot.basic import memory
    from secex_firstboot.basic.console import Console
    from secex_firstboot.basic.context import Context, kernel_command_line
    from secex_firstboot.running import hosts, update

    memory.lock()
    context = Context(kernel_command_line())
    if options.what in ("list", "check"):
        judged = hosts.judge(context, root, datetime.now(UTC), ask=options.what == "check")
        if options.json:
            print_json({"hosts": [_json(each) for each in judged]})
        else:
            print(*_page(judged), sep="\n")
        bad = any(each.verdict in hosts.BAD for each in judged)
        return Exit.FAILED if bad and options.what == "check" else Exit.DONE
    console = Console()
    context = Context(kernel_command_line(), say=console.say, warn=console.say, progress=console.progress)
    if options.what == "add":
        hosts.add(context, root, options.files, options.proof, replace=options.replace)
    else:
        hosts.remove(root, options.names, moving=options.moving)
    _, images = update.in_system(context, root, moving=options.what == "remove" and options.moving)
    print(outcome(images))
    if options.what == "remove" and images.fallback:
        print(f"boot image {images.fallback.generation}, to fall back to, is still for the removed machine")
    return Exit.DONE


def _json(each: Judged) -> dict[str, Any]:
    return {
        "name": each.name,
        "kind": each.kind,
        "hash": each.hash,
        "expires": each.expires.date().isoformat(),
        "this_machine": each.this_machine,
        "verdict": each.verdict,
        "why": each.why,
    }


def _page(judged: list[Judged]) -> list[str]:
    width = max(len(each.name) for each in judged)
    lines = []
    for each in judged:
        here = ", this machine" if each.this_machine else ""
        texts = [f"{each.verdict}, {each.kind}, until {each.expires.date().isoformat()}{here}", each.hash]
        lines += table.row(f"{each.name:<{width}}  ", texts + [each.why] * bool(each.why), table.COLUMNS)
    return lines
