"""``secex explain``"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from secex_firstboot.cli import table
from secex_firstboot.cli.verb import Exit, add_json, print_json

if TYPE_CHECKING:
    from secex_firstboot.owner.console_log import Cause, Explanation

EXAMPLES = """\
  secex explain /var/log/libvirt/qemu/guest-console.log
      of the guest's last start: how far it got, what ended it, what to do
  secex explain /var/log/libvirt/qemu/guest.log
      the same of QEMU's own log, which says why the firmware refuses a boot image
"""

SCHEMA = 1  # raised when a program that reads what is printed would no longer understand it


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=Path, metavar="CONSOLE.LOG", help="what a guest printed, or QEMU's log")
    add_json(parser)


def run(options: argparse.Namespace) -> Exit:
    from secex_firstboot.owner import console_log

    found = console_log.explain(options.log)
    if options.json:
        print_json({"schema": SCHEMA, **asdict(found)})
    else:
        print(*_page(found), sep="\n")
    return Exit.FAILED if found.outcome is console_log.Outcome.UNKNOWN else Exit.DONE


def _page(found: Explanation) -> Iterator[str]:
    rows: list[tuple[str, list[str]]] = [
        ("log", [_log(found)]),
        ("reached", list(_reached(found))),
        ("ended", list(_ended(found))),
        ("what to do", list(_cures(found))),
        ("also", [f"{_where(each)}{each.message or each.said} [{each.id}]" for each in found.also]),
    ]
    yield from table.page(row for row in rows if row[1])


def _log(found: Explanation) -> str:
    cut = ", of which the end is read" if found.cut else ""
    return f"{found.starts} starts{cut}: this is about the last"


def _reached(found: Explanation) -> Iterator[str]:
    if not found.starts:
        yield "no line of firmware or kernel is known here"
        return
    yield f"kernel {found.kernel}" if found.kernel else "no kernel"
    if found.steps:
        done = [name for name, is_done in found.steps.items() if is_done]
        begun = [name for name, is_done in found.steps.items() if not is_done]
        yield (
            f"first boot: {len(done)} of {found.of_steps} steps are done"
            + (f", the last is {done[-1]}" if done else "")
            + (f"; begun: {', '.join(begun)}" if begun else "")
        )
    if found.complete:
        yield "first boot is complete"
    if found.up:
        yield "the system is up"


def _ended(found: Explanation) -> Iterator[str]:
    if cause := found.cause:
        id = f" [{cause.id}]" if cause.id else ""
        yield f"{_where(cause)}{cause.said or cause.message}{id}"
        if cause.said and cause.message and cause.id.startswith("SX-LOG-"):
            yield cause.message
        if cause.section:
            yield f'troubleshooting.md: "{cause.section}"'
        if found.failed_unit:
            yield f"what failed: {found.failed_unit}"
    elif found.outcome == "unknown":
        yield "not known: nothing in it is what a guest of Secure Execution prints"
    elif not found.up:
        yield "the log ends behind first boot, while its system starts"
    if found.outcome == "unfinished":
        yield f"its last line: {found.last_line}"


def _where(cause: Cause) -> str:
    return f"line {cause.line}: " if cause.line else ""


def _cures(found: Explanation) -> Iterator[str]:
    if found.cause and found.cause.cure:
        yield found.cause.cure
    if found.screen_cure:
        yield found.screen_cure
