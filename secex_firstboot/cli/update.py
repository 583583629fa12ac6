"""``secex update``"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from secex_firstboot.cli.verb import Exit, add_json, print_json

if TYPE_CHECKING:
    from secex_firstboot.contract.boot_image import Images

EXAMPLES = """\
  secex update
      after a new kernel, initramfs or boot entry: the next start has it
  secex update --again
      after it did not come up, and what it needs is there now: try the same image once more
  secex update --json
      for programs: what has changed, nothing if the image was up to date
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--again",
        action="store_true",
        help="try an image that did not come up once more, as it is",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> Exit:
    from secex_firstboot.running import system

    root = system.writable_root()
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
    changed, images = update.in_system(context, root, again=options.again)
    if options.json:
        print_json({"changed": changed})
    else:
        print(outcome(images))
    return Exit.DONE


def outcome(images: Images) -> str:
    from secex_firstboot.contract.boot_image import State

    newest = images.newest
    if newest.state is State.UP:
        return "the boot image is up to date"
    if newest.state is State.NEW and images.starts_newest:
        return f"boot image {newest.generation} is what starts next"
    if newest.state is State.NEW:
        return (
            f"the next restart tries boot image {newest.generation};"
            " power off and on starts the one before it"
        )
    return (
        f"boot image {newest.generation} is up to date, but did not come up: secex update makes another after"
        " a change, secex update --again tries it once more"
    )
