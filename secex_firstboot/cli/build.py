"""``secex build``"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from secex_firstboot.cli import namespace, sealing
from secex_firstboot.cli.verb import Exit

EXAMPLES = """\
  secex build tree.tar --output my-linux --hostkey first-host.crt --root DigiCertRoot.crt \\
          --cert ibm-z-host-key-signing-gen2.crt --cert DigiCertCA.crt
      my-linux.qcow2, my-linux.pub.asc for who encrypts a config to it, and my-linux.json
  secex build --recipe my-linux.toml --output my-linux
      the same, with everything in a file
  secex build repo/ --ref debian/s390x --output my-linux --hostkey first-host.crt --no-verify
      of a commit in an ostree repository
  secex build tree/ --output my-linux --unsealed
      all but what is encrypted, which secex seal adds on another machine
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        type=Path,
        metavar="SOURCE",
        help="a root file system of s390x with its /boot: a directory, a tar, or a disk image;"
        " with --ref an ostree repository",
    )
    parser.add_argument("--ref", metavar="REF", help="the branch or commit of an ostree repository to deploy")
    parser.add_argument(
        "--stateroot", metavar="NAME", help="what shares a /var (default: the first part of the branch)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="NAME", help="NAME.qcow2, NAME.pub.asc, NAME.json"
    )
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="TOML: what is not on the command line")
    sealing.add_arguments(parser)
    parser.add_argument("--unsealed", action="store_true", help="without what is encrypted: see secex seal")
    parser.add_argument("--options", metavar="TEXT", help="kernel arguments, behind those of the boot entry")
    parser.add_argument(
        "--strict-options",
        action="store_true",
        help="refuse where an argument that an image needs is missing",
    )
    parser.add_argument("--file-system", choices=("ext4", "xfs"), help="of root (default: ext4)")
    for name, what in (
        ("se", "of partition se (default: three boot images)"),
        ("boot-free", "free on boot (default: two more kernels)"),
        ("root-free", "free on root, which grows at first boot (default: 64)"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="MIB", help=f"MiB {what}")


def run(options: argparse.Namespace) -> Exit:
    namespace.enter()

    from secex_firstboot.builder import build, recipe
    from secex_firstboot.builder.outputs import Outputs

    given = _given(options)
    wanted = recipe.read(options.recipe, given) if options.recipe else recipe.make("secex build", given)
    target = Outputs(options.output.absolute())
    made = build.build(sealing.context(options), wanted, target, sealed=not options.unsealed)
    return sealing.show(options, made)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    sizes = {"se": options.se, "boot-free": options.boot_free, "root-free": options.root_free}
    found = {
        "source": options.source and options.source.absolute(),
        "ref": options.ref,
        "stateroot": options.stateroot,
        "options": options.options,
        "strict-options": options.strict_options or None,
        "file-system": options.file_system,
        "sizes": sealing.without_nothing(sizes),
    }
    return sealing.given(options) | sealing.without_nothing(found)
