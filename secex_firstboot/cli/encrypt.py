"""``secex encrypt``"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.cli import check, table
from secex_firstboot.cli.verb import Exit

if TYPE_CHECKING:
    from secex_firstboot.contract.metadata import Metadata
    from secex_firstboot.owner.encrypt import Recipient, Signing

EXAMPLES = """\
  secex encrypt config.ign --image my-linux.qcow2 --certificates image-certs/
      config.asc, for first boots of that image alone: to my-linux.pub.asc, the key that my-linux.json names
  secex encrypt config.bu --metadata my-linux.json --output a.asc --sign-with ada@example.com --expires 30d
      signed by a key that gpg has, or a smart card, for an image that asks for that
"""
_FROM_NOW = re.compile(r"([1-9][0-9]{0,4})([dwmy])", re.ASCII)
_DAYS = {"d": 1, "w": 7, "m": 30, "y": 365}  # gpg's, g10/keygen.c, parse_expire_string()
_MOST_YEARS = 50  # gpg 2.2 counts in 32 bits, and begins anew behind them


def arguments(parser: argparse.ArgumentParser) -> None:
    check.add_arguments(parser)
    parser.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="the image's public key (default: NAME.pub.asc beside image or metadata)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the config disk (default: CONFIG's name with .asc)"
    )
    parser.add_argument("--sign-with", metavar="KEY", help="as gpg's --local-user: a fingerprint, an address")
    parser.add_argument(
        "--expires",
        type=_expiry,
        metavar="WHEN",
        help="when the signature does: in 30d, 8w, 6m or 1y, or at the end of a day (UTC) like 2027-12-31",
    )
    parser.add_argument(
        "--even-if-refused", action="store_true", help="also a config that first boot would refuse"
    )


def _expiry(text: str) -> str:
    if found := _FROM_NOW.fullmatch(text):
        days = int(found[1]) * _DAYS[found[2]]
    else:
        try:
            day = date.fromisoformat(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is neither like 30d nor like 2027-12-31") from None
        text, days = day.isoformat(), (day - datetime.now(UTC).date()).days
    if not 0 <= days <= _MOST_YEARS * 365:
        raise argparse.ArgumentTypeError(f"{text} is over, or more than {_MOST_YEARS} years away")
    return text


def run(options: argparse.Namespace) -> Exit:
    from secex_firstboot.basic.files import write_private
    from secex_firstboot.owner import encrypt

    output = options.output or options.config.with_suffix(".asc")
    if output.absolute() == options.config.absolute():
        raise Refusal("SX-OWNER-09", f"{output} is the config itself", "--output names another file")
    metadata = check.metadata_of(options)
    key = encrypt.recipient(_key_file(options), metadata)
    signer = _signing(options, metadata)
    text = _checked(options, metadata)
    message = encrypt.encrypt(text, key, signer)
    write_private(output, message)
    print(*table.page(_rows(output, len(message), key, signer)), sep="\n")
    return Exit.DONE


def _key_file(options: argparse.Namespace) -> Path:
    if options.key:
        return Path(options.key)
    if beside := options.metadata or options.image:
        return Path(beside).with_suffix(".pub.asc")
    raise Refusal(
        "SX-OWNER-10", "nothing says which image the config is for", "--image, --metadata or --key does"
    )


def _signing(options: argparse.Namespace, metadata: Metadata | None) -> Signing | None:
    from secex_firstboot.owner import encrypt

    if options.sign_with:
        if metadata and not metadata.config_signers:
            check.to_stderr("the image does not look at signatures: it was built without signers")
        return encrypt.signing(options.sign_with, options.expires, metadata)
    if options.expires:
        raise Refusal("SX-OWNER-11", "only a signature expires", "--sign-with names a key")
    if metadata and metadata.config_signers:
        raise Refusal(
            "SX-OWNER-12",
            "the image takes no config that is not signed",
            f"--sign-with one of {', '.join(metadata.config_signers)}",
        )
    return None


def _checked(options: argparse.Namespace, metadata: Metadata | None) -> bytes:
    """The config, as Ignition gets it, if first boot would take it."""
    found = check.verdict(options, metadata)
    open_questions = [each for each in found.steps if each in found.refused or each.untold]
    if open_questions:
        print(*table.steps(open_questions, table.COLUMNS), sep="\n", file=sys.stderr)
    if not found.given or (found.refused and not options.even_if_refused):
        raise Refusal(
            "SX-OWNER-13",
            f"first boot would refuse {options.config}",
            "correct what is said above; --even-if-refused encrypts an Ignition config all the same",
        )
    return found.given.text


def _rows(output: Path, size: int, key: Recipient, signer: Signing | None) -> Iterator[tuple[str, list[str]]]:
    yield "config disk", [f"{output}, {size} bytes"]
    yield "config key", [key.fingerprint]
    if signer:
        expires = f", expires: {signer.expires}" if signer.expires else ""
        yield "signed by", [f"{signer.fingerprint}{expires}"]
