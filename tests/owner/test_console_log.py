"""``secex explain``: of logs as guests, firmware and QEMU write them, and of others."""

from __future__ import annotations

import json
import os
import random
import re
import time
from pathlib import Path

import pytest
from support import json_schemas

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.cli import secex
from secex_firstboot.cli.verb import Exit
from secex_firstboot.owner import console_log, messages
from secex_firstboot.owner.console_log import Explanation, Outcome

FIRMWARE = "LOADPARM=[        ]\r\n\r\nUsing virtio-blk.\r\nUsing SCSI scheme.\r\n.............\r\n"
LINUX = "[    2.656406] Linux version 6.12.107-s390x (builder@example) #1 SMP\r\n"
START = FIRMWARE + LINUX
AGENT = "[   83.823486] secex-firstboot[339]: "
STEPS = "".join(
    f"{AGENT}[{number}/12] {step}: {what}\r\n"
    for number, step, what in (
        (1, "platform", "already done: Secure Execution guest, disk /dev/vda, 4096 MiB"),
        (2, "config", "decrypt the Ignition config on /dev/vdb"),
        (2, "config", "done in 5.2 s: Ignition has the config; the private key is gone"),
        (3, "hostkeys", "fetch ibm-z-hostkey-a"),
    )
)
UP = "[\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mmulti-user.target\x1b[0m - Multi-User System.\r\n"
COMPLETE = f"{AGENT}first boot is complete: 180 s in its steps, peak memory 300 of 996 MiB\r\n"
REVOKED = "the host-key document ibm-z-hostkey-a is revoked: get the current certificates"
MISSING = "no disk has the serial ignition_crypted: attach it as a virtio disk with serial=ignition_crypted"


def screen(why: str, unit: str = "secex-firstboot.service", cure: str = "Put the cause right.") -> str:
    return (
        "\r\n==============================\r\nsecex-firstboot: this guest cannot start.\r\n\r\n"
        f"what failed:  {unit}\r\nwhy:          {why}\r\nwhat to do:   {cure}\r\n\r\nPowering off.\r\n"
    )


def explain(tmp_path: Path, text: str | bytes) -> Explanation:
    path = tmp_path / "console.log"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return console_log.explain(path)


def id_of(found: Explanation) -> str | None:
    return found.cause.id if found.cause else None


def test_a_first_boot_that_went_well_is_told(tmp_path: Path) -> None:
    found = explain(
        tmp_path, START + STEPS + f"{AGENT}[3/12] hostkeys: done in 1 s: 1 documents\r\n" + COMPLETE + UP
    )
    assert (found.outcome, found.kernel, found.complete, found.up) == (
        Outcome.UP,
        "6.12.107-s390x",
        True,
        True,
    )
    assert found.steps == {"platform": True, "config": True, "hostkeys": True}
    assert found.cause is None


def test_a_refusal_is_told_with_its_step_and_the_row_of_its_id(tmp_path: Path) -> None:
    line = f"{AGENT}secex-firstboot: {MISSING} [SX-DISK-11]\r\n"
    found = explain(tmp_path, START + STEPS + line + screen(f"{MISSING} [SX-DISK-11]"))
    assert found.outcome is Outcome.REFUSED
    assert found.cause and found.cause.id == "SX-DISK-11" and found.cause.said == MISSING
    assert found.cause.section == "config"
    assert found.cause.cure == "attach the config with this serial"
    assert (found.failed_unit, found.screen_cure) == ("secex-firstboot.service", "Put the cause right.")


def test_a_line_without_the_screen_is_enough(tmp_path: Path) -> None:
    assert (
        id_of(explain(tmp_path, START + f"secex-firstboot: {REVOKED} [SX-HOSTKEY-32]\n")) == "SX-HOSTKEY-32"
    )


