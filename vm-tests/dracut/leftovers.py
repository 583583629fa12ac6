"""Say on the console what secret a shell would find now: in any file of the initramfs, and in volumes.

Known are what failing.py noted, and the words that tests plant.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# In two parts each, so that this file is not found.
PLANTED = [b"secex-test" + b"-secret", b"from%20" + b"the%20user"]
NEEDLES = Path("/run/secex-test/needles")
SKIPPED = {"/proc", "/sys", "/run/secex-test", "/usr/lib/modules", "/usr/lib/secex-test"}


def main() -> None:
    needles = [bytes.fromhex(line) for line in NEEDLES.read_text().split()] if NEEDLES.exists() else []
    names = [str(path) for path in files() if holds(path, [*PLANTED, *filter(None, needles)])]
    names += [path.read_text().strip() for path in Path("/sys/class/block").glob("dm-*/dm/name")]
    for name in names:
        print(f"secex-test: left: {name}", flush=True)
    print(f"secex-test: {len(names)} left, of {len(needles)} secrets and {len(PLANTED)} words", flush=True)


def files() -> Iterator[Path]:
    for folder, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in SKIPPED]
        paths = (Path(folder, name) for name in names)
        yield from (path for path in paths if path.is_file() and not path.is_symlink())


def holds(path: Path, needles: list[bytes]) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return any(needle in content for needle in needles)


main()
