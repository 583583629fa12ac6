"""List every file below a directory with what a copy must keep: ``manifest.py DIRECTORY OUTPUT``, or ``-``.

One JSON object a line, sorted by path: type and mode, owner, size, content's hash, link target, extended
attributes, and which paths are hard links of one file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor


def describe(path: str, first_name_of: dict[tuple[int, int], str]) -> dict[str, object]:
    status = os.lstat(path)
    entry: dict[str, object] = {
        "mode": oct(status.st_mode),
        "owner": [status.st_uid, status.st_gid],
        "xattrs": {
            name: os.getxattr(path, name, follow_symlinks=False).hex()
            for name in sorted(os.listxattr(path, follow_symlinks=False))
            if not name.startswith("trusted.SGI_ACL_")  # xfs shows POSIX ACLs a second time under this name
        },
    }
    if stat.S_ISLNK(status.st_mode):
        entry["target"] = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        entry["size"] = status.st_size
        if status.st_nlink > 1:
            entry["same file as"] = first_name_of.setdefault((status.st_dev, status.st_ino), path)
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        entry["device"] = status.st_rdev
    return entry


def content(path: str) -> dict[str, object]:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return {}
    with open(path, "rb") as stream:
        return {"content": hashlib.sha512(stream.read()).hexdigest()[:32]}


def manifest(top: str) -> dict[str, dict[str, object]]:
    """{path: description} of all on the file system of ``top``, and on the one mounted on boot there."""
    os.chdir(top)
    devices = {os.lstat(name).st_dev for name in (".", "boot") if os.path.lexists(name)}
    paths: list[str] = []
    for folder, folders, files in os.walk("."):
        folders[:] = sorted(
            name for name in folders if os.lstat(os.path.join(folder, name)).st_dev in devices
        )
        paths += [os.path.join(folder, name) for name in [*folders, *sorted(files)]]
    entries: dict[str, dict[str, object]] = {}
    first_name_of: dict[tuple[int, int], str] = {}
    # Reading and hashing take the time, and leave the interpreter to the other threads.
    with ThreadPoolExecutor(4) as pool:
        contents = pool.map(content, paths)
        for path, digest in zip(paths, contents, strict=True):
            entries[path] = describe(path, first_name_of) | digest
    return entries


def print_compressed(lines: list[str]) -> None:
    """For a console: compressed, in base64, between two marks, in lines that are not too long."""
    text = base64.b64encode(zlib.compress("".join(lines).encode())).decode()
    print("\nMANIFEST BEGIN")
    for at in range(0, len(text), 1000):
        print(text[at : at + 1000])
    print("MANIFEST END", flush=True)


if __name__ == "__main__":
    lines = [
        json.dumps({"path": path, **entry}, sort_keys=True) + "\n"
        for path, entry in sorted(manifest(sys.argv[1]).items())
    ]
    if sys.argv[2] == "-":
        print_compressed(lines)
    else:
        with open(sys.argv[2], "w", encoding="utf-8") as output:
            output.writelines(lines)
