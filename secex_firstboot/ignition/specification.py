"""Which versions of the config specification the Ignition of this machine knows.

It has no option that says so. But the config it leaves for its later stages always has the newest version it
knows, so this runs its first stage on the smallest config there is, in a directory of its own
(Ignition: internal/main.go for the options, internal/distro/distro.go for the variables).
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

from secex_firstboot.basic import process
from secex_firstboot.basic.errors import FirstbootError, Refusal

_VERSION = re.compile(r"3\.([0-9]{1,4})\.([0-9]{1,4})(-experimental)?")


def newest_known() -> str | None:
    """The newest version that Ignition here knows, such as 3.4.0-experimental.

    None if it does not say: then whether a config is too new is left to Ignition.
    """
    with tempfile.TemporaryDirectory(prefix="ignition-") as name:
        directory = Path(name)
        (directory / "user.ign").write_text('{"ignition": {"version": "3.0.0"}}', encoding="utf-8")
        merged = directory / "merged.json"
        places = ("SYSTEM_CONFIG_DIR", "SYSTEM_LOCAL_CONFIG_DIR", "SYSTEM_RUNTIME_CONFIG_DIR")
        options = {
            "stage": "fetch-offline",
            "platform": "file",
            "root": directory,
            "config-cache": merged,
            "neednet": directory / "neednet",
            "state-file": directory / "state",
        }
        try:
            process.run(
                [
                    "env",
                    *(f"IGNITION_{place}={directory}" for place in places),
                    "ignition",
                    "--log-to-stdout",
                    *(f"--{option}={value}" for option, value in options.items()),
                ]
            )
            version = json.loads(merged.read_bytes())["ignition"]["version"]
        except (FirstbootError, OSError, ValueError, LookupError, TypeError):
            return None
    return version if isinstance(version, str) and _VERSION.fullmatch(version) else None


def check(version: str, newest: str | None) -> None:
    """Raises Refusal if a config of this ``version`` (3.x) is not for an Ignition that knows ``newest``.

    Such an Ignition takes exactly its newest version, and each 3.x.0 before it.
    """
    if newest is None or version == newest:
        return
    minor, last = _minor(version), _minor(newest)
    final = "-experimental" not in newest
    if version == f"3.{minor}.0" and (minor < last or (final and minor == last)):
        return
    known = newest if final or not last else f"3.{last - 1}.0, and {newest}"
    raise Refusal(
        "SX-CONFIG-32",
        f"the Ignition config is of specification {version}; Ignition here knows 3.0.0 to {known}",
        "write the config for one of these and encrypt it again",
    )


def _minor(version: str) -> int:
    return int(version.split(".")[1])