def test_of_messages_with_one_id_that_with_the_line_s_words_is_told(tmp_path: Path) -> None:
    for said, begins in (
        (
            "bootfs.roothash=x is not 64 lower-case hexadecimal digits: build it with that",
            "bootfs.roothash=VALUE",
        ),
        ("secex.network=x is not secex.network=always: build it with that", "secex.network=VALUE"),
    ):
        found = explain(tmp_path, START + f"secex-firstboot: {said} [SX-PLATFORM-10]\n")
        assert found.cause and found.cause.message.startswith(begins)


def test_an_id_of_a_newer_version_is_told_as_the_log_has_it(tmp_path: Path) -> None:
    found = explain(tmp_path, START + "secex-firstboot: something new: do this [SX-NEWER-99]\n")
    assert found.cause == console_log.Cause("SX-NEWER-99", "something new: do this", 7)


def test_ignition_s_reason_has_no_id_and_the_screen_s_cure(tmp_path: Path) -> None:
    why = "storage.files[2]: its content does not have the hash that the config gives"
    cure = "This guest has to begin anew from the image, with a mended config."
    found = explain(tmp_path, START + STEPS + screen(why, "ignition-files.service", cure))
    assert found.cause and (found.cause.id, found.cause.said) == ("", why)
    assert (found.failed_unit, found.screen_cure) == ("ignition-files.service", cure)


@pytest.mark.parametrize(
    ("line", "id", "words"),
    [
        ("Secure unpack facility is not available", "SX-LOG-01", "ordinary one"),
        (
            "qemu-system-s390x: KVM PV command 2 (KVM_PV_SET_SEC_PARMS) failed: header rc 108 rrc 5",
            "SX-LOG-02",
            "other machines",
        ),
        (
            "Protected boot failed: 0xa02, KVM_PV_SET_SEC_PARMS - RC: 0x108, RRC:0x5",
            "SX-LOG-02",
            "other machines",
        ),
        (
            "qemu-system-s390x: KVM PV command 4 (KVM_PV_VERIFY) failed: header rc 102 rrc 1a IOCTL rc: -22",
            "SX-LOG-03",
            "changed",
        ),
        ("Page digest list (PLD) mismatch.", "SX-LOG-03", "changed"),
        ("Protected boot has failed: 0xa02", "SX-LOG-04", "refuses the boot image"),
        ("Protected boot setup has failed: 0x402", "SX-LOG-04", "refuses the boot image"),
        ("! No IPL device available !", "SX-LOG-05", "nothing to start from"),
        ("No suitable device for IPL. Halting...", "SX-LOG-05", "nothing to start from"),
        ("The requested boot entry (2) is invalid", "SX-LOG-06", "loadparm"),
    ],
)
def test_what_the_firmware_refuses_is_told(tmp_path: Path, line: str, id: str, words: str) -> None:
    found = explain(tmp_path, FIRMWARE + line + "\r\n")
    assert found.outcome is Outcome.ENDED and not found.kernel
    assert found.cause and found.cause.id == id and words in found.cause.message


@pytest.mark.parametrize(
    ("line", "id", "words"),
    [
        (
            "Kernel panic - not syncing: VFS: Unable to mount root fs",
            "SX-LOG-07",
            "VFS: Unable to mount root fs",
        ),
        ("Out of memory: Killed process 412 (python3) total-vm:1kB", "SX-LOG-08", "ended python3 for want"),
        (
            "device-mapper: crypt: dm-3: INTEGRITY AEAD ERROR, sector 8",
            "SX-LOG-09",
            "not what the guest wrote",
        ),
        ("device-mapper: verity: 252:3: data block 17 is corrupted", "SX-LOG-10", "not what was published"),
        ("I/O error, dev vda, sector 2048 op 0x0:(READ) flags 0x0", "SX-LOG-11", "error of vda"),
        ("Buffer I/O error on dev dm-4, logical block 3, async page read", "SX-LOG-11", "error of dm-4"),
        ("Entering emergency mode. Exit the shell to continue.", "SX-LOG-13", "does not say why"),
    ],
)
def test_what_the_kernel_and_dracut_say_is_told(tmp_path: Path, line: str, id: str, words: str) -> None:
    found = explain(tmp_path, START + f"[    9.1] {line}\r\n")
    assert found.outcome is Outcome.ENDED
    assert found.cause and found.cause.id == id and words in found.cause.message


