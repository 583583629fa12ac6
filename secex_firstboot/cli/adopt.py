"""``secex adopt``"""

from __future__ import annotations

import argparse
from pathlib import Path

from secex_firstboot.cli import sealing
from secex_firstboot.cli.verb import Exit

EXAMPLES = """\
  secex adopt their-linux.qcow2 --output my-linux --hostkey mine-1.crt --hostkey mine-2.crt \\
          --root DigiCertRoot.crt --cert ibm-z-host-key-signing-gen2.crt --cert DigiCertCA.crt
      the published image, as their-linux.json proves it, for your machines and with a config key of your own
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_image(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="NAME", help="NAME.qcow2, NAME.pub.asc, NAME.json"
    )
    sealing.add_arguments(parser)


def add_image(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a disk image that secex build has made")
    parser.add_argument(
        "--metadata", type=Path, metavar="FILE", help="the build's NAME.json (default: beside the image)"
    )


def run(options: argparse.Namespace) -> Exit:
    from secex_firstboot.builder import adopt, recipe
    from secex_firstboot.builder.outputs import Outputs
    from secex_firstboot.contract.metadata import Metadata

    image = options.image.absolute()
    made = adopt.adopt(
        sealing.context(options),
        recipe.make("the command line", sealing.given(options) | {"source": image}),
        Metadata.load(options.metadata or image.with_suffix(".json")),
        Outputs((options.output or image.with_suffix("")).absolute()),
    )
    return sealing.show(options, made)
