"""How the tests in guests share two processors, and what tampering and power cuts came to."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import firstboot, recorded
from harness.guest import Network
from harness.recorded import FirstBoot
from xdist.scheduler import LoadScopeScheduling

SHARING = ("test_power_cut.py", "test_tamper.py")

# Before there are processes that inherit it.
os.environ.setdefault("POWER_CUT_SEED", str(secrets.randbits(32)))


@pytest.fixture(scope="session")
def first_boot(tmp_path_factory: pytest.TempPathFactory) -> FirstBoot:
    return recorded.first_boot(tmp_path_factory)


@pytest.fixture(scope="session")
def network(first_boot: FirstBoot) -> Iterator[Network]:
    """On which the recorded config's URLs lead somewhere."""
    with firstboot.services(first_boot.served) as network:
        yield network


class ByCost(LoadScopeScheduling):  # type: ignore[misc]
    """The tests of a file stay together, as they share what is costly to make; but for those that share it
    with all processes, see harness.once.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return nodeid if Path(file).name in SHARING else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return ByCost(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What others wait for comes first, and what may run anywhere last: so both processes end together."""
    items.sort(key=lambda item: (not item.get_closest_marker("early"), item.path.name in SHARING))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tampering = [value for value, _ in _noted(terminalreporter, "tampering")]
    if tampering:
        terminalreporter.section("what the host changed, and how it ended")
        for line in sorted(tampering):
            terminalreporter.line(line)
    cuts = list(_noted(terminalreporter, "power cut"))
    if cuts:
        terminalreporter.section(f"power cuts, POWER_CUT_SEED={os.environ['POWER_CUT_SEED']}")
        number = Counter(cut for cut, _ in cuts)
        provisioned = Counter(cut for cut, passed in cuts if passed)
        for cut in sorted(number):
            terminalreporter.line(f"{provisioned[cut]:4} of {number[cut]:4} ended provisioned: {cut}")
        terminalreporter.line(f"{provisioned.total():4} of {number.total():4} in all")


def _noted(terminalreporter: pytest.TerminalReporter, name: str) -> Iterator[tuple[str, bool]]:
    """What tests have recorded under this name, and whether they passed."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for key, value in report.user_properties if report.when == "call" else []:
                if key == name:
                    yield str(value), outcome == "passed"
