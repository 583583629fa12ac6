"""``secex seal``"""

from __future__ import annotations

import argparse
from pathlib import Path

from secex_firstboot.cli import adopt, sealing
from secex_firstboot.cli.verb import Exit

EXAMPLES = """\
  secex seal my-linux.qcow2 --hostkey first-host.crt --root DigiCertRoot.crt \\
          --cert ibm-z-host-key-signing-gen2.crt --cert DigiCertCA.crt
      what secex build --unsealed has left out, where alone the first host's document is known
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    adopt.add_image(parser)
    parser.add_argument(
        "--output", type=Path, metavar="NAME", help="NAME.qcow2 and so on (default: in place of the image)"
    )
    sealing.add_arguments(parser)


def run(options: argparse.Namespace) -> Exit:
    return adopt.run(options)
