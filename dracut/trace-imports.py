"""Print every file that the agent needs in the initramfs, one a line: Python's own, packages, libraries.

The agent's modules, and no others of the package, are imported for real, by the interpreter that will run
them. Then they and their libraries do what makes them import more, errors above all. What is in sys.modules
and in the process's memory map afterwards is what the initramfs needs. Run with ``python3 -I``.
"""

import importlib
import io
import pkgutil
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

# Packages that others import where they are installed, for what the agent never asks of them.
LEFT_OUT = {
    "bcrypt": "cryptography's, for OpenSSH's private keys",
    "chardet": "requests', to guess the encoding of a text; the agent takes bytes",
    "charset_normalizer": "the same",
}
# Imported by name, and what an interpreter has in C by the way is another time a file.
CODECS = {
    "ascii": "what is not decoded as UTF-8",
    "idna": "socket, for every name of a host",
    "latin_1": "gpg's status lines, headers of HTTP",
    "punycode": "names of hosts that are not ASCII",
    "utf_8": "everything else",
    "utf_8_sig": "json, as it begins",
    "utf_16": "json, as it begins",
    "utf_16_be": "json, as it begins",
    "utf_16_le": "names of GPT's partitions",
    "utf_32": "json, as it begins",
    "utf_32_be": "json, as it begins",
    "utf_32_le": "json, as it begins",
}
# The agent does without on a workstation, and not in a guest; the interpreter's, when an error ends it.
LATE = ["systemd.daemon", "systemd.journal", "traceback"]


def main() -> None:
    leave_out()
    agent = importlib.import_module("secex_firstboot.agent")
    importlib.import_module("secex_firstboot.cli.firstboot")
    for module in pkgutil.walk_packages(agent.__path__, f"{agent.__name__}."):
        importlib.import_module(module.name)
    for name in [*LATE, *(f"encodings.{codec}" for codec in CODECS)]:
        importlib.import_module(name)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        run()
        load_libraries()
        fail_to_read()
        fail_to_fetch()
    from requests import certs

    modules = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    files = {*filter(None, modules), *_mapped_libraries(), certs.where()}
    files.discard(__file__)
    print("\n".join(sorted(file for file in files if Path(file).exists())))


def leave_out() -> None:
    sys.modules.update(dict.fromkeys(LEFT_OUT))  # an import of None fails
    importlib.import_module("secex_firstboot.hostkeys.download")  # it silences what requests says of that
    try:
        importlib.import_module("requests")
    except ImportError:  # before 2.32 it insists on one that guesses
        del sys.modules["chardet"], sys.modules["charset_normalizer"]


def run() -> None:
    from secex_firstboot.cli import firstboot

    with suppress(Exception):  # of what this machine is
        firstboot.main(["--dry-run"])
    with suppress(SystemExit):
        firstboot.main(["--no-such-option"])


def load_libraries() -> None:
    import pyudev

    from secex_firstboot.basic.errors import Refusal
    from secex_firstboot.hostkeys import ml_kem
    from secex_firstboot.storage import cryptsetup

    pyudev.Context()
    cryptsetup._library()
    with suppress(Refusal):  # of a machine that cannot
        ml_kem.encapsulate(bytes(ml_kem.KEY_SIZE))


def fail_to_read() -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    from secex_firstboot.basic.errors import Refusal
    from secex_firstboot.ignition import config

    ec.ECDSA(hashes.SHA256())  # what a certificate says of its signature
    try:
        config.parse(b'{"ignition": []}')
    except Refusal as refusal:
        traceback.print_exception(refusal)


def fail_to_fetch() -> None:
    """No packet leaves this machine: nothing listens there, on the server's port or the proxy's."""
    from secex_firstboot.basic.errors import Refusal
    from secex_firstboot.hostkeys.download import Client, Network, Request
    from secex_firstboot.ignition.config import Proxy, Timeouts

    nobody = "http://127.0.0.1:1"
    for url in (nobody, "https://127.0.0.1:1", "http://bücher.example", "https://bücher.example"):
        proxy = Proxy(http_proxy=nobody, no_proxy=["127.0.0.1"])
        client = Client(Network(attempts=1), Timeouts(), proxy, True, lambda line: None)
        with suppress(Refusal):
            client.get(Request("nothing", url, {}, 1))


def _mapped_libraries() -> set[str]:
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    mapped = (line.split(maxsplit=5)[-1] for line in lines)
    return {path for path in mapped if ".so" in path and path.startswith("/")}


if __name__ == "__main__":
    main()
