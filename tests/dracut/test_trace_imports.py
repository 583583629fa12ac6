"""What of Python the dracut module puts into the initramfs, with the interpreter of these tests.

That whatever the unit tests make the agent import is there, too, each of them looks at: tests/conftest.py.
"""

from __future__ import annotations

import builtins
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import REPOSITORY, initramfs, needs

PACKAGE = REPOSITORY / "secex_firstboot"
FOR_OTHERS = ("owner", "running", "builder", "cli.secex", "cli.status", "cli.verb", "storage.disk_image")
"""Parts of the package that are for workstations, provisioned systems and whoever builds images."""


@pytest.fixture(scope="module")
def traced() -> list[Path]:
    done = initramfs.trace(initramfs.path())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [Path(line) for line in done.stdout.splitlines()]


def test_a_guest_without_what_only_a_workstation_does_without_gets_no_initramfs() -> None:
    done = initramfs.trace([REPOSITORY], run=f"import sys; sys.modules['systemd'] = None; {initramfs.RUN}")
    assert done.returncode
    assert "ModuleNotFoundError: No module named 'systemd.daemon'" in done.stderr


def test_every_module_of_the_agent_is_listed(traced: list[Path]) -> None:
    assert {*(PACKAGE / "agent").rglob("*.py"), PACKAGE / "cli/firstboot.py"} <= set(traced)


@pytest.mark.parametrize("part", FOR_OTHERS)
def test_of_the_package_there_is_nothing_for_other_places(traced: list[Path], part: str) -> None:
    where = PACKAGE.joinpath(*part.split("."))
    assert not [path for path in traced if path.with_suffix("") == where or path.is_relative_to(where)]


@pytest.mark.parametrize(
    "package", [*initramfs.left_out(), "pytest", "pip", "setuptools", "hypothesis", "harness"]
)
def test_what_the_agent_does_without_is_not_there(traced: list[Path], package: str) -> None:
    assert not [path for path in traced if package in path.parts]


@pytest.mark.parametrize(
    "module", ["unittest", "pydoc", "doctest", "asyncio", "tkinter", "http/server", "pydantic/v1"]
)
def test_nor_what_comes_only_with_other_uses_of_a_library(traced: list[Path], module: str) -> None:
    assert not [path for path in traced if f"/{module}/" in f"{path.with_suffix('')}/"]


def test_an_older_requests_gets_what_it_insists_on(tmp_path: Path) -> None:
    """Before 2.32, it is one of the two."""
    (tmp_path / "chardet.py").touch()
    run = (
        "import builtins, sys; real = builtins.__import__\n"
        "def insisting(name, *rest, **options):\n"
        "    if name == 'urllib3': real('chardet')\n"
        "    return real(name, *rest, **options)\n"
        f"builtins.__import__ = insisting; {initramfs.RUN}"
    )
    done = initramfs.trace([tmp_path, *initramfs.path()], run)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "chardet.py") in done.stdout.splitlines()


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
        "encodings/utf_16_le.py",
    ],
)
def test_what_the_agent_imports_is_listed_even_if_only_when_needed(traced: list[Path], module: str) -> None:
    assert any(str(path).endswith(f"/{module}") for path in traced)


@pytest.mark.parametrize(
    "library",
    [
        *(
            pytest.param(f"{name}.so.", marks=needs.libcryptsetup)
            for name in ("libcryptsetup", "libdevmapper")
        ),
        *("libudev.so.1", "_rust"),
    ],
)
def test_libraries_that_are_loaded_when_first_used_are_listed(traced: list[Path], library: str) -> None:
    assert any(path.name.startswith(library) for path in traced)


def test_the_certificate_authorities_that_requests_trusts_are_listed(traced: list[Path]) -> None:
    assert any(path.suffix in (".pem", ".crt") for path in traced)


def test_everything_listed_is_a_file_and_the_tracer_is_not(traced: list[Path]) -> None:
    assert all(path.is_absolute() and path.is_file() for path in traced)
    assert len(set(traced)) == len(traced)
    assert initramfs.TRACER not in traced


