"""``secex encrypt``: what it writes, first boot opens, with the code that the guest has."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import needs, openpgp_messages
from support.openpgp_messages import Gpg
from support.owners_desk import Desk, Output

from secex_firstboot.ignition import openpgp, packets
from secex_firstboot.ignition.signers import FOR_IMAGE
from secex_firstboot.owner import encrypt

Encrypt = Callable[..., Output]
LIMIT = openpgp.CONFIG_LIMIT


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    needs.require("openssl", "gpg", "gpgconf")
    made = Desk(tmp_path, capsys)
    made.config()
    made.certificates()
    made.metadata()
    return made


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpg]:
    """Who has a keyring of her own, and gpg-agent behind it."""
    made = openpgp_messages.with_a_home()
    gpg = next(made)
    monkeypatch.setenv("GNUPGHOME", str(gpg.home))
    yield gpg
    next(made, None)


@pytest.fixture
def opened(desk: Desk, monkeypatch: pytest.MonkeyPatch, ada: Gpg) -> Callable[[Path], bytes]:
    """What the agent gets of a config disk in the guest."""
    openpgp_messages.confine(monkeypatch)
    key = desk.file("image.key", desk.key.private)
    work = ada.home.with_name(f"{ada.home.name}-work")

    def opened(disk: Path) -> bytes:
        work.mkdir(mode=0o755)
        try:
            return openpgp.decrypt(openpgp.read_message(disk), key, work)
        finally:
            work.rmdir()

    return opened


@pytest.fixture
def encrypted(desk: Desk) -> Encrypt:
    """Of config.ign for linux.json, with these options in addition."""

    def encrypted(*words: str | Path, config: Path | None = None) -> Output:
        return desk.secex(
            "encrypt",
            config or desk.file("config.ign"),
            f"--metadata={desk.file('linux.json')}",
            f"--certificates={desk.place / 'image-certs'}",
            "--offline",
            *words,
        )

    return encrypted


def signer(gpg: Gpg, user: str) -> str:
    """The fingerprint of a fresh key."""
    gpg.make_key(user)
    found = re.search(rb"^fpr:+([0-9A-F]{40}):", gpg("--with-colons", "--list-keys", user), re.MULTILINE)
    assert found
    return found[1].decode()


def test_first_boot_opens_it_and_finds_the_config(
    desk: Desk, encrypted: Encrypt, opened: Callable[[Path], bytes]
) -> None:
    made = encrypted()
    assert made.code == 0
    assert f"config key  {desk.key.fingerprint}\n" in made.out
    plain = opened(desk.file("config.asc"))
    assert json.loads(plain) == json.loads(desk.file("config.ign").read_bytes())


def test_it_fills_whole_blocks_of_a_disk_and_is_for_its_owner_alone(desk: Desk, encrypted: Encrypt) -> None:
    assert encrypted("--output", desk.file("a.asc")).code == 0
    assert desk.file("a.asc").stat().st_size % 512 == 0
    assert desk.file("a.asc").stat().st_mode & 0o777 == 0o600


def test_its_size_tells_no_more_than_a_power_of_two(desk: Desk, encrypted: Encrypt) -> None:
    """The text that would be compressed well is as long as the one that would not."""
    content, sizes = json.loads(desk.file("config.ign").read_text()), set()
    for text in ("a" * 10, "a" * 20_000, os.urandom(10_000).hex()):
        file = {"path": "/etc/x", "contents": {"source": f"data:,{text}"}}
        storage = content["storage"] | {"files": [*content["storage"]["files"], file]}
        desk.file("x.ign", json.dumps(content | {"storage": storage}))
        assert encrypted(config=desk.file("x.ign")).code == 0
        sizes.add(desk.file("x.asc").stat().st_size)
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("size", "becomes"),
    [
        (1, 1 << 16),
        (1 << 16, 1 << 16),
        ((1 << 16) + 1, 1 << 17),
        (LIMIT, LIMIT),
    ],
)
def test_sizes(size: int, becomes: int) -> None:
    assert len(encrypt.padded(bytes(size))) == becomes


def test_the_largest_config_there_may_be_is_still_a_message_that_first_boot_reads() -> None:
    """Armored, as it is written."""
    digits = -(-LIMIT // 3) * 4
    assert digits + digits // 64 + (1 << 16) < packets.MESSAGE_LIMIT


def test_a_message_of_before_is_replaced_only_by_a_whole_one(desk: Desk, encrypted: Encrypt) -> None:
    old = desk.file("config.asc", "of before")
    assert encrypted(config=desk.file("none.ign")).code == 3
    assert encrypted("--sign-with=nobody").code == 3
    assert old.read_text() == "of before"
    assert encrypted().code == 0
    assert old.read_bytes().startswith(b"-----BEGIN PGP MESSAGE-----")


def test_the_config_itself_is_not_overwritten(desk: Desk, encrypted: Encrypt) -> None:
    config = desk.file("config.ign")
    before = config.read_bytes()
    refused = encrypted("--output", config)
    assert refused.code == 3
    assert f"{config} is the config itself" in refused.err
    assert config.read_bytes() == before


def test_the_user_s_gpg_conf_adds_no_reader(desk: Desk, encrypted: Encrypt, ada: Gpg) -> None:
    (ada.home / "gpg.conf").write_text(f"encrypt-to {signer(ada, 'ada')}\n")
    assert encrypted("--sign-with=ada").code == 0
    packets = ada("--list-packets", "--list-only", str(desk.file("config.asc")))
    assert packets.count(b":pubkey enc packet:") == 1


# --- refused ---


def test_what_check_refuses_is_refused_unless_told(
    desk: Desk, encrypted: Encrypt, opened: Callable[[Path], bytes]
) -> None:
    text = '{"ignition": {"version": "3.3.0"}}'
    config = desk.file("no-host-key.ign", text)
    refused = encrypted(config=config)
    assert refused.code == 3
    assert re.search("^hostkeys +refused  the Ignition config names no host key", refused.err, re.MULTILINE)
    assert f"first boot would refuse {config}" in refused.err
    assert not desk.file("no-host-key.asc").exists()
    assert encrypted("--even-if-refused", config=config).code == 0
    assert opened(desk.file("no-host-key.asc")).rstrip() == text.encode()


def test_what_is_no_config_is_refused_even_so(desk: Desk, encrypted: Encrypt) -> None:
    refused = encrypted("--even-if-refused", config=desk.file("text", "hello"))
    assert refused.code == 3
    assert not desk.file("text.asc").exists()


def test_what_could_not_be_told_is_said_and_is_no_refusal(desk: Desk, encrypted: Encrypt) -> None:
    content = json.loads(desk.file("config.ign").read_text())
    content["ignition"]["version"] = "3.5.0"
    made = encrypted(config=desk.file("new.ign", json.dumps(content)))
    assert made.code == 0
    assert "not told here: whether the image's Ignition is 2.20 or newer" in made.err


def test_a_key_that_is_not_the_metadata_s_is_refused(desk: Desk, encrypted: Encrypt, ada: Gpg) -> None:
    fingerprint = signer(ada, "another")
    another = desk.file("another.asc", ada("--armor", "--export", "another"))
    refused = encrypted(f"--key={another}")
    assert refused.code == 3
    assert (
        f"{another} is key {fingerprint}, and the image's metadata name {desk.key.fingerprint}" in refused.err
    )
    assert encrypted(f"--key={desk.file('linux.pub.asc')}").code == 0


def test_an_image_that_is_not_sealed_has_no_key(desk: Desk, encrypted: Encrypt) -> None:
    desk.metadata(config_key=None)
    refused = encrypted()
    assert refused.code == 3
    assert "the image's metadata name none" in refused.err


@pytest.mark.parametrize("kind", ["text", "private", "two", "none"])
def test_what_is_not_one_public_key_is_refused(desk: Desk, encrypted: Encrypt, ada: Gpg, kind: str) -> None:
    private = ada.make_key("ada")
    ada.make_key("eve")
    content = {"text": b"hello", "private": private, "two": ada("--armor", "--export"), "none": b""}[kind]
    refused = encrypted(f"--key={desk.file('key', content)}")
    assert refused.code == 3
    said = {"two": "has 2 OpenPGP public keys", "none": "is missing or no regular file"}
    assert said.get(kind, "has 0 OpenPGP public keys") in refused.err


def test_a_config_for_no_image_is_refused_and_its_key_alone_is_enough(desk: Desk) -> None:
    config = desk.file("config.ign")
    refused = desk.secex("encrypt", config, "--offline")
    assert refused.code == 3
    assert "nothing says which image the config is for" in refused.err
    made = desk.secex("encrypt", config, "--offline", f"--key={desk.file('linux.pub.asc')}")
    assert (made.code, f"config key  {desk.key.fingerprint}\n" in made.out) == (0, True)


# --- signed ---


def status(desk: Desk, gpg: Gpg) -> str:
    """What gpg says of the message, with the image's key and the signer's."""
    gpg("--import", stdin=desk.key.private)
    with openpgp.read_message(desk.file("config.asc")) as message:
        return gpg("--status-fd=1", "--output=/dev/null", "--yes", "--decrypt", stdin=message.read()).decode()


def test_a_signature_is_for_this_image_and_ends(
    desk: Desk, encrypted: Encrypt, ada: Gpg, opened: Callable[[Path], bytes]
) -> None:
    fingerprint = signer(ada, "ada")
    desk.metadata(config_signers=(fingerprint,))
    made = encrypted("--sign-with=ada", "--expires=2070-12-31")
    assert made.code == 0
    assert f"signed by   {fingerprint}, expires: 2070-12-31\n" in made.out
    assert json.loads(opened(desk.file("config.asc")))
    seen = status(desk, ada)
    name = FOR_IMAGE
    assert f"NOTATION_NAME {name}\n" in seen
    assert f"NOTATION_DATA {desk.key.fingerprint}\n" in seen
    # doc/DETAILS of GnuPG; hash 10 is SHA-512.
    (valid,) = re.findall(r"VALIDSIG (.*)", seen)
    _, _, _, end, version, _, _, digest, kind, primary = valid.split()
    assert (end, version, digest, kind, primary) == ("3187295999", "4", "10", "00", fingerprint)
    assert seen.count("NEWSIG") == 1


def test_without_an_end_a_signature_has_none(desk: Desk, encrypted: Encrypt, ada: Gpg) -> None:
    desk.metadata(config_signers=(signer(ada, "ada"),))
    assert encrypted("--sign-with=ada").code == 0
    (valid,) = re.findall(r"VALIDSIG (.*)", status(desk, ada))
    assert valid.split()[3] == "0"


def test_days_count_from_now(desk: Desk, encrypted: Encrypt, ada: Gpg) -> None:
    desk.metadata(config_signers=(signer(ada, "ada"),))
    assert encrypted("--sign-with=ada", "--expires=30d").code == 0
    (valid,) = re.findall(r"VALIDSIG (.*)", status(desk, ada))
    _, _, made, end, *_ = valid.split()
    assert int(end) - int(made) == 30 * 86_400


PINENTRY = """\
echo OK
while read -r command rest; do
    [ "$command" = GETPIN ] && echo D {answer}
    echo OK
