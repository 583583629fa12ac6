"""Who may import whom: CONTRIBUTING.md says why."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import REPOSITORY

PACKAGE = REPOSITORY / "secex_firstboot"
# Each layer, and those below it that it stands on.
BELOW = {
    "basic": set(),
    "contract": {"basic"},
    "storage": {"basic", "contract"},
    "ignition": {"basic", "contract"},
    "hostkeys": {"basic", "contract", "storage", "ignition"},
    "sdboot": {"basic", "contract", "storage", "ignition", "hostkeys"},
    "roots": {"basic", "contract", "storage", "ignition", "hostkeys", "sdboot"},
}
ON_ALL = {"agent", "running", "owner", "builder"}  # and never on each other
LAYERS = BELOW | {name: set(BELOW) for name in ON_ALL} | {"cli": set(BELOW) | ON_ALL}
TOP = {"__version__"}  # of the package itself


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def ours(path: Path) -> Iterator[tuple[int, list[str]]]:
    for line, name in imports(path):
        package, *rest = name.split(".")
        if package == PACKAGE.name and rest and rest[0] not in TOP:
            yield line, rest


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_layer_imports_what_lies_below_it(path: Path) -> None:
    layer = path.relative_to(PACKAGE).parts[0]
    allowed = LAYERS[layer] | {layer}
    wrong = [f"line {line}: {'.'.join(name)}" for line, name in ours(path) if name[0] not in allowed]
    assert not wrong


STEPS = PACKAGE / "agent/steps"


@pytest.mark.parametrize("path", sorted(STEPS.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_step_imports_no_step(path: Path) -> None:
    wrong = [f"line {line}: {'.'.join(name)}" for line, name in ours(path) if name[:2] == ["agent", "steps"]]
    assert not wrong


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_never_imports_the_harness(path: Path) -> None:
    assert not [name for _, name in imports(path) if name.split(".")[0] in ("harness", "support", "tests")]


def test_nothing_lies_outside_of_the_layers() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} <= set(
        LAYERS
    )