@pytest.mark.parametrize(
    ("file", "source", "noticed"),
    [
        ("hostkeys/fetch.py", "import pytest", True),
        ("hostkeys/fetch.py", "from concurrent.futures import process", True),
        ("hostkeys/fetch.py", "import json, requests.sessions", False),
        ("hostkeys/fetch.py", "import charset_normalizer", False),
        ("owner/check/image.py", "import pytest", False),
        ("cli/firstboot.py", "import pytest", True),
        ("cli/firstboot.py", "import secex_firstboot.running.grow", False),
    ],
)
def test_an_import_of_what_is_not_listed_is_noticed_also_if_it_is_loaded_already(
    monkeypatch: pytest.MonkeyPatch, file: str, source: str, noticed: bool
) -> None:
    watch = initramfs.Watch()
    code = compile(source, PACKAGE / file, "exec")
    monkeypatch.setattr(builtins, "__import__", watch.watched(builtins.__import__))
    exec(code, {})  # noqa: S102
    assert bool(watch.strays()) == noticed


# --- as dracut makes it ------------------------------------------------------------------------------------

DRACUT = """\
inst_multiple() { cp --parents --dereference "$@" "$initdir"; }
dfatal() { echo "$*" >&2; }
. "$moddir/module-setup.sh"
install_python
"""


@pytest.fixture(scope="module")
def initdir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root with what install_python() of the dracut module installs."""
    root = tmp_path_factory.mktemp("initramfs")
    programs = tmp_path_factory.mktemp("bin")
    trace = f'{sys.executable} -I -c "{initramfs.RUN}" "$2" {" ".join(map(str, initramfs.path()))}'
    (programs / "python3").write_text(
        f'#!/bin/sh\ncase $2 in */trace-imports.py) exec {trace} ;; esac\nexec {sys.executable} "$@"\n'
    )
    (programs / "python3").chmod(0o755)
    subprocess.run(
        ["bash", "-euc", DRACUT],
        env={
            "PATH": f"{programs}:{os.environ['PATH']}",
            "initdir": str(root),
            "moddir": str(REPOSITORY / "dracut"),
        },
        check=True,
    )
    yield root


def run(initdir: Path, source: str) -> subprocess.CompletedProcess[str]:
    """With the modules of the initramfs alone, but for the few that Python itself starts with."""
    library = str(Path(os.__file__).parent)
    where = [*map(str, initramfs.path())]
    where += [each for each in sys.path if each.startswith(library) or each.endswith("-packages")]
    start = f"import sys; sys.path[:] = {[f'{initdir}{each}' for each in where]}\n"
    return subprocess.run([sys.executable, "-I", "-S", "-c", start + source], capture_output=True, text=True)


def test_python_has_byte_code_alone(initdir: Path, traced: list[Path]) -> None:
    sources = [path for path in traced if path.suffix == ".py"]
    assert not list(initdir.rglob("*.py"))
    assert all(Path(f"{initdir}{path}c").is_file() for path in sources)
    assert len(list(initdir.rglob("*.pyc"))) == len(sources)


def test_the_byte_code_is_not_compared_with_a_source(initdir: Path) -> None:
    """PEP 552: flags 1 is by hash, unchecked. The same files make the same initramfs, at any time."""
    assert {path.read_bytes()[4:8] for path in initdir.rglob("*.pyc")} == {b"\1\0\0\0"}


def test_the_agent_runs_with_nothing_but_that(initdir: Path) -> None:
    done = run(initdir, "from secex_firstboot.cli import firstboot; firstboot.main(['--dry-run', '--json'])")
    assert '"step": "seal"' in done.stdout, done.stderr
    assert done.stderr == ""


def test_a_part_for_other_places_is_not_found(initdir: Path) -> None:
    for part in FOR_OTHERS:
        assert (
            f"No module named 'secex_firstboot.{part}'"
            in run(initdir, f"import secex_firstboot.{part}").stderr
        )


def test_an_error_names_file_and_line_and_no_place_of_the_build(initdir: Path) -> None:
    done = run(initdir, "import json; json.loads('')")
    assert re.search(r'^  File "/[^"]*/json/decoder.py", line \d+, in decode$', done.stderr, re.M)
    assert str(initdir) not in done.stderr
