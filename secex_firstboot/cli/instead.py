"""What stands in PATH as pvimg and as genprotimg, before IBM's programs of these names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.sdboot import ibms


def main() -> int:
    name, words = Path(sys.argv[0]).name, sys.argv[1:]
    try:
        if _make(words):
            return 0
    except (FirstbootError, OSError) as error:
        print(f"{name}: secex-firstboot: {error}", file=sys.stderr, flush=True)
        return 1
    program = ibms.find(name)
    if not program:
        print(f"{name}: it is not installed, and this is no boot image of this system", file=sys.stderr)
        return 127
    os.execv(program, [str(program), *words])  # noqa: S606


def _make(words: list[str]) -> bool:
    """Whether this system's boot image was to be made, and is."""
    from secex_firstboot.running import instead, system

    if not instead.is_the_systems(system.root(), words):
        return False
    root = system.writable_root()

    from secex_firstboot.basic import memory
    from secex_firstboot.basic.console import Console
    from secex_firstboot.basic.context import Context, kernel_command_line

    memory.lock()
    console = Console(60.0)
    instead.make(Context(kernel_command_line(), say=console.say, progress=console.progress), root, words)
    return True


if __name__ == "__main__":
    sys.exit(main())
