"""Why a stage of Ignition failed, told from what Ignition really logs, and without a byte of the config."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import TEST_VECTORS

from secex_firstboot.agent import explain, places
from secex_firstboot.basic import process
from secex_firstboot.ignition import failure
from secex_firstboot.ignition.failure import STAGES, Blame, Failure, Message

VECTORS = TEST_VECTORS / "ignition-log/failures.jsonl"
RECORDED = [json.loads(line) for line in VECTORS.read_text(encoding="utf-8").splitlines()]

NO_HASH = "its content does not have the hash that the config gives"
NOT_THERE = "the server does not have it"
NO_ANSWER = "it could not be fetched (check the guest's network and the server)"
NO_DIRECTORY = "what it is to lie in is no directory"
UNKNOWN_SPECIFICATION = "the specification is not one that this Ignition knows"
TOO_LONG = "its name is too long"
SECOND = "reference 2 of ignition.config, in the order they are fetched"

# In the order of the file.
EXPECTED = [
    ("storage.raid[0].level: raid level is required", Blame.CONFIG),
    (UNKNOWN_SPECIFICATION, Blame.CONFIG),
    (f"{SECOND}: it is no JSON, or not of the specification's types", Blame.CONFIG),
    (f"{SECOND}: storage.files[0].path: path not absolute", Blame.CONFIG),
    (f"ignition.config.merge[0]: {NO_HASH}", Blame.EITHER),
    (f"ignition.config.merge[0]: {UNKNOWN_SPECIFICATION}", Blame.CONFIG),
    (f"ignition.config.merge[0]: {NOT_THERE}", Blame.EITHER),
    (f"ignition.config.replace: {NO_ANSWER}", Blame.AROUND),
    (
        "ignition.security.tls.certificateAuthorities: a certificate authority cannot be fetched, or is none",
        Blame.EITHER,
    ),
    ("storage.files[0]: file path includes link in config", Blame.CONFIG),
    (f"storage.files[1]: {NO_HASH}", Blame.CONFIG),
    ("storage.files[0]: its content is not the gzip that it should be", Blame.CONFIG),
    (f"storage.files[0]: {NO_DIRECTORY}", Blame.CONFIG),
    ("storage.files[0]: another entry leads to the same path, through a link", Blame.CONFIG),
    ("storage: its user does not exist", Blame.CONFIG),  # two files have that name, behind a link
    ("storage.files[0]: its user does not exist", Blame.CONFIG),  # behind a link
    ("storage.files[0]: something else is there, and the config does not say overwrite", Blame.CONFIG),
    ("passwd.users[1]: useradd refuses it (exit status 3)", Blame.CONFIG),
    ("passwd.groups[0]: groupadd refuses it (exit status 3)", Blame.CONFIG),
    (f"storage.files[0]: {NOT_THERE}", Blame.EITHER),
    (f"storage.files[0]: {NO_ANSWER}", Blame.AROUND),
    ("storage.links[0]: what it names does not exist", Blame.EITHER),
    ("storage.files[0]: the kernel does not take its name", Blame.CONFIG),
    (f"storage.files[0]: {TOO_LONG}", Blame.CONFIG),
    (f"systemd.units[1]: {TOO_LONG}", Blame.CONFIG),
    ("storage.luks[0]: it failed for a reason that cannot be told without quoting the config", Blame.EITHER),
    (f"storage.filesystems[0]: {NO_DIRECTORY}", Blame.CONFIG),
    ("storage.filesystems[0]: what it names does not exist", Blame.EITHER),
    ("kernelArguments: the image has no ignition-kargs-helper", Blame.EITHER),
]


def messages(recorded: dict[str, Any]) -> list[Message]:
    return [Message(priority, text) for priority, text in recorded["log"]]


def explained(recorded: dict[str, Any]) -> Failure:
    found = failure.explain(messages(recorded), recorded["config"], recorded["config"])
    assert found
    return found


@pytest.mark.parametrize(("recorded", "expected"), list(zip(RECORDED, EXPECTED, strict=True)))
def test_stage_place_and_kind_are_told(recorded: dict[str, Any], expected: tuple[str, Blame]) -> None:
    found = explained(recorded)
    assert (str(found), found.blame) == (
        f"Ignition's {recorded['stage']} stage: {expected[0]}",
        expected[1],
    )


def test_each_stage_is_among_them() -> None:
    assert {recorded["stage"] for recorded in RECORDED} == set(STAGES)


def words(config: Any) -> Iterator[str]:
    """Every string of a config that somebody wrote, but for single letters and gzip."""
    if isinstance(config, dict):
        config = list(config.values())
    if isinstance(config, list):
        for each in config:
            yield from words(each)
    elif isinstance(config, str) and len(config) > 1 and config != "gzip":
        yield config


@pytest.mark.parametrize("recorded", RECORDED)
def test_no_word_of_the_config_is_told(recorded: dict[str, Any]) -> None:
    said = str(explained(recorded))
    assert not [word for word in words(recorded["config"]) if word in said]


FRAMES = (
    "{}",
    "error at $.{}: {}",
    "error at $.storage.files.0.path, line 1 col 2: {}",
    "error at $.storage.{}.0, line 1 col 2: path not absolute",
    "fetched referenced config at {} with SHA512: 00",
    'files: op(1): [failed]   writing file "/sysroot{}": {}',
    "Ignition failed: {}",
    "Ignition failed: failed to create files: failed to create files: error creating /sysroot/{}: {}",
    'Ignition failed: failed to create users/groups: failed to configure users: failed to create user "{}": '
    'exit status 3: Cmd: "{}" "{}"',
    'Ignition failed: failed to create units: exit status 1: Cmd: "/usr/sbin/{}"',
)
SECRETS = st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: f"{text}Secret{text}")


@given(
    st.sampled_from(STAGES),
    st.lists(st.tuples(st.sampled_from(FRAMES), SECRETS), min_size=1, max_size=5),
    SECRETS,
)
def test_whatever_stands_in_the_log_what_is_told_is_ours(
    stage: str, frames: list[tuple[str, str]], name: str
) -> None:
    log = [Message(6, f"Stage: {stage}")]
    log += [Message(2, frame.format(secret, secret, secret)) for frame, secret in frames]
    merged = {
        "storage": {"files": [{"path": f"/{name}", "contents": {"source": f"data:,{name}"}}]},
        "passwd": {"users": [{"name": name}]},
        "systemd": {"units": [{"name": name}]},
    }
    assert "Secret" not in str(failure.explain([*log, Message(2, "Ignition failed: x")], merged))


def test_an_ignition_that_did_not_fail_is_not_explained() -> None:
    ended = RECORDED[10]["log"]
    passed = [Message(6, "Stage: files"), Message(6, "Ignition finished successfully")]
    assert failure.explain([*messages(RECORDED[10]), *passed], {}) is None
    assert failure.explain([], {}) is None
    assert failure.explain([Message(2, text) for _, text in ended if "Stage" not in text], {}) is None


@pytest.mark.parametrize("how", ["Ignition finished successfully", "Ignition failed: cannot unmount"])
def test_what_is_unmounted_afterwards_does_not_count(how: str) -> None:
    """The unit of the mount stage is stopped when another has failed."""
    after = [Message(6, "Stage: umount"), Message(2 if "failed" in how else 6, how)]
    found = failure.explain([*messages(RECORDED[12]), *after], RECORDED[12]["config"])
    assert str(found) == f"Ignition's files stage: storage.files[0]: {NO_DIRECTORY}"


def test_what_an_earlier_stage_said_does_not_count() -> None:
    before = [Message(6, "Stage: disks"), Message(2, "disks: op(1): [failed]   x: hash verification failed")]
    found = failure.explain([*before, *messages(RECORDED[12])], RECORDED[12]["config"])
    assert str(found) == f"Ignition's files stage: storage.files[0]: {NO_DIRECTORY}"


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("[failed]   waiting for devices [/dev/vdb /dev/vdc]: device unit dev-vdc.device timeout", 1),
        ('mkfs failed: exit status 1: Cmd: "mkfs.ext4" "-F" "/run/ignition/dev_aliases/dev/vdb"', 0),
        (r"device unit dev-disk-by\x2did-virtio\x2ddata.device timeout", 2),
    ],
)
def test_a_device_is_known_by_all_its_names(text: str, entry: int) -> None:
    devices = ("/dev/vdb", "/dev/vdc", "/dev/disk/by-id/virtio-data")
    merged = {"storage": {"filesystems": [{"device": device} for device in devices]}}
    log = [
        Message(6, "Stage: disks"),
        Message(2, f"Ignition failed: failed to create filesystems: {text.rpartition(']: ')[2]}"),
    ]
    found = failure.explain(log, merged)
    assert found
    assert found.place == f"storage.filesystems[{entry}]"


def test_content_from_a_server_may_be_the_server_s_fault() -> None:
    recorded = json.loads(json.dumps(RECORDED[10]))
    assert explained(recorded).blame is Blame.CONFIG
    recorded["config"]["storage"]["files"][1]["contents"]["source"] = "https://example.com/x"
    assert explained(recorded).blame is Blame.EITHER


# --- the two lines for the screen ---


def lines_of(message: Message, transport: str) -> list[str]:
    """As Ignition writes a message; when it has failed, its config comes before that on standard output."""
    if transport == "syslog":
        return [message.text]
    config = ["{", '  "path": "/CRITICAL : Ignition failed: x"', "}"]
    name = {2: "CRITICAL", 3: "ERROR", 4: "WARNING", 6: "INFO", 7: "DEBUG"}[message.priority]
    return [*(config if message.text.startswith("Ignition failed") else []), f"{name:<9}: {message.text}"]


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """journalctl gives this log, in the form that it has; the merged config is the recorded one."""

    def journal(recorded: dict[str, Any], *, committed: bool, transport: str = "syslog") -> list[str]:
        merged = tmp_path / "ignition.json"
        merged.write_text(json.dumps(recorded["config"]))
        mark = tmp_path / "committed"
        mark.unlink(missing_ok=True)
        if committed:
            mark.touch()
        monkeypatch.setattr(places, "IGNITION_MERGED_CONFIG", merged)
        monkeypatch.setattr(places, "IGNITION_USER_CONFIG", tmp_path / "none")
        monkeypatch.setattr(places, "COMMITTED", mark)
        entries = [
            {
                "PRIORITY": str(message.priority) if transport == "syslog" else "6",
                "MESSAGE": text if text.isprintable() else list(text.encode()),
                "_TRANSPORT": transport,
            }
            for message in messages(recorded)
            for text in lines_of(message, transport)
        ]
        output = "".join(json.dumps(entry) + "\n" for entry in entries)
        monkeypatch.setattr(process, "run", lambda argv: output)
        return explain.lines()

    return journal


def test_before_the_commit_point_a_mended_config_is_enough(journal: Any) -> None:
    assert journal(RECORDED[0], committed=False) == [
        "Ignition's fetch-offline stage: storage.raid[0].level: raid level is required",
        "The image is unchanged. Mend the config, encrypt it again, and start the guest again.",
    ]


def test_behind_the_commit_point_a_config_at_fault_means_to_begin_anew(journal: Any) -> None:
    assert journal(RECORDED[12], committed=True) == [
        f"Ignition's files stage: storage.files[0]: {NO_DIRECTORY}",
        "This guest has to begin anew from the image, with a mended config.",
    ]


@pytest.mark.parametrize("number", range(len(RECORDED)))
def test_where_the_unit_logs_to_standard_output_the_same_is_told(journal: Any, number: int) -> None:
    """As those of the mount and files stages do."""
    told = journal(RECORDED[number], committed=True)
    assert journal(RECORDED[number], committed=True, transport="stdout") == told
    assert told


def test_behind_the_commit_point_a_server_that_is_gone_does_not(journal: Any) -> None:
    _, what_to_do = journal(RECORDED[20], committed=True)
    assert what_to_do == "The disk is half encrypted. Start the guest again, and the first boot goes on."


def test_where_it_can_be_either_both_are_said(journal: Any) -> None:
    _, what_to_do = journal(RECORDED[19], committed=True)
    assert re.match("Put the cause right, and start .*If the config is the cause.*begin anew", what_to_do)


def test_without_a_journal_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: Any) -> str:
        raise process.ToolError("journalctl", 1, "a word of the log")

    monkeypatch.setattr(process, "run", fail)
    assert explain.lines() == []
