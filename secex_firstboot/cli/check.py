"""``secex check``, which ``secex-firstboot --dry-run --config`` is, too."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secex_firstboot.cli import table
from secex_firstboot.cli.verb import Exit, add_json, print_json
from secex_firstboot.contract import paths
from secex_firstboot.contract.parameters import HOSTKEY_VERIFY

if TYPE_CHECKING:
    from secex_firstboot.contract.metadata import Metadata
    from secex_firstboot.owner.check import Verdict

SCHEMA = 1  # of docs/check.schema.json
_UNSEALED = "none: the image is not sealed"
EXAMPLES = """\
  secex check config.ign --image my-linux.qcow2 --certificates image-certs/
      what first boot would say; "unknown" is neither ready nor refused: what could not be told here follows
  secex check config.bu --metadata my-linux.json --offline
      of Butane's YAML, before the image is there, and without asking any server
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    add_json(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        type=Path,
        metavar="CONFIG",
        help="an Ignition config, not encrypted; or Butane's YAML, where butane is installed",
    )
    parser.add_argument("--image", type=Path, metavar="IMAGE", help="the SE-ready image, raw or qcow2")
    parser.add_argument(
        "--metadata",
        type=Path,
        metavar="FILE",
        help="the build's NAME.json (default: beside the image, if there)",
    )
    parser.add_argument(
        "--certificates",
        type=Path,
        metavar="DIRECTORY",
        help="the root certificates that the image trusts, and others "
        f"(default: {paths.CERTIFICATES}, if this machine has it)",
    )
    parser.add_argument(
        "--hostkey-verify",
        choices=HOSTKEY_VERIFY.values,
        help=f"as {HOSTKEY_VERIFY.name}= of the image (default: as its metadata say, or strict)",
    )
    servers = parser.add_mutually_exclusive_group()
    servers.add_argument(
        "--fetch", action="store_true", help="fetch the configs that it refers to, and check them, too"
    )
    servers.add_argument("--offline", action="store_true", help="fetch nothing; name what only a server has")


def run(options: argparse.Namespace) -> Exit:
    metadata = metadata_of(options)
    return show(verdict(options, metadata), metadata, as_json=options.json)


def metadata_of(options: argparse.Namespace) -> Metadata | None:
    from secex_firstboot.basic.files import exists
    from secex_firstboot.contract.metadata import Metadata

    beside = options.image and options.image.with_suffix(".json")
    path = options.metadata or (beside if beside and exists(beside) else None)
    return Metadata.load(path) if path else None


def verdict(options: argparse.Namespace, metadata: Metadata | None) -> Verdict:
    from secex_firstboot.agent.steps import STEPS
    from secex_firstboot.basic.context import Context
    from secex_firstboot.owner.check import Preflight

    look = Preflight(
        options.config,
        options.image,
        metadata,
        options.certificates,
        options.hostkey_verify,
        Context("", say=to_stderr, warn=to_stderr),
        offline=options.offline,
        follow=options.fetch,
    )
    return look.run([step.described for step in STEPS])


def to_stderr(line: str) -> None:
    print(*table.row("", [line], table.COLUMNS), sep="\n", file=sys.stderr, flush=True)


def show(found: Verdict, metadata: Metadata | None, *, as_json: bool) -> Exit:
    if as_json:
        print_json(_as_json(found, metadata))
    else:
        print("started from: a workstation")
        print(*table.steps(found.steps, table.COLUMNS), *_page(found, metadata), sep="\n")
    return Exit.REFUSED if found.refused else Exit.DONE


def _as_json(found: Verdict, metadata: Metadata | None) -> dict[str, Any]:
    """docs/check.schema.json"""
    from secex_firstboot.contract import dry_run

    image = metadata and metadata.model_dump(
        mode="json", include={"agent", "config_key", "config_signers", "config_bound", "host_keys"}
    )
    return {
        "schema": SCHEMA,
        **dry_run.as_json("a workstation", found.steps),
        "image": image,
        "expires": [asdict(each) for each in found.expires],
    }


def _page(found: Verdict, metadata: Metadata | None) -> Iterator[str]:
    rows = [("expires", [f"{each.until[:10]}  {each.kind} {each.name}" for each in found.expires])]
    if metadata:
        hosts = [f"{each.document}: {each.kind} {each.hash}" for each in metadata.host_keys]
        rows += [
            ("first boot", ["on a host of these:", *hosts] if hosts else [_UNSEALED]),
            ("config key", [metadata.config_key or _UNSEALED]),
            ("signers", list(metadata.config_signers) or ["none: a config need not be signed"]),
        ]
    yield from table.page(rows)
