"""What ``secex build``, ``seal`` and ``adopt`` have in common: for whom an image is, and what they print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secex_firstboot.cli import table
from secex_firstboot.cli.verb import Exit, add_files, add_json, print_json

if TYPE_CHECKING:
    from secex_firstboot.basic.context import Context
    from secex_firstboot.contract.metadata import Metadata


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(
        parser,
        "hostkey",
        "host-key document of a machine that first boots run on, all of one kind (hybrid: experimental)",
    )
    add_proof(
        parser,
        "certificate of a root CA: it proves --hostkey, and guests trust it for their owner's documents",
    )
    parser.add_argument(
        "--config-key",
        type=Path,
        metavar="FILE",
        help="OpenPGP private key, without passphrase, that configs are encrypted to (default: a fresh one)",
    )
    add_files(
        parser,
        "config-signer",
        "OpenPGP public key: one of these must have signed a config (default: anybody can send one)",
    )
    parser.add_argument(
        "--config-bound", action="store_true", help="and the signature must say that it is for this image"
    )
    for name, what in (
        ("header", "NAME.header and NAME.header-key, which opens the image"),
        ("cck", "NAME.cck, the customer communication key, for attestation"),
    ):
        parser.add_argument(f"--keep-{name}", action="store_true", help=f"write {what}")
    add_json(parser)


def add_proof(parser: argparse.ArgumentParser, root: str) -> None:
    """What proves --hostkey; ``root``: what is said of --root."""
    add_files(parser, "root", root)
    add_files(parser, "cert", "certificate between a root CA and the documents")
    add_files(parser, "crl", "revocation list")
    parser.add_argument("--offline", action="store_true", help="ask no server for revocation lists")
    parser.add_argument("--no-verify", action="store_true", help="take --hostkey unproven, for tests")


def given(options: argparse.Namespace) -> dict[str, Any]:
    """As builder.recipe.Recipe has it, without what is not given."""
    trust = {
        "roots": absolute(options.root),
        "certificates": absolute(options.cert),
        "crls": absolute(options.crl),
        "verify": False if options.no_verify else None,
        "offline": options.offline or None,
    }
    key = options.config_key and options.config_key.absolute()
    found = {
        "host-keys": absolute(options.hostkey),
        "trust": without_nothing(trust),
        "config-key": key,
        "config-signers": absolute(options.config_signer),
        "config-bound": options.config_bound or None,
        "keep-header": options.keep_header or None,
        "keep-cck": options.keep_cck or None,
    }
    return without_nothing(found)


def absolute(paths: list[Path]) -> list[Path]:
    return [path.absolute() for path in paths]


def without_nothing(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, [], {})}


def context(options: argparse.Namespace) -> Context:
    from secex_firstboot.basic.console import Console
    from secex_firstboot.basic.context import Context

    def warn(line: str) -> None:
        print(f"WARNING: {table.printable(line)}", file=sys.stderr, flush=True)

    if options.json:
        return Context("", warn=warn)
    console = Console()
    return Context("", say=console.say, warn=warn, progress=console.progress)


def show(options: argparse.Namespace, made: Metadata) -> Exit:
    if options.json:
        print_json(made.model_dump(mode="json"))
    else:
        print(*_page(made), sep="\n")
    return Exit.DONE


def configs(signers: Sequence[str] | None, *, bound: bool) -> list[str]:
    """None: it is not told."""
    if signers is None:
        return []
    if not signers:
        return ["anybody can send one: no --config-signer"]
    return [f"signed{', for this image,' if bound else ''} by {each}" for each in signers]


def _page(made: Metadata) -> Iterator[str]:
    volumes = [
        f"{name}: {each.file_system}, {each.size >> 20} MiB, root hash {each.root_hash}"
        for name, each in made.volumes.items()
    ]
    hosts = [f"{each.document}: {each.kind}, {each.hash}" for each in made.host_keys]
    rows: tuple[tuple[str, list[str]], ...] = (
        ("kernel", [f"{made.boot_entry.release}, secex-firstboot {made.agent}"]),
        ("options", [made.boot_entry.options]),
        ("volumes", volumes),
        ("hosts", hosts or ["none: the image is not sealed"]),
        ("config key", [made.config_key or "none: the image is not sealed"]),
        ("configs", configs(made.config_signers if made.config_key else None, bound=made.config_bound)),
        ("files", [f"{name}: {digest}" for name, digest in made.outputs.items()]),
    )
    yield from table.page(rows)
