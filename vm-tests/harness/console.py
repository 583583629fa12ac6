"""What a guest prints that tests wait for, or look for: regular expressions, or words that are both."""

from __future__ import annotations

# --- the kernel, systemd, sulogin(8) ---

LINUX = "Linux version"
COMMAND_LINE = r"Kernel command line: (.*)"
LOGIN = "login: "
SYSTEM_IS_UP = rf"Reached target .*multi-user\.target|{LOGIN}"
SHELL_OPENS = "Press Enter for system maintenance"

# --- secex_firstboot/agent ---

COMPLETE = "first boot is complete"
PEAK_MEMORY = rf"{COMPLETE}: .*peak memory (\d+) of \d+ MiB"


def agent_says(words: str) -> str:
    return f"secex-firstboot: {words}"


def step_begins(step: str) -> str:
    """What it is about to do follows."""
    return rf"\] {step}: "


def step_goes_on(what: str) -> str:
    return rf": {what}: \d+ of"


def step_done(step: str) -> str:
    """With its seconds."""
    return rf"{step_begins(step)}done in ([\d.]+) s"


# --- dracut/emergency.sh, and what the agent explains there ---

CANNOT_START = "this guest cannot start"
NO_SHELL = "emergency mode without local login"
GAVE_UP = f"{CANNOT_START}|emergency mode"
CLEAN = "Keys, config, plan and journal are removed from memory, volumes are closed"
UNCHANGED = "The image is unchanged"
POWERING_OFF = "Powering off."
WHAT_AND_WHY = r"what failed: +(.*)\n(?:why: +(.*)\n)?"


def what_failed(unit: str) -> str:
    return f"what failed: {unit}"


def why(reason: str) -> str:
    return f"why: +{reason}"


def what_to_do(cure: str) -> str:
    return f"what to do: +{cure}"


# Whoever refuses at a later boot: the agent's scripts, a program that reads, systemd.
NAMES_ITS_REFUSAL = (
    agent_says("(?P<agent>.+)")
    + r"|OSError: (?P<read>.+)|(?P<switch>Failed to switch root.*)"
    + r"|(?P<unit>Failed to (?:start|mount) .*(?:print-manifest|sysroot).*)"
)

# --- vm-tests/dracut, vm-tests/inside ---

TESTS = "secex-test:"
MANIFEST_BEGINS = r"MANIFEST BEGIN\n"
MANIFEST = r"([A-Za-z0-9+/=\n]+)MANIFEST END"
RESULT = r"RESULT (\{.*\})\r?\n"


def secrets_left(number: str = r"\d+") -> str:
    """So many, of how many."""
    return rf"{TESTS} ({number}) left, of (\d+) secrets"


def left_at(path: str) -> str:
    return f"{TESTS} left: {path}"
