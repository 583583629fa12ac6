"""Print every file that running the agent loads, one a line: Python's own, packages, shared libraries.

The agent's modules are imported for real, in the interpreter that will run them; what is in sys.modules and
in the process's memory map afterwards is what the initramfs needs. Run with ``python3 -I``.
"""

import importlib
import os
import pkgutil
import sys

import secex_firstboot

# Imported by name at run time only, behind the back of an import trace of the modules above.
LATE = [
    "ctypes.util",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_8",
    "requests",
    "traceback",
]


def main() -> None:
    for module in pkgutil.walk_packages(secex_firstboot.__path__, "secex_firstboot."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    files = {module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            path = line.split(maxsplit=5)[-1].strip()
            if ".so" in path and path.startswith("/"):
                files.add(path)
    own = os.path.abspath(__file__)
    print("\n".join(sorted(file for file in files if file != own and os.path.exists(file))))


if __name__ == "__main__":
    main()