done"""


def test_the_agent_asks_for_the_passphrase(desk: Desk, encrypted: Encrypt, ada: Gpg) -> None:
    """As for the number of a smart card: with whatever pinentry the agent is told to use."""
    ada.make_key("ada", passphrase="secret")
    pinentry = ada.home / "pinentry"
    (ada.home / "gpg-agent.conf").write_text(f"pinentry-program {pinentry}\n")
    for answer, code in (("wrong", 1), ("secret", 0)):
        pinentry.write_text(f"#!/bin/sh\n{PINENTRY.format(answer=answer)}\n")
        pinentry.chmod(0o755)
        subprocess.run(["gpgconf", "--homedir", ada.home, "--kill", "gpg-agent"], check=True)
        assert encrypted("--sign-with=ada").code == code
        assert desk.file("config.asc").exists() == (code == 0)


def test_an_image_with_signers_gets_no_config_that_none_of_them_has_signed(
    desk: Desk, encrypted: Encrypt, ada: Gpg
) -> None:
    fingerprint, other = signer(ada, "ada"), signer(ada, "eve")
    desk.metadata(config_signers=(fingerprint,))
    for words, says in (
        ([], "the image takes no config that is not signed"),
        (["--sign-with=eve"], f"the image takes no config that key {other} has signed"),
    ):
        refused = encrypted(*words)
        assert refused.code == 3
        assert says in refused.err and fingerprint in refused.err
        assert not desk.file("config.asc").exists()
    assert encrypted(f"--sign-with={fingerprint}").code == 0


def test_an_image_without_signers_is_said_not_to_look(desk: Desk, encrypted: Encrypt, ada: Gpg) -> None:
    signer(ada, "ada")
    made = encrypted("--sign-with=ada")
    assert made.code == 0
    assert "the image does not look at signatures" in made.err


@pytest.mark.parametrize(("user", "number"), [("nobody", 0), ("example", 2), ("-", 0)])
def test_a_key_that_gpg_has_not_or_has_twice_is_refused(
    encrypted: Encrypt, ada: Gpg, user: str, number: int
) -> None:
    ada.make_key("ada@example.com")
    ada.make_key("eve@example.com")
    refused = encrypted(f"--sign-with={user}")
    assert refused.code == 3
    assert f"gpg has {number} private keys for {user}" in refused.err


def test_only_a_signature_expires(encrypted: Encrypt) -> None:
    refused = encrypted("--expires=30d")
    assert refused.code == 3
    assert "only a signature expires" in refused.err


@pytest.mark.parametrize(
    "when", ["0d", "30", "tomorrow", "2026-13-01", "2020-01-01", "2100-01-01", "51y", "-1d", "30d\n", ""]
)
def test_an_end_that_is_none_makes_no_sense(encrypted: Encrypt, when: str) -> None:
    assert encrypted("--sign-with=ada", f"--expires={when}").code == 2


def test_nothing_secret_is_left_behind(
    desk: Desk, encrypted: Encrypt, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = desk.place / "memory"
    memory.mkdir()
    monkeypatch.setattr("secex_firstboot.basic.files._MEMORY", memory)
    assert encrypted().code == 0
    assert list(memory.iterdir()) == []
