"""What the dracut module puts into the initramfs, traced with the interpreter of these tests."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY

# As python3 -I SCRIPT, with the agent of this tree, wherever the interpreter has one installed.
RUN = "import runpy, sys; sys.path[:0] = sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"
GUESTS = {"systemd": ("daemon", "journal")}
"""Packages, and their modules, that every guest has, and a workstation without a compiler does not."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Where the agent is, and what this interpreter may not have: empty modules tell as much here."""
    directory = tmp_path_factory.mktemp("guest")
    for package, modules in GUESTS.items():
        if not importlib.metadata.packages_distributions().get(package):
            (directory / package).mkdir()
            for name in ("__init__", *modules):
                (directory / package / f"{name}.py").touch()
    return [REPOSITORY, directory]


def trace(path: list[Path], run: str = RUN) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-I", "-c", run, REPOSITORY / "dracut/trace-imports.py", *path]
    return subprocess.run(argv, capture_output=True, text=True)


@pytest.fixture(scope="module")
def traced(path: list[Path]) -> list[Path]:
    done = trace(path)
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


def test_a_guest_without_what_only_a_workstation_does_without_gets_no_initramfs() -> None:
    done = trace([REPOSITORY], run=f"import sys; sys.modules['systemd'] = None; {RUN}")
    assert done.returncode
    assert "ModuleNotFoundError: No module named 'systemd.daemon'" in done.stderr


def test_every_module_of_the_agent_is_listed(traced):
    package = REPOSITORY / "secex_firstboot"
    modules = {path for path in package.rglob("*.py") if path.name != "__main__.py"}
    assert modules <= set(traced)


@pytest.mark.parametrize(
    "module",
    [
        "requests/adapters.py",
        "pydantic/main.py",
        "pyudev/monitor.py",
        "gnupg.py",
        "systemd/journal.py",
        "cryptography/x509/__init__.py",
        "encodings/idna.py",
    ],
)
def test_what_the_agent_imports_is_listed_even_if_only_when_needed(traced, module):
    assert any(str(path).endswith(f"/{module}") for path in traced)


@pytest.mark.parametrize("library", ["libcryptsetup.so.12", "libudev.so.1", "libdevmapper.so.1", "_rust"])
def test_libraries_that_are_loaded_when_first_used_are_listed(traced, library):
    assert any(path.name.startswith(library) for path in traced)


def test_the_certificate_authorities_that_requests_trusts_are_listed(traced):
    assert any(path.suffix in (".pem", ".crt") for path in traced)


def test_everything_listed_is_a_file_and_the_tracer_is_not(traced):
    assert all(path.is_absolute() and path.is_file() for path in traced)
    assert len(set(traced)) == len(traced)
    assert not any(path.name == "trace-imports.py" for path in traced)


def test_the_agent_runs_with_nothing_but_the_listed_modules(traced, path):
    """Whatever the agent still imports while it answers --dry-run must be in the list."""
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from secex_firstboot.cli import firstboot; firstboot.main(['--dry-run', '--json'])\n"
        "files = {getattr(m, '__file__', None) for m in list(sys.modules.values())} - {None}\n"
        "print('\\n'.join(files), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script, *path], capture_output=True, text=True)
    loaded = {Path(line) for line in done.stderr.splitlines()}
    assert loaded and loaded <= set(traced)
