"""Shell completions of the commands, made of their parsers: ``make completions``.

They are kept, not made when a package is built: shtab as Debian has it knows no fish. A test compares.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import shtab

from secex_firstboot.cli import firstboot, secex

PLACE = Path(__file__).with_name("completions")
NAMES = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}  # by which the shells find them


def main() -> None:
    for name, content in files().items():
        path = PLACE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def files() -> dict[str, str]:
    """Name below PLACE, and content."""
    return {
        f"{shell}/{name.format(parser.prog)}": shtab.complete(_with_paths(parser), shell).rstrip() + "\n"
        for shell, name in NAMES.items()
        for parser in (secex.parser(), firstboot.parser())
    }


def _with_paths(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What takes a path is completed with one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                _with_paths(verb)
        elif action.type is Path:
            wanted = shtab.DIRECTORY if str(action.metavar).startswith("DIR") else shtab.FILE
            action.complete = wanted  # type: ignore[attr-defined]
    return parser


if __name__ == "__main__":
    main()
