"""``secex inspect``"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from secex_firstboot.cli import sealing as sealing_verbs
from secex_firstboot.cli import table
from secex_firstboot.cli.verb import Exit, add_json, print_json

if TYPE_CHECKING:
    from secex_firstboot.builder.inspect import BootImage, Inspection, Part

EXAMPLES = """\
  secex inspect my-linux.qcow2 --verify
      everything that can be told from outside, and whether it is what my-linux.json says
  secex inspect sdboot --hostkey mine-1.crt --hostkey mine-2.crt
      which machines may start it
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a disk image (qcow2, raw), or an sdboot")
    parser.add_argument(
        "--metadata",
        type=Path,
        metavar="FILE",
        help="the build's NAME.json (default: beside the image, if there)",
    )
    parser.add_argument("--verify", action="store_true", help="read everything that the hash trees prove")
    parser.add_argument(
        "--hostkey",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="whose key to call by its name",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> Exit:
    from secex_firstboot.basic.files import exists
    from secex_firstboot.builder import inspect
    from secex_firstboot.contract.metadata import Metadata
    from secex_firstboot.hostkeys import certificates, document

    file = options.file.absolute()  # a name with a colon would be a protocol to qemu-img
    beside = file.parent / f"{file.stem}.json"
    path = options.metadata or (beside if exists(beside) else None)
    found = inspect.inspect(
        sealing_verbs.context(options),
        file,
        metadata=Metadata.load(path) if path else None,
        documents=[document.parse(each.name, certificates.read_file(each)) for each in options.hostkey],
        verify=options.verify,
    )
    if options.json:
        print_json(asdict(found))
    else:
        print(*_page(found), sep="\n")
    return Exit.FAILED if found.damage else Exit.DONE


def _page(found: Inspection) -> Iterator[str]:
    rows: list[tuple[str, list[str]]] = [
        ("what", [f"{found.kind}, {found.size >> 20} MiB"]),
        ("partitions", [_part(each) for each in found.partitions]),
        *(("starts" if each.default else "", _boot_image(each)) for each in found.boot_images),
        ("first boot", [found.first_boot] if found.first_boot else []),
        ("configs", sealing_verbs.configs(found.config_signers, bound=found.config_bound)),
        ("damage", found.damage),
    ]
    yield from table.page(rows)


def _part(each: Part) -> str:
    proof = f", {each.verity}" if each.verity else ""
    return f"{each.number} {each.name:<9}{each.size >> 20:>8} MiB  {each.content}{proof}"


def _boot_image(each: BootImage) -> list[str]:
    number = "" if each.number is None else f"{each.number}: "
    dump = ", DUMPING ALLOWED" if each.dumping_allowed else ""
    hosts = [f"  for {key.name or 'an unknown host'}: {key.kind}, {key.hash}" for key in each.host_keys]
    return [
        f"{number}boot image of {each.size >> 20} MiB, {each.encrypted >> 20} MiB encrypted,"
        f" header {each.header_version} of {each.header_size} bytes{dump}",
        *hosts,
    ]
