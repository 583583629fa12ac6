"""``secex config``"""

from __future__ import annotations

import argparse
from pathlib import Path

from secex_firstboot.cli.verb import Exit, add_files

EXAMPLES = """\
  secex config --hostkey HKD-3932-0123456.crt --cert ibm-z-host-key-signing-gen2.crt --cert DigiCertCA.crt \\
          --ssh-key ~/.ssh/id_ed25519.pub --output config.ign
      a config that secex check takes, and Ignition
  secex config --butane --hostkey a.crt --hostkey b.crt --ssh-key id_ed25519.pub --hostname a > config.bu
      the same for Butane, to be edited
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser, "hostkey", "host-key document of a machine that may start the guest", required=True)
    add_files(parser, "cert", "certificate between a root of the image and the documents")
    add_files(parser, "crl", "revocation list, for a first boot that can fetch none")
    add_files(parser, "ssh-key", "SSH public key of who may log in", required=True)
    parser.add_argument("--user", default="core", metavar="NAME", help="who logs in (default: %(default)s)")
    parser.add_argument("--hostname", metavar="NAME", help="the guest's name")
    parser.add_argument("--butane", action="store_true", help="write YAML for Butane, not Ignition's JSON")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a new file, in place of standard output")


def run(options: argparse.Namespace) -> Exit:
    from secex_firstboot.basic.errors import Refusal
    from secex_firstboot.basic.files import exists, write_private
    from secex_firstboot.owner import draft

    made = draft.make(
        host_keys=options.hostkey,
        proof=options.cert,
        revocation_lists=options.crl,
        ssh_keys=options.ssh_key,
        user=options.user,
        host_name=options.hostname,
    )
    text = made.butane() if options.butane else made.ignition()
    if not options.output:
        print(text, end="")
    elif exists(options.output, follow_symlinks=False):
        raise Refusal("SX-OWNER-04", f"{options.output} is there already", "name a new file, or remove it")
    else:
        write_private(options.output, text.encode())
    return Exit.DONE
