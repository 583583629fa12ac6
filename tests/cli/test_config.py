"""``secex config``: what it writes passes ``secex check``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from support import needs
from support.owners_desk import CHAIN, SSH_KEY, Desk

from secex_firstboot.hostkeys import document
from secex_firstboot.ignition import config, inline


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    needs.require("openssl")
    return Desk(tmp_path, capsys)


def test_what_it_writes_passes_check(desk: Desk) -> None:
    made = desk.file("a.ign")
    assert desk.secex("config", *desk.material(), "--hostname=a.example.com", "--output", made).code == 0
    checked = desk.secex("check", made, *desk.certificates(), "--offline", "--json")
    assert checked.code == 0
    steps = {row["step"]: row for row in json.loads(checked.out)["steps"]}
    assert steps["hostkeys"]["state"] == "ready"
    untold = [] if shutil.which("ignition-validate") else ["what Ignition itself looks at"]
    assert [each.partition(" (")[0] for each in steps["config"]["untold"]] == untold


def test_documents_proof_key_and_name_are_where_they_belong(desk: Desk) -> None:
    printed = desk.secex("config", *desk.material(), "--hostname=a", "--user=ada").out
    found = config.parse(printed.encode())
    (user,) = found.passwd.users
    assert (user.name, user.ssh_authorized_keys) == ("ada", [SSH_KEY])
    files = {each.path: inline.content(each.contents, 1 << 20) for each in found.storage.files}
    given = desk.file("host-a.crt").read_bytes()
    assert files["/etc/se-hostkeys/ibm-z-hostkey-host-a"] == document.parse("", given).pem
    assert files["/etc/hostname"] == b"a\n"
    assert {path for path in files if "certs" in path} == {
        f"/etc/se-hostkeys/certs/{name}" for name in {**CHAIN.certificates(), **CHAIN.crls()}
    } - {"/etc/se-hostkeys/certs/root.crt"}


def test_the_same_for_butane_has_the_same_files(desk: Desk) -> None:
    """Read by the few forms that it has: Butane is not on every machine that runs this."""
    words = [*desk.material(), "--hostname=a"]
    yaml = desk.secex("config", "--butane", *words).out
    assert yaml.startswith("variant: fcos\nversion: 1.4.0\n")
    blocks = re.findall(
        r"    - path: (/\S+)\n      overwrite: true\n      mode: 0644\n      contents:\n        inline: \|\n"
        r"((?: {10}.*\n)+)",
        yaml,
    )
    written = {path: re.sub("^ {10}", "", text, flags=re.MULTILINE).encode() for path, text in blocks}
    found = config.parse(desk.secex("config", *words).out.encode())
    assert written == {each.path: inline.content(each.contents, 1 << 20) for each in found.storage.files}
    assert f"- {json.dumps(SSH_KEY)}\n" in yaml


def test_a_name_with_odd_characters_is_made_plain(desk: Desk) -> None:
    words = desk.material()
    odd = desk.file("my host (1).crt", desk.file("host-a.crt").read_bytes())
    found = config.parse(desk.secex("config", f"--hostkey={odd}", words[1]).out.encode())
    assert [each.path for each in found.storage.files] == ["/etc/se-hostkeys/ibm-z-hostkey-my-host--1-"]


@pytest.mark.parametrize("name", ["A", "a_b", "-a", "a..b", "a" * 65, "a\nb", ""])
def test_a_host_name_that_is_none_is_refused(desk: Desk, name: str) -> None:
    refused = desk.secex("config", *desk.material(), f"--hostname={name}")
    assert (refused.code, refused.out) == (3, "")
    assert "the host name is none" in refused.err


@pytest.mark.parametrize("name", ["a", "a-1.example.com", "1" * 63])
def test_one_that_is_a_name_is_taken(desk: Desk, name: str) -> None:
    assert desk.secex("config", *desk.material(), f"--hostname={name}").code == 0


def test_two_files_for_one_place_are_refused(desk: Desk) -> None:
    words = desk.material()
    refused = desk.secex("config", *words, words[0])
    assert refused.code == 3
    assert "is the second file for /etc/se-hostkeys/ibm-z-hostkey-host-a" in refused.err


@pytest.mark.parametrize(
    "content",
    ["-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n", "", "\n", f"{SSH_KEY}\nno key\n", f"{SSH_KEY}\x1b[2J\n"],
)
def test_what_is_no_ssh_public_key_is_refused(desk: Desk, content: str) -> None:
    words = desk.material()
    wrong = desk.place / "wrong"
    wrong.write_text(content)
    refused = desk.secex("config", words[0], f"--ssh-key={wrong}")
    assert (refused.code, refused.out) == (3, "")
    assert f"{wrong} holds something else than SSH public keys" in refused.err


def test_several_keys_and_comments_are_taken(desk: Desk) -> None:
    words = desk.material()
    keys = desk.file("keys", f"# of us\n{SSH_KEY}\n\nssh-rsa AAAA=\n")
    found = config.parse(desk.secex("config", words[0], f"--ssh-key={keys}").out.encode())
    assert found.passwd.users[0].ssh_authorized_keys == [SSH_KEY, "ssh-rsa AAAA="]


def test_a_user_that_ignition_could_not_make_is_refused(desk: Desk) -> None:
    refused = desk.secex("config", *desk.material(), "--user=a:b")
    assert (refused.code, refused.out) == (3, "")
    assert "passwd.users[0]" in refused.err


def test_a_file_that_is_there_is_left(desk: Desk) -> None:
    mine = desk.file("mine.ign", "edited")
    refused = desk.secex("config", *desk.material(), "--output", mine)
    assert refused.code == 3
    assert f"{mine} is there already" in refused.err
    assert mine.read_text() == "edited"


def test_what_is_no_document_is_refused(desk: Desk) -> None:
    words = desk.material()
    refused = desk.secex("config", f"--hostkey={desk.file('id.pub')}", words[1])
    assert (refused.code, refused.out) == (3, "")
    assert "the host-key document id.pub is no X.509 certificate" in refused.err
