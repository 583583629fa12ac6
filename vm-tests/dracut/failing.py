#!/usr/bin/python3 -I
"""The agent on a machine in trouble, which a disk with the serial ``trouble`` names: ``fail-STEP`` lets it
fail once that step is done, ``full-STEP`` fills /run before it, ``no-zipl-STEP`` breaks zipl. Further words
are the hashes of this machine's host keys.

It stands in for /usr/bin/secex-firstboot; the agent itself knows nothing of it. It notes what is secret by
then, so that leftovers.py knows what to look for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from secex_firstboot.agent import machine, places
from secex_firstboot.agent.step import Context, Step
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.cli import firstboot as cli
from secex_firstboot.contract import paths
from secex_firstboot.contract.report import StepReport

NEEDLES = Path("/run/secex-test/needles")
take = machine.take


def take_in_trouble(step: Step, title: str, context: Context) -> StepReport:
    note_secrets()  # some are gone once a step is done
    if asked_for("full", step):
        fill_run()
    if asked_for("no-zipl", step):
        break_zipl()
    report = take(step, title, context)
    note_secrets()
    if asked_for("fail", step):
        raise FirstbootError("SX-TEST-01", f"the test lets {step.name} fail", "attach another disk")
    return report


def asked_for(trouble: str, step: Step) -> bool:
    return note()[0] == f"{trouble}-{step.name.replace(' ', '-')}"


def note() -> list[str]:
    serials = {path.read_text().strip(): path.parent.name for path in Path("/sys/block").glob("*/serial")}
    return Path("/dev", serials["trouble"]).read_bytes().rstrip(b"\0").decode().split()


def show_host_keys(hashes: list[str]) -> None:
    """As the kernel does where the ultravisor tells: uv_keys_all() in arch/s390/kernel/uv.c, Linux 6.13.

    Under QEMU no kernel does: all of /sys/firmware/uv is for facility 158, which an ultravisor gives.
    """
    places.THIS_HOSTS_KEYS.mkdir(exist_ok=True)
    lines = [*hashes, *["0" * 64] * (15 - len(hashes))]
    (places.THIS_HOSTS_KEYS / "all").write_text("".join(f"{line}\n" for line in lines))


def fill_run() -> None:
    free = os.statvfs("/run")
    with open("/run/secex-test/fill", "wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, free.f_bavail * free.f_frsize)


def break_zipl() -> None:
    """In place of the program, one that only says no."""
    broken = Path("/run/secex-test/zipl")
    broken.write_text("#!/bin/sh\necho the test lets zipl fail >&2\nexit 1\n")
    broken.chmod(0o755)
    zipl = shutil.which("zipl")
    assert zipl
    subprocess.run(["mount", "--bind", broken, zipl], check=True)


def note_secrets() -> None:
    """64 bytes from the middle of each file with a secret, as a line of hexadecimal digits."""
    volumes = places.STATE / "volumes"
    files = [paths.PRIVATE_KEY, places.PLAN, *volumes.rglob("*"), *paths.LUKS_KEYS.glob("*")]
    known = set(NEEDLES.read_text().split()) if NEEDLES.exists() else set()
    for path in files:
        if path.is_file():
            content = path.read_bytes()
            middle = max(0, len(content) // 2 - 32)
            known.add(content[middle : middle + 64].hex())
    NEEDLES.parent.mkdir(exist_ok=True)
    NEEDLES.write_text("\n".join(sorted(known)))


subprocess.run(["udevadm", "settle"])
show_host_keys(note()[1:])
machine.take = take_in_trouble
sys.argv[0] = "secex-firstboot"
sys.exit(cli.main())
