"""What a test needs beyond Python: where that is missing, it is skipped, and the reason says what."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

import pytest


def _missing(names: tuple[str, ...]) -> str:
    return ", ".join(name for name in names if not shutil.which(name))


def programs(*names: str) -> pytest.MarkDecorator:
    """A mark, of a test or of a file."""
    missing = _missing(names)
    return pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


def require(*names: str) -> None:
    """The same from within a fixture."""
    if missing := _missing(names):
        pytest.skip(f"needs {missing}")


_root = os.geteuid() == 0
_loop_devices = _root and Path("/dev/loop-control").exists()
root = pytest.mark.skipif(not _root, reason="needs root")
loop_devices = pytest.mark.skipif(not _loop_devices, reason="needs root and loop devices")


def mounting(*names: str) -> pytest.MarkDecorator:
    """For file systems in files, with these programs beside mount."""
    return programs(*names) if _loop_devices else loop_devices


def capability(number: int) -> bool:
    """Whether this process has it: capability.h has the numbers."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return bool(int(status["CapEff"], 16) >> number & 1)


# Without CAP_SYS_RESOURCE ext4 does not grow while it is mounted (kernel: ext4_resize_begin).
can_grow_mounted_ext4 = capability(24)
mounted_ext4_that_grows = pytest.mark.skipif(
    not can_grow_mounted_ext4, reason="needs CAP_SYS_RESOURCE to grow a mounted ext4"
)


def _has_libcryptsetup() -> bool:
    try:
        ctypes.CDLL("libcryptsetup.so.12")
    except OSError:
        return False
    return True


has_libcryptsetup = _has_libcryptsetup()
libcryptsetup = pytest.mark.skipif(not has_libcryptsetup, reason="needs libcryptsetup")
_without = _missing(("cryptsetup", "veritysetup")) or ("" if has_libcryptsetup else "libcryptsetup")
cryptsetup = pytest.mark.skipif(bool(_without), reason=f"needs {_without}")
