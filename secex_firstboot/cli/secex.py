"""``secex VERB``: the commands for people. Each verb is a file beside this one, imported when it is called.

To add one:

1. A row in VERBS: its name, and in a line what it does.
2. A file of that name (``-`` becomes ``_``) with EXAMPLES, arguments() and run(): see ``verb.Verb``. What is
   heavy it imports in run(), as --help and the completions import the file. Errors rise: the frame says them
   in one line, and they choose the exit code (``Exit.of``).
3. Its section in docs/secex.1, and ``make completions``.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Collection
from typing import cast

from secex_firstboot import __version__
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.cli import table
from secex_firstboot.cli.verb import Exit, Verb

VERBS = {
    "config": "make a config to begin with, for the machines that may start a guest",
    "check": "what first boot would say of a config, before it is encrypted",
    "encrypt": "check, sign and encrypt a config for an image",
    "build": "make an SE-ready image of a root file system",
    "seal": "make what is encrypted of an image that was built unsealed",
    "adopt": "make a published image one's own: other hosts, another config key",
    "inspect": "look at an image, the disk of a guest, or an sdboot",
    "host": "on a host, or of what was copied from one: can it run guests of Secure Execution?",
    "domain": "the libvirt domain or QEMU command of a guest: make it, or look at one",
    "explain": "what a guest's console log says: which step ended, why, what to do",
    "status": "in a guest: hosts, volumes, growth, versions, and how first boot went",
    "update": "in a guest: a new boot image, if its kernel, initramfs, options or keys have changed",
    "hosts": "in a guest: the machines that may start it: list, add, remove, check",
    "evidence": "in a guest: of what its boot images are made; on a workstation: is that an image",
    "recover": "with a recovery key: open a guest's disk, or make it start on other machines",
    "enable": "on a system that first boot did not make: start it as a Secure Execution guest from now on",
    "kargs": "in a guest: the kernel arguments of its boot entry: show, add, remove",
}

_EPILOG = """\
exit status:
   0  it is done
   1  it failed
   2  the command line makes no sense
   3  it is refused: the same again is refused again
  75  it failed, and may go well a moment later, as when a server does not answer

example:
  secex status --help
"""


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    # Options of other verbs than those named are not needed, and their files not imported.
    options = parser({name for name in VERBS if name in words}).parse_args(words)
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.WARNING, format="%(message)s")
    try:
        code = load(options.verb).run(options)
        sys.stdout.flush()
    except FirstbootError as error:
        if isinstance(error.__cause__, PermissionError) and os.geteuid():
            return _end(Exit.FAILED, f"{error.message}: run it as root")
        return _end(Exit.of(error), str(error))
    except ModuleNotFoundError as error:
        return _end(Exit.FAILED, f"the Python package {error.name} is not installed")
    except BrokenPipeError:  # the reader has seen enough; and Python is not to complain when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except OSError as error:
        return _end(Exit.FAILED, str(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # as shells count it
    return code


def _end(code: Exit, line: str) -> Exit:
    print(f"secex: {table.printable(line)}", file=sys.stderr, flush=True)
    return code


def load(name: str) -> Verb:
    module = importlib.import_module(f"secex_firstboot.cli.{name.replace('-', '_')}")
    return cast(Verb, module)


def parser(verbs: Collection[str] = VERBS.keys()) -> argparse.ArgumentParser:
    """Knows every verb, and the options of these ``verbs``."""
    top = argparse.ArgumentParser(
        prog="secex",
        description="Images and guests of IBM Secure Execution.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--debug", action="store_true", help="log every program that is run")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    found = top.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for name, summary in VERBS.items():
        verb = found.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in verbs:
            module = load(name)
            verb.epilog = f"examples:\n{module.EXAMPLES}"
            module.arguments(verb)
    return top


if __name__ == "__main__":
    sys.exit(main())