def test_what_says_why_comes_before_what_says_that_it_ended(tmp_path: Path) -> None:
    crash = "KVM PV command 2 (KVM_PV_SET_SEC_PARMS) failed: header rc 108 rrc 5\n"
    found = explain(
        tmp_path, FIRMWARE + "Protected boot has failed: 0xa02\n" + crash + "Guest crashed on cpu 0\n"
    )
    assert id_of(found) == "SX-LOG-02"
    assert [each.id for each in found.also] == ["SX-LOG-04", "SX-LOG-12"]


def test_a_screen_that_gives_no_reason_leaves_it_to_what_came_before(tmp_path: Path) -> None:
    error = "[   9.1] device-mapper: crypt: dm-3: INTEGRITY AEAD ERROR, sector 8\r\n" * 3
    assert id_of(explain(tmp_path, START + error + screen("see the messages above"))) == "SX-LOG-09"
    assert id_of(explain(tmp_path, START + screen("see the messages above"))) == "SX-LOG-13"


def test_a_log_that_ends_in_a_step_says_so(tmp_path: Path) -> None:
    found = explain(tmp_path, START + STEPS)
    assert found.outcome is Outcome.UNFINISHED and found.cause
    assert (found.cause.id, "at hostkeys" in found.cause.message) == ("SX-LOG-14", True)
    assert found.last_line.endswith("hostkeys: fetch ibm-z-hostkey-a")


@pytest.mark.parametrize(
    ("text", "id"), [(START, "SX-LOG-15"), (FIRMWARE, "SX-LOG-17"), (START + COMPLETE, None)]
)
def test_a_log_that_ends_elsewhere_says_where(tmp_path: Path, text: str, id: str | None) -> None:
    found = explain(tmp_path, text)
    assert (found.outcome, id_of(found)) == (Outcome.UNFINISHED, id)


def test_the_last_start_counts(tmp_path: Path) -> None:
    failed = START + STEPS + screen(f"{REVOKED} [SX-HOSTKEY-32]")
    assert explain(tmp_path, failed + START + UP).outcome is Outcome.UP
    found = explain(tmp_path, START + UP + failed)
    assert (found.starts, id_of(found)) == (2, "SX-HOSTKEY-32")
    assert (
        found.cause
        and found.cause.line == (START + UP + failed)[: (START + UP + failed).index("why:")].count("\n") + 1
    )


def test_qemu_s_log_has_starts_of_its_own(tmp_path: Path) -> None:
    begin = "2026-12-01 10:00:00.000+0000: starting up libvirt version: 10.10.0, qemu version: 9.2.1\n"
    fault = "KVM PV command 2 (KVM_PV_SET_SEC_PARMS) failed: header rc 108 rrc 5 IOCTL rc: -22\n"
    assert id_of(explain(tmp_path, begin + fault)) == "SX-LOG-02"
    assert explain(tmp_path, begin + fault + begin).outcome is Outcome.UNFINISHED


def test_what_went_wrong_before_it_came_up_did_not_end_it(tmp_path: Path) -> None:
    error = "[   9.1] I/O error, dev vdb, sector 1\r\n"
    assert explain(tmp_path, START + error + UP).outcome is Outcome.UP
    assert id_of(explain(tmp_path, START + UP + error)) == "SX-LOG-11"


@pytest.mark.parametrize("text", ["", "\n", "Hello\n", "\0" * 100, "why: nothing\n"[5:], "\x1b[2J"])
def test_what_is_no_console_log_is_not_known(tmp_path: Path, text: str) -> None:
    found = explain(tmp_path, text)
    assert (found.outcome, found.starts, found.cause) == (Outcome.UNKNOWN, 0, None)


