"""Install the Python package as pip would, without pip: modules, metadata, commands. For make install.

``python3 packaging/install.py MODULES PROGRAMS INSTEAD``: where the target's Python looks for packages, where
its commands are, and where those are that stand before IBM's of the same names; all below DESTDIR.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[1]
INSTEAD = ("pvimg", "genprotimg")
COMMAND = """\
#!/usr/bin/python3 -I
from {module} import {function}
raise SystemExit({function}())
"""


def main(modules: Path, programs: Path, instead: Path) -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    package = project["name"].replace("-", "_")
    for path in sorted(path for form in ("*.py", "*.json") for path in (SOURCE / package).rglob(form)):
        _write(modules / path.relative_to(SOURCE), path.read_text(encoding="utf-8"))
    information = modules / f"{package}-{project['version']}.dist-info"
    _write(information / "METADATA", metadata(project))
    _write(information / "INSTALLER", "make\n")
    for name, entry in project["scripts"].items():
        _write_command(programs / name, *entry.split(":"))
    for name in INSTEAD:
        _write_command(instead / name, f"{package}.cli.instead", "main")


def _write_command(path: Path, module: str, function: str) -> None:
    _write(path, COMMAND.format(module=module, function=function))
    path.chmod(0o755)


def metadata(project: dict[str, Any]) -> str:
    """https://packaging.python.org/en/latest/specifications/core-metadata/"""
    fields = [
        ("Metadata-Version", "2.1"),
        ("Name", project["name"]),
        ("Version", project["version"]),
        ("Summary", project["description"]),
        ("License", "Apache-2.0"),
        ("Requires-Python", project["requires-python"]),
        *(("Requires-Dist", each) for each in project["dependencies"]),
    ]
    guest = project["optional-dependencies"]["guest"]
    fields += [
        ("Provides-Extra", "guest"),
        *(("Requires-Dist", f'{each}; extra == "guest"') for each in guest),
    ]
    return "".join(f"{name}: {value}\n" for name, value in fields)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
