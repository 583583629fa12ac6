"""The keys of which one has to sign a config: what is taken for one, and that it is in the image."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.site import Host
from support import needs, se_tree
from support.builds import CONTEXT, look, made_of, opened
from support.openpgp_messages import Gpg, with_a_home

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.builder import adopt, build, config_signers
from secex_firstboot.builder.outputs import Outputs
from secex_firstboot.cli import sealing
from secex_firstboot.contract import paths
from secex_firstboot.contract.metadata import Metadata

EARLIER = "--faked-system-time=20240101T000000"
LOOPBACK = ("--pinentry-mode=loopback", "--passphrase=")


@pytest.fixture(scope="module")
def gpg() -> Iterator[Gpg]:
    yield from with_a_home()


@pytest.fixture(scope="module")
def directory(gpg: Gpg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file each: what is a signer, and what is none."""
    where = tmp_path_factory.mktemp("keys")
    for user, *words in (
        ("mine", "ed25519", "sign", "never"),
        ("theirs", "ed25519", "sign", "never"),
        ("encrypts", "ed25519", "cert", "never"),
        ("revoked", "ed25519", "sign", "never"),
    ):
        gpg(*LOOPBACK, "--quick-generate-key", user, *words)
    gpg(EARLIER, *LOOPBACK, "--quick-generate-key", "expired", "ed25519", "sign", "10d")
    revocation = (gpg.home / f"openpgp-revocs.d/{fingerprint(gpg, 'revoked')}.rev").read_bytes()
    gpg("--import", stdin=revocation.replace(b":-----BEGIN", b"-----BEGIN"))
    for user in ("mine", "theirs", "encrypts", "revoked", "expired"):
        (where / user).write_bytes(gpg("--armor", "--export", f"={user}"))
    (where / "binary").write_bytes(gpg("--export", "=mine"))
    (where / "two").write_bytes(gpg("--export", "=mine", "=theirs"))
    (where / "private").write_bytes(gpg(*LOOPBACK, "--export-secret-keys", "=mine"))
    (where / "none").write_bytes(b"no key")
    (where / "large").write_bytes(gpg("--export", "=mine") + bytes(300_000))
    (where / "directory").mkdir()
    return where


def fingerprint(gpg: Gpg, user: str) -> str:
    listed = gpg("--with-colons", "--list-keys", f"={user}").decode()
    found: list[str] = re.findall(r"^fpr:+([0-9A-F]{40}):", listed, re.M)
    return found[0]


def test_a_public_key_is_a_signer_armored_or_not(gpg: Gpg, directory: Path) -> None:
    for name in ("mine", "binary"):
        found = config_signers.given([directory / name], bound=True)
        assert found and found.bound
        assert list(found.keys) == [fingerprint(gpg, "mine")]
        assert all(key.startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----") for key in found.keys.values())
    assert config_signers.given([], bound=False) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("two", "is not one OpenPGP public key"),
        ("private", "is not one OpenPGP public key"),
        ("none", "is not one OpenPGP public key"),
        ("encrypts", "cannot sign"),
        ("revoked", "cannot sign"),
        ("expired", "cannot sign"),
        ("large", "larger than a public key"),
        ("directory", "no regular file"),
        ("missing", "is missing"),
    ],
)
def test_what_is_no_key_to_sign_with_is_refused(directory: Path, name: str, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        config_signers.given([directory / name], bound=False)


def test_there_are_not_many_and_a_config_is_bound_by_somebody(directory: Path) -> None:
    assert config_signers.given([directory / "mine"] * 16, bound=False)
    with pytest.raises(Refusal, match="more than 16"):
        config_signers.given([directory / "mine"] * 17, bound=False)
    with pytest.raises(Refusal, match="nobody is named"):
        config_signers.given([], bound=True)


@needs.programs("mkfs.ext4", "debugfs", "veritysetup", "qemu-img", "sfdisk")
def test_an_image_has_its_signers_and_an_adopted_one_those_of_who_adopts_it(
    tree: Path, hosts: dict[str, Host], gpg: Gpg, directory: Path, tmp_path: Path
) -> None:
    built, mine, nobodys = (Outputs(tmp_path / name) for name in ("built", "mine", "nobodys"))
    recipe = made_of(tree, hosts, config_signers=(directory / "theirs",))
    made = build.build(CONTEXT, recipe, built)
    theirs, ours = fingerprint(gpg, "theirs"), fingerprint(gpg, "mine")
    assert (made.config_signers, made.config_bound) == ((theirs,), False)
    place = str(paths.CONFIG_SIGNERS).encode()[1:]
    ramdisk = opened(built, hosts["first"], tmp_path).ramdisk
    assert place + b"/" + theirs.encode() + b".asc\0" in ramdisk
    assert place + b"/bound\0" not in ramdisk
    recipe = made_of(
        built.image, {"first": hosts["mine"]}, config_signers=(directory / "mine",), config_bound=True
    )
    made = adopt.adopt(CONTEXT, recipe, Metadata.load(built.metadata), mine)
    assert (made.config_signers, made.config_bound) == ((ours,), True)
    ramdisk = opened(mine, hosts["mine"], tmp_path).ramdisk
    assert place + b"/" + ours.encode() + b".asc\0" in ramdisk
    assert place + b"/bound\0" in ramdisk
    assert theirs.encode() not in ramdisk
    found = look(mine)
    assert (found.config_signers, found.config_bound) == ((ours,), True)
    adopt.adopt(
        CONTEXT, made_of(built.image, {"first": hosts["mine"]}), Metadata.load(built.metadata), nobodys
    )
    assert place not in opened(nobodys, hosts["mine"], tmp_path).ramdisk
    assert look(nobodys).config_signers == ()


@needs.programs("mkfs.ext4", "debugfs", "veritysetup", "qemu-img", "sfdisk")
def test_an_image_whose_agent_would_not_ask_for_a_signature_gets_no_signers(
    hosts: dict[str, Host], directory: Path, tmp_path: Path
) -> None:
    tree = se_tree.make(tmp_path / "tree")
    se_tree.make_initramfs(tree / f"boot/initrd.img-{se_tree.RELEASE}", "/usr/lib/secex-firstboot/check-root")
    outputs = Outputs(tmp_path / "linux")
    with pytest.raises(Refusal, match="too old for --config-signer"):
        build.build(CONTEXT, made_of(tree, hosts, config_signers=(directory / "mine",)), outputs)
    assert not outputs.image.exists()
    assert build.build(CONTEXT, made_of(tree, hosts), outputs).config_signers == ()


def test_what_is_shown_says_whose_configs_are_taken() -> None:
    assert sealing.configs(None, bound=False) == []
    assert sealing.configs((), bound=False) == ["anybody can send one: no --config-signer"]
    assert sealing.configs(("A", "B"), bound=False) == ["signed by A", "signed by B"]
    assert sealing.configs(("A",), bound=True) == ["signed, for this image, by A"]