# --- hostile logs ---


def test_escape_sequences_are_gone(tmp_path: Path) -> None:
    said = "\x1b]0;title\x07no disk\x1b[31;1m has \x9b31mthe \x1bcserial\x1b]52;c;QQ==\x1b\\ x [SX-DISK-11]"
    found = explain(tmp_path, START + f"secex-firstboot: {said}\n")
    assert found.cause and found.cause.said == "no disk has 31mthe serial x"


def test_of_a_large_log_the_end_is_read_in_seconds(tmp_path: Path) -> None:
    end = (START + STEPS + screen(f"{REVOKED} [SX-HOSTKEY-32]")).encode()
    for filling in (
        b"\n",
        b"a\n",
        b"[" * 3000 + b"\n",
        b"\x1b]" * 1500 + b"\n",
        b"I/O error, dev " * 100 + b"\n",
    ):
        before = time.monotonic()
        found = explain(tmp_path, filling * ((3 << 20) // len(filling)) + end)
        assert time.monotonic() - before < 60
        assert found.cut and found.cause
        assert (found.cause.id, found.cause.line) == ("SX-HOSTKEY-32", None)


def test_a_log_of_nothing_but_ids_is_told_in_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = "".join(
        f"secex-firstboot: {'x' * 5000} [SX-{a}{b}-{n:02}]\n" for a in "ABC" for b in "ABC" for n in range(99)
    )
    path = tmp_path / "console.log"
    path.write_text(START + ids)
    secex.main(["explain", str(path)])
    assert len(capsys.readouterr().out) < 50_000


def test_random_bytes_break_nothing(tmp_path: Path) -> None:
    chance = random.Random(1)  # noqa: S311
    pieces = [
        START,
        STEPS,
        UP,
        screen("x"),
        "\x1b[",
        "[1/12] ",
        "why: ",
        "\xff",
        "LOADPARM=[",
        "secex-firstboot: [",
    ]
    for _ in range(200):
        text = "".join(chance.choice(pieces)[: chance.randrange(60)] for _ in range(chance.randrange(40)))
        explain(tmp_path, text.encode("latin-1"))


@pytest.mark.parametrize("kind", ["nothing", "directory", "fifo"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(Refusal, match="SX-LOG-16"):
        console_log.explain(path)


# --- the table, and the command ---


def test_every_message_has_a_section_and_no_marks() -> None:
    for id, rows in messages.all_of_them().items():
        assert re.fullmatch(r"SX-[A-Z]+-\d\d", id)
        for row in rows:
            assert row.section and row.message and row.cure
            assert not re.search(r"`|\]\(", row.message + row.cure)


def test_each_sign_has_its_words() -> None:
    for sign in console_log._SIGNS:
        row = messages.of(sign.id)
        assert row
        assert re.compile(sign.pattern).groups == row.message.count("WHAT")


def test_programs_get_what_the_schema_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "console.log"
    for text, code in (
        (START + STEPS + screen(f"{REVOKED} [SX-HOSTKEY-32]"), Exit.DONE),
        (START + screen("a reason without an ID"), Exit.DONE),
        (START + UP, Exit.DONE),
        ("nothing", Exit.FAILED),
    ):
        path.write_text(text)
        assert secex.main(["explain", str(path), "--json"]) == code
        json_schemas.validate(json.loads(capsys.readouterr().out), "explain")


def test_people_get_cause_place_and_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "console.log"
    path.write_text(START + STEPS + screen(f"{MISSING} [SX-DISK-11]"))
    assert secex.main(["explain", str(path)]) == Exit.DONE
    page = " ".join(capsys.readouterr().out.split())
    for words in ("2 of 12 steps are done", "[SX-DISK-11]", '"config"', "attach the config with this serial"):
        assert words in page
    path.write_text("nothing")
    assert secex.main(["explain", str(path)]) == Exit.FAILED
    assert "not known" in capsys.readouterr().out
