"""``--explain``: why Ignition failed, for the screen that ends a boot (dracut/emergency.sh).

Two lines, the reason and what to do, or nothing; no byte of the config or of Ignition's log is in them.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from secex_firstboot.agent import places
from secex_firstboot.basic import process
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import exists
from secex_firstboot.ignition import failure
from secex_firstboot.ignition.failure import Blame, Failure, Message

_LINES = 20_000  # the latest of Ignition's messages; there are up to three for each entry of a config

# By: is first boot behind its commit point, from where on the boot image has the config; what was wrong.
_ADVICE = {
    (
        False,
        Blame.CONFIG,
    ): "The image is unchanged. Mend the config, encrypt it again, and start the guest again.",
    (False, Blame.AROUND): "The image is unchanged. Put the cause right, and start the guest again.",
    (False, Blame.EITHER): "The image is unchanged. Put the cause right, and start the guest again.",
    (True, Blame.CONFIG): "This guest has to begin anew from the image, with a mended config.",
    (True, Blame.AROUND): "The disk is half encrypted. Start the guest again, and the first boot goes on.",
    (True, Blame.EITHER): (
        "Put the cause right, and start the guest again. If the config is the cause,"
        " this guest has to begin anew from the image, with a mended config."
    ),
}


def lines() -> list[str]:
    """The reason and the advice; none if Ignition's last run in this boot did not fail, or says no reason."""
    try:
        log = _log()
    except (FirstbootError, ValueError):
        return []  # the error may quote the log
    found = failure.explain(log, _json(places.IGNITION_MERGED_CONFIG), _json(places.IGNITION_USER_CONFIG))
    return [str(found), advice(found, committed=exists(places.COMMITTED))] if found else []


def advice(found: Failure, *, committed: bool) -> str:
    return _ADVICE[committed, found.blame]


def _log() -> list[Message]:
    """Its log goes to syslog, or, where the unit says --log-to-stdout, to its standard output. There is also
    what it prints when it fails: the whole config.
    """
    output = process.run(
        [
            *("journalctl", "--quiet", "--boot", "--all", "--output=json", f"--lines={_LINES}"),
            *("--output-fields=PRIORITY,MESSAGE,_TRANSPORT", "SYSLOG_IDENTIFIER=ignition"),
        ]
    )
    return [message for line in output.splitlines() if (message := _message(json.loads(line)))]


def _message(entry: dict[str, Any]) -> Message | None:
    """journalctl(1): a field that is not printable text is an array of bytes."""
    text = entry["MESSAGE"]
    text = bytes(text).decode(errors="replace") if isinstance(text, list) else str(text)
    return (
        Message(int(entry["PRIORITY"]), text) if entry["_TRANSPORT"] == "syslog" else Message.on_stdout(text)
    )


def _json(path: Path) -> Any:
    with suppress(OSError, ValueError):
        return json.loads(path.read_bytes())
    return {}
