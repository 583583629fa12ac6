"""``make bench``: figures that anyone can take again, measured in a guest, compared within one run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import debian, inside
from harness.guest import Disk

MIB = 1 << 20
SIZE = 96 * MIB


def main() -> int:
    output = debian.REPOSITORY / "build" / "bench"
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as work:
        disks = make_disks(Path(work))
        script = debian.REPOSITORY / "vm-tests/inside/bench.py"
        result = inside.run(script, disks=disks, log=output / "console.log", memory_mib=2048)
    result["bytes added to the initramfs"] = debian.added_to_initramfs()
    (output / "report.json").write_text(json.dumps(result, indent=2) + "\n")
    rows = result["rows"]
    ratios = [row["copy"] / row["dd"] for row in rows]
    print(f"{'round':<8}{'copy, s':>10}{'dd, s':>10}{'ratio':>8}   ({result['MiB']} MiB each)")
    for number, (row, ratio) in enumerate(zip(rows, ratios, strict=True), start=1):
        print(f"{number:<8}{row['copy']:>10.1f}{row['dd']:>10.1f}{ratio:>8.2f}")
    print(f"copy through dm-verity into LUKS2 takes {statistics.median(ratios):.2f} times as long as dd")
    print(f"  alone to the same volume (median; from {min(ratios):.2f} to {max(ratios):.2f})")
    print(f"the built-in builder makes a 100 MiB image in {result['build seconds']:.1f} s")
    print(f"secex-firstboot adds {result['bytes added to the initramfs'] / MIB:.1f} MiB to the initramfs")
    return 0


def make_disks(work: Path) -> list[Disk]:
    """Random content, its hash tree, the root hash, and an empty target."""
    files = {name: work / name for name in ("source", "tree", "hash", "target")}
    with files["source"].open("wb") as stream:
        for _ in range(SIZE // MIB):
            stream.write(os.urandom(MIB))
    for name, size in (("tree", 4 * MIB), ("target", SIZE + 64 * MIB)):
        with files[name].open("wb") as stream:
            stream.truncate(size)
    command: list[str | Path] = ["veritysetup", "format", files["source"], files["tree"]]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    files["hash"].write_text(made.split("Root hash:")[1].split()[0].ljust(512, "\0"))
    return [Disk(path, name, format="raw") for name, path in files.items()]


if __name__ == "__main__":
    sys.exit(main())
