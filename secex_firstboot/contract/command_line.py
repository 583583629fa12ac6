"""The kernel command line as a list of parameters.

They are told apart as the kernel does it (lib/cmdline.c, next_arg): white space within double quotes is part
of a value, ``-`` and ``_`` are the same in names, and what follows ``--`` is for init.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from secex_firstboot.basic.errors import Refusal

_QUOTING = str.maketrans("", "", "\"'\\")
_PARAMETER = re.compile(r'(?:[^ \t\n\v\f\r"]|"[^"]*")+')


def parameters(options: str) -> list[str]:
    """Raises Refusal for an open quote, which would swallow what follows, and for anything but ASCII."""
    if not options.isascii() or "\0" in options:
        raise Refusal(
            "SX-PLATFORM-04",
            "the kernel command line has a NUL or characters outside ASCII",
            "use plain ASCII",
        )
    if options.count('"') % 2:
        raise Refusal(
            "SX-PLATFORM-05",
            "the kernel command line has an opening quote without its closing one",
            "close the quote",
        )
    return _PARAMETER.findall(options)


def before_init(options: str) -> list[str]:
    """Those that are not for init. Raises Refusal as ``parameters`` does."""
    found = parameters(options)
    return found[: found.index("--")] if "--" in found else found


def loosely(options: str) -> list[str]:
    """As they read it who heed no quotes (dracut, Ignition), or others too (systemd), nor the ``--``."""
    return options.translate(_QUOTING).split()


def name(parameter: str) -> str:
    return comparable(parameter.lstrip('"').partition("=")[0].rstrip('"'))


def value_of(parameter: str) -> str | None:
    """Behind the first equals sign, without quotes; None if there is no such sign."""
    _, equals, value = parameter.replace('"', "").partition("=")
    return value if equals else None


def comparable(name: str) -> str:
    return name.replace("-", "_")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether the parameter's name is one of these; ``*`` at the end stands for any rest of it."""
    plain = comparable(name)
    return any(
        plain.startswith(wanted[:-1]) if wanted.endswith("*") else plain == wanted
        for wanted in map(comparable, patterns)
    )


def join(present: list[str], added: Iterable[str]) -> str:
    """The command line with ``added`` at the end, but before what is for init."""
    end = present.index("--") if "--" in present else len(present)
    return " ".join([*present[:end], *added, *present[end:]])
