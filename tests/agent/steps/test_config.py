"""The step that decrypts the config: what it says, on the console too, and what it leaves in the kernel."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import REPOSITORY, elsewhere
from support.machine import (
    CONFIG,
    FIRST_BOOT,
    Machine,
    observe,
    put,
)
from support.openpgp_messages import Gpg, confine, flipped, with_a_home

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context, Status
from secex_firstboot.agent.steps.config import DecryptConfig
from secex_firstboot.basic import memory
from secex_firstboot.basic.errors import DeviceMissing, FirstbootError, Refusal
from secex_firstboot.contract import paths
from secex_firstboot.contract.dry_run import State
from secex_firstboot.ignition import config, openpgp, specification
from secex_firstboot.storage import disk

NO_LOCAL_LOGIN = REPOSITORY / "dracut/no-local-login.ign"
GOOD = {"ignition": {"version": "3.3.0"}}
CONTEXT = Context("ignition.firstboot")


@pytest.fixture(scope="module")
def gpg() -> Iterator[Gpg]:
    yield from with_a_home()


@pytest.fixture(scope="module")
def key(gpg: Gpg) -> bytes:
    return gpg.make_key("image")


@pytest.fixture
def config_disk(key: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A guest before its first boot, with an Ignition that knows specification 3.4."""
    confine(monkeypatch)
    elsewhere.move(monkeypatch, tmp_path)
    paths.PRIVATE_KEY.parent.mkdir(parents=True)
    paths.PRIVATE_KEY.write_bytes(key)
    paths.NO_LOCAL_LOGIN.parent.mkdir(parents=True)
    paths.NO_LOCAL_LOGIN.write_text("{}")
    monkeypatch.setattr(disk, "find_by_serial", lambda serial: tmp_path / "disk")
    monkeypatch.setattr(specification, "newest_known", lambda: "3.5.0-experimental")
    return tmp_path / "disk"


def refusal(config_disk: Path, message: bytes) -> str:
    config_disk.write_bytes(message + bytes(512))
    with pytest.raises(Refusal) as refused:
        DecryptConfig().perform(CONTEXT)
    assert refused.value.__suppress_context__ or not refused.value.__context__
    assert not places.IGNITION_USER_CONFIG.exists()
    assert not paths.PRIVATE_KEY.exists()
    with pytest.raises(Refusal) as again:
        DecryptConfig().observe(CONTEXT)
    assert str(again.value) == str(refused.value)
    return str(refused.value)


def test_a_good_config_is_handed_to_ignition_as_it_is(gpg: Gpg, config_disk: Path) -> None:
    text = json.dumps(GOOD).encode()
    config_disk.write_bytes(gpg.encrypt(text) + bytes(512))
    DecryptConfig().perform(CONTEXT)
    assert places.IGNITION_USER_CONFIG.read_bytes() == text
    assert not paths.PRIVATE_KEY.exists()


def referring(**references: object) -> bytes:
    return json.dumps({"ignition": {"version": "3.3.0", "config": references}}).encode()


def inline(text: bytes) -> dict[str, str]:
    return {"source": f"data:;base64,{base64.b64encode(text).decode()}"}


def test_a_config_that_the_host_can_put_in_the_place_of_the_users_is_refused(
    gpg: Gpg, config_disk: Path
) -> None:
    key, changeable = paths.PRIVATE_KEY.read_bytes(), {"source": "http://a.example/secret"}
    for text in (
        referring(replace=changeable),
        referring(merge=[changeable]),
        referring(merge=[inline(referring(replace=changeable))]),
    ):
        said = refusal(config_disk, gpg.encrypt(text))
        assert "comes over http without verification.hash" in said
        assert "secret" not in said
        places.CONFIG_REFUSED.unlink()
        paths.PRIVATE_KEY.write_bytes(key)
    protected = {**changeable, "verification": {"hash": f"sha256-{'0' * 64}"}}
    text = referring(merge=[{"source": "https://a.example/"}, inline(referring(replace=protected))])
    config_disk.write_bytes(gpg.encrypt(text) + bytes(512))
    DecryptConfig().perform(CONTEXT)
    assert places.IGNITION_USER_CONFIG.read_bytes() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        '{"ignition": {"version": "3.3.0"}',
        '{"ignition": {"version": 3}}',
        '{"ignition": {"version": "2.3.0"}}',
        '{"ignition": {"version": "3.4.1"}}',
        '{"ignition": {"version": "3.9.0"}}',
        '{"ignition": {"version": "3.3.0"}, "storage": {"files": [{"path": 1}]}}',
        '{"ignition": {"version": "3.3.0", "config": {"merge": [{"source": "data:,secret"}]}}}',
        "\0",
        "[" * 100_000,
    ],
)
def test_of_a_config_that_decrypted_the_console_does_not_show_what_is_wrong(
    gpg: Gpg, config_disk: Path, text: str
) -> None:
    assert refusal(config_disk, gpg.encrypt(text.encode())) == str(openpgp.refused())


