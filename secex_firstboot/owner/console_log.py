"""What a console log, or QEMU's log, says of a guest's last start: how far it got, what ended it, what to do.

Whoever runs the host can write anything into it. It is read in a bound, as lines of printable text, and words
for people come from the messages' table, or are a line of the log.

Sources of what is looked for: s390-tools, zipl/boot or rust/pvimg, stage3a.c; QEMU, pc-bios/s390-ccw and
target/s390x/kvm/pv.c; Linux; dracut/emergency.sh and the agent.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import is_regular
from secex_firstboot.owner import messages

_LIMIT = 2 << 20  # bytes, the last of the file
_LONGEST = 2000  # characters of a line
_SHOWN = 200
_SHORTEST = 5  # of one that says anything
_MOST_CAUSES = _MOST_STEPS = 100
_MOST_ALSO = 8

# ECMA-48: control sequences, strings up to their end, and what is left of others.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])?")
_ID = re.compile(r"\[(SX-[A-Z]{2,12}-\d\d)\]\s*$")
_OURS = re.compile(r"secex-firstboot(?:\[\d+\])?: (?:secex-firstboot: )?(?P<said>.*)")
_STEP = re.compile(r"\[(?P<number>\d{1,2})/(?P<all>\d{1,2})\] (?P<step>[a-z][a-z ]{1,30}): (?P<what>.*)")
_SCREEN = re.compile(r"^(what failed|why|what to do): +(.*)$")
_FIRMWARE = re.compile(r"^LOADPARM=\[|: starting up libvirt version: ")
_LINUX = re.compile(r"Linux version (\S{1,100})")
_UP = re.compile(r"Reached target .*multi-user\.target|\blogin: *$")
_NO_REASON = "see the messages above"
_OTHERS = "SX-LOG-"
_COMPLETE = "first boot is complete"


@dataclass(frozen=True)
class _Sign:
    """What others than ours say when something ends, or is about to; groups are what the message leaves open.
    ``tells_why``: not alone that it ended.
    """

    id: str
    pattern: str
    tells_why: bool = True


_SIGNS = (
    _Sign("SX-LOG-01", r"Secure unpack facility is not available"),
    _Sign(
        "SX-LOG-02",
        r"host key hash of the IBM Secure Execution image does not match|correctly encrypted for this host"
        r"|header rc 0*108\b|RC: 0x0*108\b",
    ),
    _Sign("SX-LOG-03", r"header rc 0*102\b|RC: 0x0*102\b|digest list \([APT]LD\) mismatch"),
    _Sign(
        "SX-LOG-04",
        r"Protected boot (?:setup )?(?:has )?failed|KVM PV command \d+ \(\w+\) failed",
        tells_why=False,
    ),
    _Sign(
        "SX-LOG-05",
        r"No IPL device available|No valid IPL device|No suitable device for IPL|No zIPL (?:magic|section)"
        r"|Could not find a suitable boot device|Cannot read block 0",
    ),
    _Sign("SX-LOG-06", r"requested boot entry \(\d+\) is invalid|Invalid loadparm|loadparm value greater"),
    _Sign("SX-LOG-07", r"Kernel panic - not syncing: (.*)"),
    _Sign("SX-LOG-08", r"Out of memory: Killed process \d+ \(([^)]*)\)"),
    _Sign("SX-LOG-09", r"INTEGRITY AEAD ERROR"),
    _Sign("SX-LOG-10", r"device-mapper: verity: .*block \d+ is corrupted"),
    _Sign("SX-LOG-11", r"I/O error,? (?:on )?dev ([\w-]+)"),
    _Sign("SX-LOG-12", r"Guest crashed on cpu|disabled[- ]wait", tells_why=False),
    _Sign("SX-LOG-13", r"this guest cannot start|emergency mode|Entering emergency", tells_why=False),
)
_ANY_SIGN = re.compile("|".join(each.pattern for each in _SIGNS))
_TELL_WHY = {each.id for each in _SIGNS if each.tells_why}
_ENDS_IN_A_STEP, _ENDS_AFTER_KERNEL, _ENDS_IN_FIRMWARE = "SX-LOG-14", "SX-LOG-15", "SX-LOG-17"


class Outcome(StrEnum):
    UP = "up"
    REFUSED = "refused"  # by a part of ours, which says so
    ENDED = "ended"  # somebody else says why
    UNFINISHED = "unfinished"  # the log ends while something is at work
    UNKNOWN = "unknown"  # none of it is known here


@dataclass(frozen=True)
class Cause:
    """``line``: of the file, None if its beginning was not read. ``said``: in the log, without the ID."""

    id: str
    said: str
    line: int | None
    section: str = ""
    message: str = ""
    cure: str = ""


@dataclass
class Explanation:
    """Of the last start in the log, of ``starts``. ``steps``: of first boot, and whether each is done."""

    starts: int = 0
    cut: bool = False
    outcome: Outcome = Outcome.UNKNOWN
    kernel: str = ""
    steps: dict[str, bool] = field(default_factory=dict)
    of_steps: int = 0
    complete: bool = False
    up: bool = False
    cause: Cause | None = None
    failed_unit: str = ""
    screen_cure: str = ""
    """What the guest itself said to do, on its last screen."""
    last_line: str = ""
    also: list[Cause] = field(default_factory=list)


@dataclass(frozen=True)
class _Line:
    number: int | None
    text: str


def explain(path: Path) -> Explanation:
    """Raises Refusal if there is no such file."""
    found = Explanation()
    seen: list[Cause] = []
    for line in _last_start(_lines(path, found), found):
        _take(line, found, seen)
        found.last_line = line.text.strip()[:_SHOWN] or found.last_line
    _conclude(found, seen)
    return found


def _lines(path: Path, found: Explanation) -> Iterator[_Line]:
    try:
        if not is_regular(path):
            raise FileNotFoundError(2, "it is missing or no regular file")
        with path.open("rb") as stream:
            start = max(stream.seek(0, os.SEEK_END) - _LIMIT, 0)
            stream.seek(start)
            content = stream.read(_LIMIT)
    except OSError as error:
        raise Refusal(
            "SX-LOG-16",
            f"{path} cannot be read: {error.strerror}",
            "name the console log: <log file='...'/> of the domain",
        ) from None
    found.cut = start > 0
    for number, line in enumerate(content.decode(errors="replace").split("\n"), start=1):
        if len(line) >= _SHORTEST:
            yield _Line(None if found.cut else number, readable(line[:_LONGEST]))


def readable(text: str) -> str:
    """Without what a terminal would take for commands."""
    return "".join(each for each in _ESCAPE.sub("", text).replace("\t", " ") if each.isprintable()).rstrip()


def _last_start(lines: Iterator[_Line], found: Explanation) -> list[_Line]:
    """From the firmware's first line on; of a log that does not have it, from the kernel's."""
    last: list[_Line] = []
    from_firmware = False
    for line in lines:
        by_firmware = bool(_FIRMWARE.search(line.text))
        if by_firmware or (_LINUX.search(line.text) and not from_firmware):
            last, from_firmware = [], by_firmware
            found.starts += 1
        elif _LINUX.search(line.text):
            from_firmware = False
        last.append(line)
    return last


def _take(line: _Line, found: Explanation, seen: list[Cause]) -> None:
    text = line.text
    if kernel := _LINUX.search(text):
        found.kernel = kernel[1]
    if (step := _STEP.search(text)) and len(found.steps) < _MOST_STEPS:
        name, what = step["step"], step["what"]
        found.steps[name] = found.steps.get(name, False) or what.startswith(("done in ", "already done"))
        found.of_steps = int(step["all"])
    found.complete = found.complete or _COMPLETE in text
    if _UP.search(text):
        found.up = True
        seen.clear()  # what was there before did not keep it from coming up
    if screen := _SCREEN.match(text):
        _take_screen(line, screen[1], screen[2], found, seen)
    elif (ours := _OURS.search(text)) and (id := _ID.search(ours["said"])):
        _note(_cause(id[1], ours["said"][: -len(id[0])].rstrip(), line.number), seen)
    elif _ANY_SIGN.search(text):
        for sign in _SIGNS:
            if match := re.search(sign.pattern, text):
                _note(_cause(sign.id, text, line.number, *match.groups()), seen)
                break


def _take_screen(line: _Line, label: str, said: str, found: Explanation, seen: list[Cause]) -> None:
    """The screen with which dracut/emergency.sh ends a start."""
    if label == "what failed":
        found.failed_unit = said[:_SHOWN]
    elif label == "what to do":
        found.screen_cure = said
    elif id := _ID.search(said):
        _note(_cause(id[1], said[: id.start()].rstrip(), line.number), seen)
    elif said != _NO_REASON:
        _note(Cause("", said, line.number), seen)


def _note(cause: Cause, seen: list[Cause]) -> None:
    """Of each that is ours the last counts, of others the first: what follows from it says the same."""
    same = [each for each in seen if each.id == cause.id]
    if same and cause.id.startswith(_OTHERS):
        return
    for each in same:
        seen.remove(each)
    seen.append(cause)
    del seen[:-_MOST_CAUSES]


def _cause(id: str, said: str, line: int | None, what: str = "") -> Cause:
    row = messages.of(id, said)
    if not row:  # of a version that is newer than this one
        return Cause(id, said, line)
    return Cause(
        id, said, line, row.section, row.message.replace("WHAT", what) if what else row.message, row.cure
    )


def _conclude(found: Explanation, seen: list[Cause]) -> None:
    ours = [each for each in seen if not each.id.startswith(_OTHERS)]
    telling = [each for each in seen if each.id in _TELL_WHY]
    found.cause = next(iter([*ours[-1:], *telling[:1], *seen[:1]]), None)
    if found.cause:
        found.outcome = Outcome.REFUSED if ours else Outcome.ENDED
        found.also = list({each.id: each for each in seen if each.id != found.cause.id}.values())[:_MOST_ALSO]
    elif found.up:
        found.outcome = Outcome.UP
    elif found.starts:
        found.outcome = Outcome.UNFINISHED
        begun = [name for name, done in found.steps.items() if not done]
        if begun:
            found.cause = _cause(_ENDS_IN_A_STEP, "", None, begun[-1])
        elif not found.complete:
            found.cause = _cause(_ENDS_AFTER_KERNEL if found.kernel else _ENDS_IN_FIRMWARE, "", None)
