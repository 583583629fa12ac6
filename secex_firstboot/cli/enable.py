"""``secex enable``"""

from __future__ import annotations

import argparse
from pathlib import Path

from secex_firstboot.cli.verb import Exit

EXAMPLES = """\
  secex enable
      with host-key documents in /etc/se-hostkeys and a partition named se; again after each new kernel
  secex enable --partition /dev/vda4
      on this ext4 partition
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--partition", type=Path, metavar="DEVICE", help="with ext4, for boot images (default: that named se)"
    )


def run(options: argparse.Namespace) -> Exit:
    from secex_firstboot.basic import memory
    from secex_firstboot.basic.console import Console
    from secex_firstboot.basic.context import Context, kernel_command_line
    from secex_firstboot.running import enable, system

    memory.lock()
    console = Console()
    context = Context(kernel_command_line(), say=console.say, warn=console.say, progress=console.progress)
    made = enable.make(context, system.root(), options.partition)
    print(f"{made.disk} starts the boot image of kernel {made.entry.version} next; zipl takes that back")
    print(enable.UNPROTECTED)
    return Exit.DONE
