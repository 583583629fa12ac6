"""Print every file that running the agent loads, one a line: Python's own, packages, shared libraries.

The agent's modules are imported for real, in the interpreter that will run them, and the libraries that they
load when first used are loaded; what is in sys.modules and in the process's memory map afterwards is what the
initramfs needs. Run with ``python3 -I``.
"""

import importlib
import pkgutil
import sys
from pathlib import Path

import pyudev
import requests.certs

import secex_firstboot
from secex_firstboot.storage import cryptsetup

# Imported by name at run time only, behind the back of an import trace of the modules above; and what the
# agent does without on a workstation, and not in a guest.
LATE = [
    "ctypes.util",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_8",
    "systemd.daemon",
    "systemd.journal",
    "traceback",
]


def main() -> None:
    for module in pkgutil.walk_packages(secex_firstboot.__path__, "secex_firstboot."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    pyudev.Context()  # loads libudev
    cryptsetup._library()
    modules = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    files = {*filter(None, modules), *_mapped_libraries(), requests.certs.where()}
    files.discard(__file__)
    print("\n".join(sorted(file for file in files if Path(file).exists())))


def _mapped_libraries() -> set[str]:
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    mapped = (line.split(maxsplit=5)[-1] for line in lines)
    return {path for path in mapped if ".so" in path and path.startswith("/")}


if __name__ == "__main__":
    main()
