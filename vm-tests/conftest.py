"""How the tests in guests share two processors, and what their power cuts came to."""

from __future__ import annotations

import os
import secrets
from collections import Counter

import pytest

# Before there are processes that inherit it.
os.environ.setdefault("POWER_CUT_SEED", str(secrets.randbits(32)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file stay together, as they share what is costly to make, unless they are ``single``.

    What is ``early`` comes first, and what is ``single`` last, so that both processes end at the same time.
    """
    for item in items:
        if not item.get_closest_marker("single"):
            item.add_marker(pytest.mark.xdist_group(item.path.name))
    items.sort(
        key=lambda item: (not item.get_closest_marker("early"), bool(item.get_closest_marker("single")))
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How often the power was cut, where, and how many of these guests ended provisioned."""
    cuts: Counter[str] = Counter()
    provisioned: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties if report.when == "call" else []:
                if name == "power cut":
                    cuts[value] += 1
                    provisioned[value] += outcome == "passed"
    if cuts:
        terminalreporter.section(f"power cuts, POWER_CUT_SEED={os.environ['POWER_CUT_SEED']}")
        for cut, number in sorted(cuts.items()):
            terminalreporter.line(f"{provisioned[cut]:4} of {number:4} ended provisioned: {cut}")
        terminalreporter.line(f"{provisioned.total():4} of {cuts.total():4} in all")
