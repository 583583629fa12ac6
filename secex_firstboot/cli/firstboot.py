"""``secex-firstboot``: what units call, and ``--dry-run``.

A part of the package is imported by what needs it, when it is called: the stages and ``--explain`` run in the
initramfs, which has the agent alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from secex_firstboot import __version__
from secex_firstboot.agent.step import Context, Stage
from secex_firstboot.basic.context import kernel_command_line
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.cli import table
from secex_firstboot.contract import dry_run, paths
from secex_firstboot.contract.dry_run import Observation, State
from secex_firstboot.contract.parameters import HOSTKEY_VERIFY

if TYPE_CHECKING:
    from secex_firstboot.roots.kinds import Root

_JOURNAL_INTERVAL = 60.0  # seconds between two lines of progress that may take hours
_EPILOG = """\
exit status:
  0  the steps are done; with --dry-run: nothing that could be looked at would be refused
  1  a step failed or refused, or with --dry-run: would refuse
  2  the command line makes no sense

examples:
  secex-firstboot --dry-run
      in a guest: how far it has come
  secex-firstboot --dry-run --config config.ign --disk image.qcow2 --certificates image-certs/
      on a workstation, before the config is encrypted: what first boot would say;
      "unknown" is neither ready nor refused: it says what could not be told here
  secex-firstboot --dry-run --config config.ign --offline
      the same, without asking any server
"""


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="secex-firstboot",
        description="First-boot provisioning of an IBM Secure Execution guest.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = found.add_mutually_exclusive_group(required=True)
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
        "--starting",
        action="store_true",
        help="early in a start: until it is up, let a restart go back to the boot image before",
    )
    what.add_argument(
        "--started",
        action="store_true",
        help="in the running system, once it is up: keep its boot image, and say if a newer one failed",
    )
    what.add_argument(
        "--stopping",
        action="store_true",
        help="when the running system ends: make a boot image if one is due, and let a restart try it",
    )
    what.add_argument(
        "--kernel-added",
        metavar="RELEASE",
        help="in the running system, for hooks of packages: give this kernel a boot entry and a boot image",
    )
    what.add_argument(
        "--kernel-goes", metavar="RELEASE", help="before it is removed: refuse that if it is still needed"
    )
    what.add_argument(
        "--kernel-gone", metavar="RELEASE", help="after it was removed: remove its boot entry, too"
    )
    what.add_argument(
        "--explain",
        action="store_true",
        help="after Ignition failed in the initramfs: say why, and what to do; nothing if it cannot be told",
    )
    workstation = found.add_argument_group("with --dry-run, on a workstation")
    workstation.add_argument("--config", type=Path, metavar="FILE", help="the Ignition config, not encrypted")
    workstation.add_argument("--disk", type=Path, metavar="IMAGE", help="the SE-ready image, raw or qcow2")
    workstation.add_argument(
        "--certificates",
        type=Path,
        metavar="DIRECTORY",
        help="the root certificates that the image trusts, and others "
        f"(default: {paths.CERTIFICATES}, if this machine has it)",
    )
    workstation.add_argument(
        "--hostkey-verify",
        choices=HOSTKEY_VERIFY.values,
        help=f"as {HOSTKEY_VERIFY.name}= of the image (default: as its metadata say, or strict)",
    )
    workstation.add_argument(
        "--offline", action="store_true", help="fetch nothing; name what only a server has"
    )
    found.add_argument("--json", action="store_true", help="with --dry-run: print JSON for programs")
    found.add_argument("--debug", action="store_true", help="log every program that is run")
    found.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return found


def main(arguments: list[str] | None = None) -> int:
    command = parser()
    options = command.parse_args(arguments)
    if options.json and not options.dry_run:
        command.error("--json goes with --dry-run")
    if options.config and not options.dry_run:
        command.error("--config goes with --dry-run")
    if (options.disk or options.certificates or options.offline) and not options.config:
        command.error("--disk, --certificates and --offline go with --config")
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.WARNING, format="%(message)s")
    if options.explain:
        return _explain()
    if options.dry_run and not options.config:
        return _dry_run(as_json=options.json)
    try:
        if options.config:
            return _check(options)
        if options.stage:
            _run(options.stage)
        else:
            _in_system(options)
    except (FirstbootError, OSError) as error:
        print(f"secex-firstboot: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _context(interval: float | None = None) -> Context:
    from secex_firstboot.basic.console import Console

    console = Console(interval) if interval else Console()
    return Context(kernel_command_line(), say=console.say, progress=console.progress)


def _run(stage: Stage) -> None:
    from secex_firstboot.agent import machine, places
    from secex_firstboot.basic import memory
    from secex_firstboot.basic.files import exists

    context = _context()
    memory.lock()
    # After a power cut the config is not decrypted again, and new keys are made all the same, for sdboot.
    if exists(places.PLAN):
        memory.stir(places.PLAN.read_bytes())  # with the record's key, which only the guest knows
    machine.run(stage, context)


def _explain() -> int:
    from secex_firstboot.agent import explain

    print(*explain.lines(), sep="\n")
    return 0


def _in_system(options: argparse.Namespace) -> None:
    from secex_firstboot.running import system

    root = system.writable_root()
    if options.grow:
        _grow(root)
    elif options.kernel_added or options.kernel_goes or options.kernel_gone:
        _kernel(options, root)
    elif options.starting:
        _starting(root)
    elif options.started:
        _started(root)
    elif options.stopping:
        _stopping(root)
    else:
        _tidy(root)


def _grow(root: Root) -> None:
    from secex_firstboot.running import grow

    grow.in_background(_context(_JOURNAL_INTERVAL), root)


def _tidy(root: Root) -> None:
    from secex_firstboot.running import tidy

    tidy.in_system(_context(), root)


def _kernel(options: argparse.Namespace, root: Root) -> None:
    from secex_firstboot.basic import memory
    from secex_firstboot.running import kernels

    memory.lock()
    context = _context()
    if options.kernel_added:
        kernels.added(context, root, options.kernel_added)
    elif options.kernel_goes:
        kernels.check_may_go(context, root, options.kernel_goes)
    else:
        kernels.gone(context, root, options.kernel_gone)


def _starting(root: Root) -> None:
    from secex_firstboot.running import trying

    trying.at_boot(_context(), root)


def _started(root: Root) -> None:
    from secex_firstboot.basic import memory
    from secex_firstboot.running import trying

    memory.lock()
    trying.at_start(_context(_JOURNAL_INTERVAL), root)


def _stopping(root: Root) -> None:
    from secex_firstboot.basic import memory
    from secex_firstboot.running import trying

    memory.lock()
    trying.at_stop(_context(_JOURNAL_INTERVAL), root)


def _dry_run(*, as_json: bool) -> int:
    from secex_firstboot.agent import machine

    context = _context()
    return _print(machine.dry_run(context), context.phase, as_json=as_json)


def _check(options: argparse.Namespace) -> int:
    from secex_firstboot.cli import check

    as_for_check = argparse.Namespace(**vars(options), image=options.disk, metadata=None, fetch=False)
    return 1 if check.run(as_for_check) else 0


def _print(seen: list[Observation], phase: str, *, as_json: bool) -> int:
    """A table, or JSON; the exit code."""
    if as_json:
        print(json.dumps(dry_run.as_json(phase, seen), indent=2))
    else:
        print(f"started from: {phase}")
        print(*table.steps(seen, sys.maxsize), sep="\n")
    return 1 if any(row.state is State.REFUSED for row in seen) else 0


if __name__ == "__main__":
    sys.exit(main())
