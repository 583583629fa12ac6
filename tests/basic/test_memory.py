"""Keys in this process's memory."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import needs

from secex_firstboot.agent import machine, places
from secex_firstboot.basic import memory
from secex_firstboot.cli import firstboot as cli

LOCK = """
from secex_firstboot.basic import memory
from secex_firstboot.cli import firstboot
memory.lock()
later = bytearray(b"x" * (8 << 20))
print(open("/proc/self/status").read())
"""


@needs.root
def test_the_memory_that_the_agent_takes_later_is_locked_as_well() -> None:
    done = subprocess.run([sys.executable, "-c", LOCK], check=True, capture_output=True, text=True)
    found = re.search(r"VmLck:\s+(\d+) kB", done.stdout)
    assert found and int(found[1]) > 8 << 10


def test_a_key_is_gone_from_memory_when_it_was_used(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"a secret")
    with memory.secret_file(path) as secret:
        assert secret == b"a secret"
    assert secret == bytes(8)


def test_a_key_is_gone_from_memory_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), memory.random_secret(64) as secret:
        assert len(set(secret)) > 8
        raise KeyError
    assert secret == bytes(64)


def test_no_two_random_keys_are_alike() -> None:
    with memory.random_secret(64) as first, memory.random_secret(64) as second:
        assert first != second


def test_the_kernels_own_random_numbers_take_what_is_mixed_in() -> None:
    """All that can be seen of it is that the kernel takes it."""
    memory.stir(b"a secret", b"another one")


@pytest.mark.parametrize("code", [errno.ENODATA, errno.EPERM])
def test_a_generator_that_has_no_seed_yet_takes_it_later(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def ioctl(file: object, request: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    memory.stir(b"a secret")


def test_any_other_failure_to_mix_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_POOL", tmp_path / "pool")
    (tmp_path / "pool").touch()
    with pytest.raises(OSError, match="ioctl"):  # a file has no generator
        memory.stir(b"a secret")


@pytest.mark.parametrize("committed", [True, False])
def test_after_a_power_cut_the_plan_is_mixed_in_before_any_key_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, committed: bool
) -> None:
    plan, happened = tmp_path / "plan.json", []
    if committed:
        plan.write_bytes(b"the record's key")
    monkeypatch.setattr(places, "PLAN", plan)
    monkeypatch.setattr(memory, "lock", lambda: happened.append("lock"))
    monkeypatch.setattr(memory, "stir", lambda *secrets: happened.append(secrets))
    monkeypatch.setattr(machine, "run", lambda stage, context: happened.append(stage))
    assert cli.main(["--stage", "provision"]) == 0
    assert happened == ["lock", *([(b"the record's key",)] if committed else []), "provision"]
