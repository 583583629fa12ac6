"""The command line."""

from __future__ import annotations

import argparse
import json
import logging
import sys

from secex_firstboot import __version__, machine
from secex_firstboot.console import Console
from secex_firstboot.errors import FirstbootError
from secex_firstboot.step import Context, Stage, State, kernel_command_line

_EPILOG = """\
exit status:
  0  the steps are done; with --dry-run: every step is done or can be performed
  1  a step failed or refused, or with --dry-run: would refuse
  2  the command line makes no sense

example, in the emergency shell of a guest that did not come up:
  secex-firstboot --dry-run
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secex-firstboot",
        description="First-boot provisioning of an IBM Secure Execution guest.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--stage", type=Stage, choices=list(Stage), help="perform the steps of this stage (systemd units)"
    )
    what.add_argument(
        "--dry-run", action="store_true", help="say of each step whether it is done; change nothing"
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: print JSON for programs")
    parser.add_argument("--debug", action="store_true", help="log every program that is run")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.json and not options.dry_run:
        parser.error("--json goes with --dry-run")
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.WARNING, format="%(message)s")
    console = Console()
    context = Context(kernel_command_line(), say=console.say, progress=console.progress)
    if options.dry_run:
        return _dry_run(context, as_json=options.json)
    try:
        machine.run(options.stage, context)
    except (FirstbootError, OSError) as error:
        print(f"secex-firstboot: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _dry_run(context: Context, *, as_json: bool) -> int:
    seen = machine.dry_run(context)
    if as_json:
        rows = [
            {
                "step": row.step.name,
                "state": row.state,
                "destructive": row.step.destructive,
                "detail": row.detail,
            }
            for row in seen
        ]
        print(json.dumps({"phase": context.phase, "steps": rows}, indent=2))
    else:
        width = max(len(row.step.name) for row in seen)
        print(f"started from: {context.phase}")
        for row in seen:
            print(f"{row.step.name:<{width}}  {row.state:<7}  {row.detail}")
    return 0 if all(row.state in list(State) for row in seen) else 1


if __name__ == "__main__":
    sys.exit(main())