def test_an_altered_message_is_refused_in_the_same_words(gpg: Gpg, config_disk: Path) -> None:
    message = gpg.encrypt(json.dumps(GOOD).encode())
    assert refusal(config_disk, flipped(message, -5)) == str(openpgp.refused())


def test_what_anybody_can_see_on_the_disk_is_said(gpg: Gpg, config_disk: Path) -> None:
    assert "is empty" in refusal(config_disk, b"")


def test_the_words_say_where_the_owner_learns_more() -> None:
    assert "secex check FILE" in openpgp.refused().cure


def test_key_and_config_are_mixed_into_the_kernels_random_numbers_before_any_key_is_made(
    gpg: Gpg, key: bytes, config_disk: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kernel does not show what is in its pool: a file and a call stand in for it."""
    pool, asked = tmp_path / "urandom", []
    pool.touch()
    monkeypatch.setattr(memory, "_POOL", pool)

    def ioctl(file: object, request: int) -> int:
        asked.append((request, pool.stat().st_size, places.IGNITION_USER_CONFIG.exists()))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    text = json.dumps(GOOD).encode()
    config_disk.write_bytes(gpg.encrypt(text))
    DecryptConfig().perform(CONTEXT)
    assert pool.read_bytes() == hashlib.sha512(key).digest() + hashlib.sha512(text).digest()
    assert asked == [(0x5207, 128, False)]  # RNDRESEEDCRNG, when both are in, before anything else happens


# --- whose it is ---


def test_a_config_that_no_signer_of_the_image_has_signed_is_refused_before_it_is_read(
    gpg: Gpg, config_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, key = json.dumps(GOOD).encode(), paths.PRIVATE_KEY.read_bytes()
    paths.CONFIG_SIGNERS.mkdir(parents=True)
    (paths.CONFIG_SIGNERS / f"{fingerprint(gpg, 'image')}.asc").write_bytes(gpg("--export", "image"))
    with monkeypatch.context() as unread:
        unread.setattr(config, "parse", lambda text: pytest.fail("it was read"))
        assert refusal(config_disk, gpg.encrypt(text)) == str(openpgp.refused())
    places.CONFIG_REFUSED.unlink()
    paths.PRIVATE_KEY.write_bytes(key)
    config_disk.write_bytes(gpg.encrypt(text, "--sign", "--local-user=image") + bytes(512))
    warned: list[str] = []
    DecryptConfig().perform(Context("ignition.firstboot", warn=warned.append))
    assert places.IGNITION_USER_CONFIG.read_bytes() == text
    assert not warned


def fingerprint(gpg: Gpg, user: str) -> str:
    listed = gpg("--with-colons", "--list-keys", user).decode()
    found: list[str] = re.findall(r"^fpr:+([0-9A-F]{40}):", listed, re.M)
    return found[0]


def test_an_image_without_signers_says_that_anybody_can_send_a_config(gpg: Gpg, config_disk: Path) -> None:
    config_disk.write_bytes(gpg.encrypt(json.dumps(GOOD).encode()) + bytes(512))
    warned: list[str] = []
    DecryptConfig().perform(Context("ignition.firstboot", warn=warned.append))
    assert warned == ["the image names no signers, so anybody can send it a config"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "signed by one of nobody"),
        (["A.asc", "B.asc"], "signed by one of A, B"),
        (["A.asc", "bound"], "signed, for this image, by one of A"),
    ],
)
def test_before_it_is_decrypted_it_is_told_who_must_have_signed_it(
    machine: Machine, names: list[str], says: str
) -> None:
    put(paths.PRIVATE_KEY)
    paths.CONFIG_SIGNERS.mkdir(parents=True)
    for name in names:
        put(paths.CONFIG_SIGNERS / name)
    machine.serials["ignition_crypted"] = Path("/dev/vdb")
    assert observe(machine, DecryptConfig()).detail.endswith(f"a config is {says}")


# --- what it says of what it sees ---


def test_config_is_ready_with_a_private_key_and_a_config_disk(machine: Machine) -> None:
    put(paths.PRIVATE_KEY)
    machine.serials["ignition_crypted"] = Path("/dev/vdb")
    assert observe(machine, DecryptConfig()) == Status(
        State.READY,
        "decrypt the Ignition config on /dev/vdb; "
        "the image names no signers, so anybody can send it a config",
    )


def test_config_without_a_disk_is_refused(machine: Machine) -> None:
    put(paths.PRIVATE_KEY)
    with pytest.raises(DeviceMissing, match=r"serial=ignition_crypted \[SX"):
        observe(machine, DecryptConfig())


def test_a_config_that_was_refused_is_refused_again_for_the_same_reason(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.serials["ignition_crypted"] = put(machine.root / "dev" / "vdb", "not OpenPGP")
    put(paths.PRIVATE_KEY)
    context = Context("ignition.firstboot")
    with pytest.raises(Refusal) as first:
        DecryptConfig().perform(context)
    assert not paths.PRIVATE_KEY.exists()
    with pytest.raises(Refusal) as second:
        observe(machine, DecryptConfig())
    assert str(second.value) == str(first.value)


def test_config_without_a_private_key_is_refused(machine: Machine) -> None:
    machine.serials["ignition_crypted"] = Path("/dev/vdb")
    with pytest.raises(Refusal, match="no private key"):
        observe(machine, DecryptConfig())


def test_config_is_done_only_when_the_private_key_is_gone(machine: Machine) -> None:
    put(places.IGNITION_USER_CONFIG, "{}")
    assert observe(machine, DecryptConfig()).done
    put(paths.PRIVATE_KEY)
    machine.serials["ignition_crypted"] = Path("/dev/vdb")
    assert observe(machine, DecryptConfig()).state is State.READY


def test_the_private_key_is_gone_also_after_a_config_that_cannot_be_read(machine: Machine) -> None:
    put(paths.PRIVATE_KEY, "no key")
    machine.serials["ignition_crypted"] = put(machine.root / "vdb", "no message")
    with pytest.raises(FirstbootError):
        DecryptConfig().perform(Context(FIRST_BOOT))
    assert not paths.PRIVATE_KEY.exists()
    assert not places.IGNITION_USER_CONFIG.exists()


@pytest.fixture
def decrypted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ground on which the config step can be performed; what Ignition would get in addition."""
    monkeypatch.setattr(openpgp, "decrypt", lambda message, key, work, signers: (CONFIG % "").encode())
    machine.serials["ignition_crypted"] = put(machine.root / "vdb", "-----BEGIN PGP MESSAGE-----")
    monkeypatch.setattr(openpgp, "read_message", lambda device: b"")
    put(paths.PRIVATE_KEY)
    put(paths.NO_LOCAL_LOGIN, NO_LOCAL_LOGIN.read_text())
    return places.IGNITION_BASE_CONFIGS / "no-local-login.ign"


def test_the_config_is_merged_into_one_that_masks_local_logins(decrypted: Path) -> None:
    DecryptConfig().perform(Context(FIRST_BOOT))
    units = json.loads(decrypted.read_text())["systemd"]["units"]
    masked = {unit["name"] for unit in units if unit.get("mask")}
    assert masked >= {"getty@.service", "serial-getty@.service", "console-getty.service", "autovt@.service"}


def test_an_image_that_allows_logins_masks_none_and_says_so(decrypted: Path) -> None:
    said: list[str] = []
    DecryptConfig().perform(Context(f"{FIRST_BOOT} secex.login=allowed", say=said.append))
    assert not decrypted.exists()
    assert [line for line in said if line.startswith("WARNING: secex.login=allowed")]


def test_another_value_for_logins_is_refused(machine: Machine, decrypted: Path) -> None:
    assert observe(machine, DecryptConfig()).state is State.READY
    with pytest.raises(Refusal, match=r"secex\.login=yes is not secex\.login=allowed"):
        DecryptConfig().observe(Context(f"{FIRST_BOOT} secex.login=yes"))


def test_without_its_own_config_against_logins_none_is_handed_over(decrypted: Path) -> None:
    paths.NO_LOCAL_LOGIN.unlink()
    with pytest.raises(OSError):
        DecryptConfig().perform(Context(FIRST_BOOT))
    assert not places.IGNITION_USER_CONFIG.exists()
