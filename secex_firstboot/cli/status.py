"""``secex status``: prints what running/status.py gathers, and what a dry run says."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secex_firstboot.cli import table
from secex_firstboot.cli.verb import Exit, add_json, print_json
from secex_firstboot.contract.dry_run import Observation, State, as_json

if TYPE_CHECKING:
    from secex_firstboot.running.status import BootImages, Growth, Host, Status, Volume

EXAMPLES = """\
  secex status
      in the guest: a page of text
  secex status --json
      the same for programs, as docs/status.schema.json describes it
  secex status --root /mnt
      of the root file system of a guest that is mounted there
"""

_OF_EVIDENCE = {"command_line", "header"}  # of a boot image: secex evidence tells them

SCHEMA = 1  # raised when a program that reads what is printed would no longer understand it


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="look at the root file system that is mounted there (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> Exit:
    from secex_firstboot.roots.kinds import Plain
    from secex_firstboot.running import system

    live = options.root == Path("/")
    # One that is only mounted has no command line that tells its kind.
    root = system.root() if live else Plain(options.root, options.root)
    # Before more is imported, some of which only a guest has.
    system.check_provisioned(root, "it has no status to show")

    from secex_firstboot.basic.context import Context, kernel_command_line
    from secex_firstboot.running import status

    found = status.gather(root, Context(kernel_command_line()) if live else None)
    phase, seen, reason = _dry_run() if live else ("", None, "it asks the running system")
    untold = [*([] if seen else [f"a dry run: {reason}"]), *found.untold]
    if options.json:
        print_json(_json(found, as_json(phase, seen) if seen else None, untold))
    else:
        print(*_page(found, phase, seen, untold), sep="\n")
    return Exit.DONE


def _dry_run() -> tuple[str, list[Observation] | None, str]:
    """The phase, and what each step says; or None and why not."""
    from secex_firstboot.agent.step import Context
    from secex_firstboot.basic.context import kernel_command_line

    try:
        from secex_firstboot.agent import machine
    except ModuleNotFoundError as error:
        return "", None, f"the Python package {error.name} is not installed"
    context = Context(kernel_command_line())
    return context.phase, machine.dry_run(context), ""


def _json(found: Status, dry_run: dict[str, Any] | None, untold: list[str]) -> dict[str, Any]:
    """docs/status.schema.json"""
    return {
        "schema": SCHEMA,
        **asdict(found),
        "boot_images": found.boot_images and _boot_images_json(found.boot_images),
        "dry_run": dry_run,
        "first_boot": found.first_boot and found.first_boot.model_dump(mode="json"),
        "untold": untold,
    }


def _page(found: Status, phase: str, seen: list[Observation] | None, untold: Sequence[str]) -> Iterator[str]:
    report, versions = found.first_boot, found.versions
    rows: list[tuple[str, list[str]]] = [
        ("guest", _guest(found, phase, seen)),
        (
            "first boot",
            [f"{report.summary}, by secex-firstboot {report.version}"]
            + [f"WARNING: {each}" for each in report.warnings]
            if report
            else ["there is no report of it"],
        ),
        ("hosts", [_host(each) for each in found.hosts] or ["no host-key document is there"]),
        ("", [] if found.this_machine else ["the kernel does not tell this machine's keys"]),
        ("volumes", [line for each in found.volumes for line in _volume(each, running=found.running)]),
        ("boot images", list(_boot_images(found.boot_images)) if found.boot_images else ["not told"]),
        ("growth", [_growth(found.growth)]),
        (
            "versions",
            [
                f"secex-firstboot {versions.secex_firstboot}, kernel {versions.kernel or 'unknown'},"
                f" dracut {versions.dracut or 'unknown'}, systemd {versions.systemd or 'unknown'}",
                f"kernels installed: {', '.join(versions.kernels) or 'none'}",
            ],
        ),
        ("not told", list(untold)),
    ]
    yield from table.page(rows)


def _guest(found: Status, phase: str, seen: list[Observation] | None) -> list[str]:
    first = "sealed" if found.sealed else "not tidied yet: see secex-firstboot-tidy.service"
    if not seen:
        return [f"set up by first boot, {first}"]
    other = [row for row in seen if row.state is not State.DONE]
    done = f"{len(seen) - len(other)} of {len(seen)} steps are done"
    return [
        f"started from: {phase}, {first}, {done}",
        *(f"{row.step.name}: {row.state}: {row.detail}" for row in other),
    ]


def _host(host: Host) -> str:
    if host.hash is None:
        return f"{host.name}: not readable"
    here = ", this machine" if host.this_machine else ""
    return f"{host.name}, {host.kind}, expires {host.expires}{here}: {host.hash}"


def _volume(volume: Volume, *, running: bool) -> Iterator[str]:
    header, mapping = volume.header, volume.mapping
    if mapping:
        size = "" if mapping.size is None else f", {_mib(mapping.size)}"
        record = {True: ", as first boot made it", False: ", NOT AS FIRST BOOT MADE IT", None: ""}
        yield f"{volume.name}: {mapping.path}{size}{record[mapping.as_recorded]}"
    else:
        yield f"{volume.name}: not open" if running else f"{volume.name}:"
    if header:
        how = "without integrity" if header.integrity == "none" else f"with {header.integrity}"
        yield f"  {header.cipher} {how}, sectors of {header.sector_size} bytes, header {volume.file}"


def _boot_images_json(images: BootImages) -> dict[str, Any]:
    both = {"newest": images.newest, "fallback": images.fallback}
    return asdict(images) | {
        key: each and each.model_dump(mode="json", exclude=_OF_EVIDENCE) for key, each in both.items()
    }


_NEXT = {
    "new": "new, the next restart tries it",
    "tried": "tried at the last restart",
    "failed": "TRIED, DID NOT COME UP: secex update makes another after a change, or --again tries it again",
    "up": "it has come up",
}


def _boot_images(images: BootImages) -> Iterator[str]:
    for image in (images.newest, images.fallback):
        if image:
            state = _NEXT[image.state]
            if image.state == "new" and (image is images.fallback or image.generation == images.starts):
                state = "new"
            runs = ", runs" if image.generation == images.running else ""
            starts = ", starts" if image.generation == images.starts else ""
            kernel = f", kernel {image.kernel}" if image.kernel else ""
            yield f"{image.generation}{kernel}{runs}{starts}: {state}"
    if not images.fallback:
        yield "there is none to fall back to"


def _growth(growth: Growth) -> str:
    size, volume = growth.file_system_size, growth.volume_size
    end = "grown to the end" if growth.grown else "not grown to the end"
    if size is None or volume is None:
        return f"the root file system has {end}"
    when = growth.setting or "not told"
    return f"the root file system has {size >> 20} of {volume >> 20} MiB, {end}; when: {when}"


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"
