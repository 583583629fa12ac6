"""``secex kargs``"""

from __future__ import annotations

import argparse

from secex_firstboot.cli.update import outcome
from secex_firstboot.cli.verb import Exit, add_json, print_json

EXAMPLES = """\
  secex kargs
      those of the boot entry that counts
  secex kargs --append audit=1 --delete quiet
      with one more and one less; the next start has them
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    for option, what in (("--append", "add this one, unless it is there"), ("--delete", "remove this one")):
        parser.add_argument(option, action="append", default=[], metavar="ARGUMENT", help=what)
    add_json(parser)


def run(options: argparse.Namespace) -> Exit:
    from secex_firstboot.running import system

    root = system.writable_root()
    # Before more is imported, some of which only a guest has.
    system.check_provisioned(root, "it has no boot image")

    from secex_firstboot.basic import memory
    from secex_firstboot.basic.console import Console
    from secex_firstboot.basic.context import Context, kernel_command_line
    from secex_firstboot.running import kargs, update

    changes = bool(options.append or options.delete)
    arguments = kargs.change(root, options.append, options.delete)
    if options.json:
        print_json({"arguments": arguments})
    elif not changes:
        print(*arguments, sep="\n")
    if changes:
        memory.lock()
        console = Console()
        say = (lambda line: None) if options.json else console.say
        _, images = update.in_system(Context(kernel_command_line(), say=say), root)
        if not options.json:
            print(outcome(images))
    return Exit.DONE
