"""What a public image must not hold is refused; what its system makes anew can be removed instead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import plain

from secex_firstboot.agent.step import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.roots import identity

REPLACE = "secex.identity=replace"
SSH_KEY = b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
MADE_ANEW = {
    "etc/ssh/ssh_host_ed25519_key": SSH_KEY,
    "etc/ssh/ssh_host_ed25519_key.pub": b"ssh-ed25519 AAAA",
    "etc/machine-id": b"0123456789abcdef0123456789abcdef\n",
    "var/lib/dbus/machine-id": b"0123456789abcdef0123456789abcdef\n",
    "var/lib/systemd/random-seed": bytes(512),
    "var/lib/systemd/credential.secret": b"\1" * 4096,
    "var/lib/NetworkManager/secret_key": b"nm-v2:\1\2",
}
PRIVATE_KEYS = {
    "etc/ssl/private/snakeoil.key": b"\x30\x82 DER",
    "etc/pki/tls/private/localhost.key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n",
    "etc/app/tls.pem": b"-----BEGIN CERTIFICATE-----\n\n-----BEGIN EC PRIVATE KEY-----\nAAAA\n",
    "etc/app/backup": b"text\n-----BEGIN PGP PRIVATE KEY BLOCK-----\n",
    "etc/app/client": b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n",
    "etc/backup/id_ed25519": SSH_KEY,
}
PUBLIC = {
    "etc/machine-id": b"uninitialized\n",
    "etc/ssh/sshd_config": b"HostKey /etc/ssh/ssh_host_ed25519_key\n",
    "etc/ssl/certs/ca.pem": b"-----BEGIN CERTIFICATE-----\n",
    "etc/app/README": b"put the -----BEGIN PRIVATE KEY----- here\n",
    "etc/selinux/policy": b"-----BEGIN PRIVATE KEY-----\n" + bytes(1 << 20),
    "var/lib/systemd/timers/stamp": b"",
    "usr/share/doc/example.pem": SSH_KEY,
}


def make(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def holds(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", MADE_ANEW)
def test_what_identifies_one_machine_is_refused_by_name(name: str, tmp_path: Path) -> None:
    root = make(tmp_path, PUBLIC | {name: MADE_ANEW[name]})
    with pytest.raises(
        Refusal, match=f"what identifies one machine: /{name}: build it without, or with {REPLACE}"
    ):
        identity.check(Context(""), plain(root))


@pytest.mark.parametrize("words", ["", REPLACE])
@pytest.mark.parametrize("name", PRIVATE_KEYS)
def test_a_private_key_is_refused_also_where_the_rest_is_replaced(
    name: str, words: str, tmp_path: Path
) -> None:
    root = make(tmp_path, PUBLIC | {name: PRIVATE_KEYS[name]})
    with pytest.raises(
        Refusal, match=f"private keys that all its guests would share: /{name}: build it without"
    ):
        identity.check(Context(words), plain(root))


def test_what_is_public_passes_also_in_a_root_that_is_nearly_empty(tmp_path: Path) -> None:
    identity.check(Context(""), plain(make(tmp_path, PUBLIC)))
    (tmp_path / "empty/etc").mkdir(parents=True)
    identity.check(Context(""), plain(tmp_path / "empty"))


@pytest.mark.parametrize("content", [b"", b"\n", b"uninitialized\n", b"uninitialized"])
def test_a_machine_id_that_is_none_passes(content: bytes, tmp_path: Path) -> None:
    identity.check(Context(""), plain(make(tmp_path, {"etc/machine-id": content})))


def test_a_machine_id_that_is_a_link_is_judged_where_it_leads(tmp_path: Path) -> None:
    root = make(tmp_path, {"etc/machine-id": b"", "var/lib/dbus/other": b""})
    (root / "var/lib/dbus/machine-id").symlink_to("/etc/machine-id")
    identity.check(Context(""), plain(root))


def test_no_link_is_followed_out_of_the_image(tmp_path: Path) -> None:
    outside = make(tmp_path / "outside", {"key": SSH_KEY})
    root = make(tmp_path / "root", PUBLIC)
    (root / "etc/link").symlink_to(outside)
    (root / "etc/key").symlink_to(outside / "key")
    identity.check(Context(""), plain(root))


def test_a_long_list_is_cut_and_strange_names_do_no_harm_to_the_console(tmp_path: Path) -> None:
    root = make(tmp_path, {f"etc/{name}": SSH_KEY for name in ("a\n\x1b[2J", "b", "c", "d", "e")})
    with pytest.raises(Refusal, match=r": /etc/a\\n\\x1b\[2J, /etc/b, /etc/c and 2 more: ") as refused:
        identity.check(Context(""), plain(root))
    assert "\n" not in str(refused.value)


def test_an_image_that_asks_for_it_has_it_removed_and_nothing_else(tmp_path: Path) -> None:
    root, said = make(tmp_path, PUBLIC | MADE_ANEW), list[str]()
    identity.check(Context(REPLACE, say=said.append), plain(root))
    assert ["/etc/ssh/ssh_host_ed25519_key, " in line for line in said] == [True]
    identity.remove(plain(root))
    assert holds(root) == set(PUBLIC)
    assert (root / "etc/machine-id").read_bytes() == b"uninitialized\n"
    identity.check(Context(""), plain(root))
    identity.remove(plain(root))
    assert holds(root) == set(PUBLIC)


def test_a_machine_id_is_replaced_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mock: the power fails when the new one is to be made stable, and later before it has its name."""
    root = make(tmp_path, PUBLIC | MADE_ANEW)
    (root / "etc/machine-id").chmod(0o644)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    for owner, step in ((identity, "sync"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, fail)
            with pytest.raises(OSError, match="Input/output"):
                identity.remove(plain(root))
        assert (root / "etc/machine-id").read_bytes() == MADE_ANEW["etc/machine-id"]
    identity.remove(plain(root))
    assert (root / "etc/machine-id").read_bytes() == b"uninitialized\n"
    assert (root / "etc/machine-id").stat().st_mode & 0o777 == 0o644
    assert holds(root) == set(PUBLIC)


@pytest.mark.parametrize(("content", "left"), [(None, b"uninitialized\n"), (b"", b"")])
def test_a_machine_id_that_is_missing_is_written_and_an_empty_one_stays(
    content: bytes | None, left: bytes, tmp_path: Path
) -> None:
    root = make(
        tmp_path, {"etc/hostname": b"guest\n"} | ({} if content is None else {"etc/machine-id": content})
    )
    identity.remove(plain(root))
    assert (root / "etc/machine-id").read_bytes() == left
    assert content is not None or (root / "etc/machine-id").stat().st_mode & 0o777 == 0o444


def test_an_unreadable_directory_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock: only a device with errors fails for root. As os.scandir(3) raises it then."""

    def scandir(path: object = ".") -> object:
        raise OSError(5, "Input/output error", str(path))

    root = make(tmp_path, PUBLIC)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(OSError, match="Input/output"):
        identity.check(Context(""), plain(root))


def test_more_files_than_can_be_looked_through_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path, {f"etc/{number}": b"" for number in range(5)})
    monkeypatch.setattr(identity, "_FILES_LIMIT", 5)
    identity.check(Context(""), plain(root))
    make(root, {"etc/one-more": b""})
    with pytest.raises(Refusal, match="more than 5 files below /etc"):
        identity.check(Context(""), plain(root))
