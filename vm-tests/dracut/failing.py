#!/usr/bin/python3 -I
"""The agent, failing once the step that a disk names with its serial ``fail-STEP`` is done.

It stands in for /usr/bin/secex-firstboot; the agent itself knows nothing of it. It notes what is secret by
then, so that leftovers.py knows what to look for.
"""

import sys
from pathlib import Path

from secex_firstboot import cli, machine, paths
from secex_firstboot.errors import FirstbootError

NEEDLES = Path("/run/secex-test/needles")
_run = machine._run


def run(step, title, context):
    note_secrets()  # some are gone once a step is done
    report = _run(step, title, context)
    note_secrets()
    wanted = f"fail-{step.name.replace(' ', '-')}"
    if wanted in (path.read_text().strip() for path in Path("/sys/block").glob("*/serial")):
        raise FirstbootError(f"the test lets {step.name} fail", "detach the disk that says so")
    return report


def note_secrets():
    """64 bytes from the middle of each file with a secret, as a line of hexadecimal digits."""
    volumes = paths.STATE / "volumes"
    files = [paths.PRIVATE_KEY, paths.PLAN, *volumes.rglob("*"), *paths.LUKS_KEYS.glob("*")]
    known = set(NEEDLES.read_text().split()) if NEEDLES.exists() else set()
    for path in files:
        if path.is_file():
            content = path.read_bytes()
            middle = max(0, len(content) // 2 - 32)
            known.add(content[middle : middle + 64].hex())
    NEEDLES.parent.mkdir(exist_ok=True)
    NEEDLES.write_text("\n".join(sorted(known)))


machine._run = run
sys.argv[0] = "secex-firstboot"
sys.exit(cli.main())
