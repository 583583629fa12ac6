"""How the tests in guests share two processors, which of them run, what they cost and what they came to."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import demo
import pytest
from harness import firstboot, once, recorded, sample
from harness.guest import Guest, Network
from harness.recorded import FirstBoot
from xdist.scheduler import LoadScopeScheduling

# The longest first; then any other file, and last those whose tests may run anywhere, one by one.
LONGEST = ("test_first_boot.py", "test_errors.py", "test_storage.py", "test_grow.py")
ANYWHERE = (
    "test_ostree.py",
    "test_update_cut.py",
    "test_power_cut.py",
    "test_emergency.py",
    "test_tamper.py",
)

# Before there are processes that inherit it.
os.environ.setdefault("POWER_CUT_SEED", str(sample.seed()))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="all tests, instead of a sample of those that are many"
    )


def pytest_report_header(config: pytest.Config) -> str:
    return (
        "every test" if config.getoption("--long") else f"a sample (--long: all), CHECK_SEED={sample.seed()}"
    )


@pytest.fixture(scope="session")
def first_boot(tmp_path_factory: pytest.TempPathFactory) -> FirstBoot:
    return recorded.first_boot(tmp_path_factory)


@pytest.fixture(scope="session")
def main_job(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The directory of the demo, closely looked at."""

    def run(directory: Path) -> Path:
        demo.run(directory, closely=True, at_length=pytestconfig.getoption("--long"))
        return directory

    return once.made(tmp_path_factory, "main-job", run)


@pytest.fixture(scope="session")
def network(first_boot: FirstBoot) -> Iterator[Network]:
    """On which the recorded config's URLs lead somewhere."""
    with firstboot.services(first_boot.served) as network:
        yield network


@pytest.fixture(scope="session")
def later_network(first_boot: FirstBoot) -> Iterator[Network]:
    """The same, with other content where the config has something to merge."""
    with firstboot.services(first_boot.served_later) as network:
        yield network


class ByCost(LoadScopeScheduling):  # type: ignore[misc]
    """The tests of a file stay together, as they share what is costly to make; but for those that share it
    with all processes, see harness.once, or share nothing.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return nodeid if Path(file).name in ANYWHERE else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return ByCost(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What others wait for comes first, and what may run anywhere last: so both processes end together."""
    if not config.getoption("--long"):
        items[:], left_out = sample.split(items, sample.seed())
        config.hook.pytest_deselected(items=left_out)
    turn = sample.seed() % len(ANYWHERE)  # where time is short, it is not always the same that have none
    order = (*LONGEST, "", *ANYWHERE[turn:], *ANYWHERE[:turn])
    items.sort(
        key=lambda item: (
            not item.get_closest_marker("early"),
            order.index(item.path.name if item.path.name in order else ""),
        )
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    is_case = item.get_closest_marker("sampled") is not None
    if not item.config.getoption("--long") and (late := sample.too_late(is_case=is_case)):
        pytest.skip(late)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Each report says of the guests that ended since the one before how many seconds they ran."""
    report = yield
    report.user_properties.append(("guests", list(Guest.ran)))
    Guest.ran.clear()
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    _tell_costs(terminalreporter)
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


def _tell_costs(terminalreporter: pytest.TerminalReporter) -> None:
    """What waits for the other process, to make what both need, counts as well, but not as a guest's time."""
    took: defaultdict[str, float] = defaultdict(float)
    guests: defaultdict[str, list[float]] = defaultdict(list)
    for report in chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            file = Path(report.nodeid.split("::")[0]).name
            took[file] += report.duration
            guests[file] += dict(report.user_properties).get("guests", [])  # type: ignore[arg-type]
    if any(guests.values()):
        terminalreporter.section("seconds of each file, and of its guests")
        for file in sorted(took, key=lambda file: -took[file]):
            ran = guests[file]
            terminalreporter.line(f"{took[file]:6.0f}  {sum(ran):6.0f} of {len(ran):3} guests  {file}")
        ran = list(chain.from_iterable(guests.values()))
        terminalreporter.line(f"{sum(took.values()):6.0f}  {sum(ran):6.0f} of {len(ran):3} guests  in all")


def _noted(terminalreporter: pytest.TerminalReporter, name: str) -> Iterator[tuple[str, bool]]:
    """What tests have recorded under this name, and whether they passed."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for key, value in report.user_properties if report.when == "call" else []:
                if key == name:
                    yield str(value), outcome == "passed"
