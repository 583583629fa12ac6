#!/usr/bin/python3 -I
"""In place of IBM's genprotimg, as libostree 2025.2 calls it: it takes that call alone, at its word.

What it was called with it leaves where the test has put it; it may run as a link of that.
"""

from __future__ import annotations

import sys
from pathlib import Path

from secex_firstboot.hostkeys import document
from secex_firstboot.sdboot import create, image

NAMES = ["-i", "-r", "-p", *["-k"] * ((len(sys.argv) - 10) // 2), "--no-verify", "-o"]

words = sys.argv[1:]
assert [word for word in words if word.startswith("-")] == NAMES, words
kernel, ramdisk, parameters, *keys = (Path(word) for word in words[1:-3:2])
assert words[-1] == "/sysroot/se/sdboot" and not Path(words[-1]).exists(), words
documents = [document.parse(path.name, path.read_bytes()) for path in keys]
with Path(words[-1]).open("xb") as output:
    image.build(
        output,
        kernel=kernel,
        ramdisk=[ramdisk],
        command_line=parameters.read_text(),
        host_keys=[each.key for each in document.distinct(documents)],
        boot_loaders=create.find_boot_loaders(),
    )
Path("/var/ibms/called").write_text("\n".join(words))
