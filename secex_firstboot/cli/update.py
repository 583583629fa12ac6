"""``secex update``"""

from __future__ import annotations

import argparse
from pathlib import Path

from secex_firstboot.cli.verb import Exit, add_json, print_json

EXAMPLES = """\
  secex update
      after a new kernel, initramfs or boot entry: the next start has it
  secex update --json
      for programs: what has changed, nothing if the image was up to date
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(options: argparse.Namespace) -> Exit:
    from secex_firstboot.running import system

    root = Path("/")
    # Before more is imported, some of which only a guest has.
    system.check_provisioned(root, "it has no boot image to update")

    from secex_firstboot.basic import memory
    from secex_firstboot.basic.console import Console
    from secex_firstboot.basic.context import Context, kernel_command_line
    from secex_firstboot.running import update

    memory.lock()
    context = Context(kernel_command_line())
    if not options.json:
        console = Console()
        context = Context(kernel_command_line(), say=console.say, progress=console.progress)
    changed = update.in_system(context, root)
    if options.json:
        print_json({"changed": changed})
    elif changed:
        print("the next start has the new boot image")
    else:
        print("the boot image is up to date")
    return Exit.DONE
