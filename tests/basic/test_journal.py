"""The journal, with and without the package that only guests have."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from secex_firstboot.basic import journal


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    importlib.reload(journal)


def test_without_systemd_python_nothing_is_said_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("systemd", "systemd.daemon", "systemd.journal"):
        monkeypatch.setitem(sys.modules, name, None)
    without = importlib.reload(journal)
    without.status("copying")
    without.step_done("encrypt", 1.5)


def test_in_a_guest_the_unit_has_a_status_and_the_journal_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock, of sd_notify(3) and sd_journal_send(3)."""
    said: list[Any] = []
    package = ModuleType("systemd")
    vars(package)["daemon"] = SimpleNamespace(notify=said.append)
    vars(package)["journal"] = SimpleNamespace(
        LOG_DEBUG=7, send=lambda text, **fields: said.append((text, fields))
    )
    for name, module in {"": package, ".daemon": package.daemon, ".journal": package.journal}.items():
        monkeypatch.setitem(sys.modules, f"systemd{name}", module)
    guest = importlib.reload(journal)
    guest.status("copying")
    guest.step_done("encrypt", 1.5)
    fields = {"PRIORITY": 7, "SECEX_FIRSTBOOT_STEP": "encrypt", "SECEX_FIRSTBOOT_SECONDS": "1.5"}
    assert said == ["STATUS=copying", ("secex-firstboot: encrypt done in 1.5 s", fields)]
