"""``secex domain``"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from secex_firstboot.cli import table
from secex_firstboot.cli.verb import Exit, add_json, print_json

if TYPE_CHECKING:
    from secex_firstboot.owner.domain_check import Checked
    from secex_firstboot.owner.finding import Finding

EXAMPLES = """\
  secex domain my-linux.qcow2 --config config.asc > guest.xml
      for virsh define; what is wrong with image or config is on standard error
  secex domain my-linux.qcow2 --config config.asc --qemu
      the same as a command of QEMU
  secex domain --check guest.xml
      does a domain have what Secure Execution and a first boot need?
"""

SCHEMA = 1  # raised when a program that reads what is printed would no longer understand it
_LOG = Path("/var/log/libvirt/qemu")


def arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("image", type=Path, nargs="?", metavar="IMAGE", help="the guest's disk, qcow2 or raw")
    what.add_argument(
        "--check", type=Path, metavar="DOMAIN.xml", help="look at a domain instead of making one"
    )
    checking = parser.add_argument_group("with --check")
    checking.add_argument(
        "--later",
        action="store_true",
        help="the guest has had its first boot (told by the disk, if it is here)",
    )
    add_json(checking)
    making = parser.add_argument_group("with IMAGE")
    making.add_argument(
        "--config", type=Path, metavar="FILE", help="the encrypted config, for the first boot"
    )
    making.add_argument("--name", help="of the guest (default: the image's)")
    making.add_argument("--memory", type=_number, metavar="MIB", help="of the guest (default: 2048)")
    making.add_argument("--cpus", type=_number, metavar="NUMBER", help="of the guest (default: 2)")
    making.add_argument("--network", metavar="NAME", help="libvirt's network, or none (default: default)")
    making.add_argument(
        "--console", type=Path, metavar="FILE", help="where the host keeps what the guest prints"
    )
    making.add_argument("--loadparm", choices=["1", "2"], help="which boot image starts: 2 is the one before")
    making.add_argument("--qemu", action="store_true", help="print a command of QEMU")
    parser.set_defaults(no_sense=parser.error)


def _number(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


_MAKING = ("config", "name", "memory", "cpus", "network", "console", "loadparm", "qemu")


def run(options: argparse.Namespace) -> Exit:
    given = [name for name in _MAKING if getattr(options, name)]
    if options.check and given:
        options.no_sense(f"--{given[0]} goes with IMAGE")
    if options.image and (options.json or options.later):
        options.no_sense("--json and --later go with --check")
    return _check(options) if options.check else _make(options)


def _check(options: argparse.Namespace) -> Exit:
    from secex_firstboot.owner import domain_check

    checked = domain_check.check(options.check, later=options.later)
    if options.json:
        print_json(
            {
                "schema": SCHEMA,
                "first_boot": checked.first_boot,
                "findings": [{"line": each.line, **each.as_json} for each in checked.findings],
                "untold": checked.untold,
            }
        )
    else:
        print(*_page(checked), sep="\n")
    return Exit.FAILED if checked.is_wrong else Exit.DONE


def _make(options: argparse.Namespace) -> Exit:
    from secex_firstboot.owner import domain, domain_check, xml_lines

    image = options.image.absolute()
    name = options.name or image.stem
    directory = Path.cwd() if options.qemu else _LOG
    wanted = {key: value for key in ("memory", "cpus", "network") if (value := getattr(options, key))}
    guest = domain.Guest(
        name,
        image,
        domain.format_of(image),
        options.config and options.config.absolute(),
        options.console.absolute() if options.console else directory / f"{name}-console.log",
        loadparm=options.loadparm or "",
        **wanted,
    )
    written = domain.xml(guest)
    checked = domain_check.check_domain(xml_lines.parse(written.encode()))
    if options.qemu:
        print(*(shlex.join(each) for each in domain.command_line(guest)), sep=" \\\n  ")
    else:
        print(written, end="")
    for each in checked.findings:
        print(f"secex: {_words(each)}", file=sys.stderr)
    for reason in checked.untold:
        print(f"secex: not told: {table.printable(reason)}", file=sys.stderr)
    return Exit.FAILED if checked.is_wrong else Exit.DONE


def _page(checked: Checked) -> Iterator[str]:
    boots = {True: "a first boot", False: "a start after the first boot", None: "taken for a first boot"}
    rows = [("what", [boots[checked.first_boot]])]
    for each in checked.findings:
        rows.append((f"line {each.line}", [_words(each)]))
    if not checked.findings:
        rows.append(("domain", ["has what it needs"]))
    rows.append(("not told", checked.untold))
    yield from table.page(rows)


def _words(each: Finding) -> str:
    return table.printable(f"{'advice: ' if each.advice else ''}{each.error}")
