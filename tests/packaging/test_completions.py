"""The shells' completions, as they are kept in the repository."""

from __future__ import annotations

import runpy
import shutil
import subprocess

import pytest
from support import REPOSITORY

PLACE = REPOSITORY / "packaging/completions"
KEPT = {str(path.relative_to(PLACE)): path.read_text() for path in PLACE.glob("*/*")}


def test_they_are_what_the_parsers_make() -> None:
    """If not: make completions."""
    shtab = pytest.importorskip("shtab", reason="needs shtab, of pip install .[test]")
    if f'"shtab=={shtab.__version__}"' not in (REPOSITORY / "pyproject.toml").read_text():
        pytest.skip(f"shtab {shtab.__version__} makes others")
    assert runpy.run_path(str(REPOSITORY / "packaging/completions.py"))["files"]() == KEPT


def test_each_command_has_them_for_each_shell() -> None:
    assert KEPT.keys() == {
        name.format(command)
        for command in ("secex", "secex-firstboot")
        for name in ("bash/{}", "zsh/_{}", "fish/{}.fish")
    }


OFFERED = pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["secex", ""], {"status"}),
        (["secex", "status", "--"], {"--help", "--json", "--root"}),
        (["secex-firstboot", "--stage", ""], {"config", "provision", "mount", "seal"}),
        (["secex-firstboot", "--conf"], {"--config"}),
    ],
)
# As bash calls the function that is registered for a command: Programmable Completion in bash(1).
_BASH = """
source "$0/bash/$1"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
function=$(complete -p "$1" | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@OFFERED
def test_bash_offers_what_may_follow(words: list[str], offered: set[str]) -> None:
    done = subprocess.run(
        ["bash", "-c", _BASH, PLACE, *words],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert offered <= set(done.stdout.split())


@OFFERED
@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
def test_fish_offers_what_may_follow(words: list[str], offered: set[str]) -> None:
    script = f"source {PLACE}/fish/{words[0]}.fish; complete --do-complete='{' '.join(words)}'"
    done = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, check=True)
    assert offered <= {line.split("\t")[0] for line in done.stdout.splitlines()}


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_can_read_its_own() -> None:
    for path in (PLACE / "zsh").iterdir():
        subprocess.run(["zsh", "-n", path], check=True)
