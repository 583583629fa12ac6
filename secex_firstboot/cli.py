"""The command line."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from secex_firstboot import __version__, explain, grow, machine, memory, paths
from secex_firstboot.console import Console
from secex_firstboot.errors import FirstbootError
from secex_firstboot.files import exists
from secex_firstboot.machine import Observation
from secex_firstboot.preflight import Preflight
from secex_firstboot.step import Context, Stage, State, kernel_command_line
from secex_firstboot.steps import seal

_JOURNAL_INTERVAL = 60.0  # seconds between two lines of progress that may take hours
_EPILOG = """\
exit status:
  0  the steps are done; with --dry-run: every step is done or can be performed
  1  a step failed or refused, or with --dry-run: would refuse
  2  the command line makes no sense

examples:
  secex-firstboot --dry-run
      in a guest: how far it has come
  secex-firstboot --dry-run --config config.ign --disk image.qcow2
      on a workstation, before the config is encrypted: what first boot would say
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
    what.add_argument(
        "--grow", action="store_true", help="in the running system: grow root to the end of its volume"
    )
    what.add_argument(
        "--tidy",
        action="store_true",
        help="in the running system: remove what a power cut at the end of first boot left behind",
    )
    what.add_argument(
        "--explain",
        action="store_true",
        help="after Ignition failed in the initramfs: say why, and what to do; nothing if it cannot be told",
    )
    workstation = parser.add_argument_group("with --dry-run, on a workstation")
    workstation.add_argument("--config", type=Path, metavar="FILE", help="the Ignition config, not encrypted")
    workstation.add_argument("--disk", type=Path, metavar="IMAGE", help="the SE-ready image, raw or qcow2")
    workstation.add_argument(
        "--certificates",
        type=Path,
        metavar="DIRECTORY",
        default=paths.CERTIFICATES,
        help="the root certificates that the image trusts, and others (default: %(default)s)",
    )
    workstation.add_argument(
        "--hostkey-verify",
        choices=["strict", "no"],
        default="strict",
        help="as secex.hostkey_verify= of the image (default: %(default)s)",
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
    if (options.config and not options.dry_run) or (options.disk and not options.config):
        parser.error("--config goes with --dry-run, and --disk with --config")
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.WARNING, format="%(message)s")
    if options.explain:
        print(*explain.lines(), sep="\n")
        return 0
    console = Console(_JOURNAL_INTERVAL) if options.grow else Console()
    context = Context(kernel_command_line(), say=console.say, progress=console.progress)
    if options.config:
        context = Context(context.command_line, say=_to_stderr, warn=_to_stderr)
        look = Preflight(options.config, options.disk, options.certificates, options.hostkey_verify, context)
        return _print(look.run(), "a workstation", as_json=options.json)
    if options.dry_run:
        return _print(machine.dry_run(context), context.phase, as_json=options.json)
    try:
        if options.grow:
            grow.in_background(context)
        elif options.tidy:
            seal.tidy_in_system(context)
        else:
            memory.lock()
            _stir_again()
            machine.run(options.stage, context)
    except (FirstbootError, OSError) as error:
        print(f"secex-firstboot: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _stir_again() -> None:
    """After a power cut the config is not decrypted again, and new keys are made all the same, for sdboot."""
    if exists(paths.PLAN):
        memory.stir(paths.PLAN.read_bytes())  # with the record's key, which only the guest knows


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _print(seen: list[Observation], phase: str, *, as_json: bool) -> int:
    """A table, or JSON; the exit code."""
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
        print(json.dumps({"phase": phase, "steps": rows}, indent=2))
    else:
        width = max(len(row.step.name) for row in seen)
        print(f"started from: {phase}")
        for row in seen:
            print(f"{row.step.name:<{width}}  {row.state:<7}  {row.detail}")
    return 0 if all(row.state in list(State) for row in seen) else 1


if __name__ == "__main__":
    sys.exit(main())
