"""Whose config an image takes, with the real gpg: each refusal is the one sentence."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.openpgp_messages import Gpg, Host, compressed, confine, literal, packet, with_a_home

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import in_memory
from secex_firstboot.contract import paths
from secex_firstboot.ignition import openpgp, packets
from secex_firstboot.ignition.signers import FOR_IMAGE, Signers

CONFIG = b'{"ignition": {"version": "3.3.0"}}'
EARLIER = "--faked-system-time=20240101T000000"
A_DAY_LATER = "--faked-system-time=20240102T000000"
ANOTHER = "0123456789ABCDEF0123456789ABCDEF01234567"
ONE_PASS, LITERAL, SIGNATURE = 4, 11, 2


@pytest.fixture(autouse=True)
def confined(monkeypatch: pytest.MonkeyPatch) -> None:
    confine(monkeypatch)


@dataclass(frozen=True)
class Site:
    """``host`` encrypts what he likes to the image's key, whose fingerprint is ``image``."""

    gpg: Gpg
    host: Host
    key: Path
    image: str
    work: Path

    def fingerprint(self, user: str) -> str:
        listed = self.gpg("--with-colons", "--list-keys", f"={user}").decode()
        fingerprints: list[str] = re.findall(r"^fpr:+([0-9A-F]{40}):", listed, re.M)
        return fingerprints[0]

    def make(self, user: str, *words: str, expires: str = "never") -> None:
        loopback = ["--pinentry-mode=loopback", "--passphrase="]
        self.gpg(*words, *loopback, "--quick-generate-key", user, "ed25519", "sign", expires)

    def trusted(self, *users: str, bound: bool = False) -> Signers:
        return Signers({self.fingerprint(user): self.gpg("--export", f"={user}") for user in users}, bound)

    def signed(self, *words: str, by: tuple[str, ...] = ("signer",), text: bytes = CONFIG) -> bytes:
        """What lies under the encryption, not compressed."""
        names = [f"--local-user=={user}" for user in by]
        return self.gpg("--compress-algo=none", *names, *words, "--sign", stdin=text)

    def taken(self, inner: bytes, trusted: Signers | None) -> bytes:
        disk = self.work / "disk"
        disk.write_bytes(self.host.encrypt(inner) + bytes(512))
        return openpgp.decrypt(openpgp.read_message(disk), self.key, self.work, trusted)

    def refuses(self, inner: bytes, trusted: Signers) -> bool:
        with pytest.raises(Refusal) as refused:
            self.taken(inner, trusted)
        assert refused.value.__suppress_context__ or not refused.value.__context__
        return str(refused.value) == str(openpgp.refused())


@pytest.fixture(scope="module")
def gpg() -> Iterator[Gpg]:
    yield from with_a_home()


@pytest.fixture(scope="module")
def site(gpg: Gpg) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="fb-", dir="/tmp") as directory:
        work = Path(directory)
        work.chmod(0o711)
        key = work / "ignition.asc"
        key.write_bytes(gpg.make_key("image"))
        found = Site(gpg, gpg.host(), key, "", work)
        for user in ("signer", "another signer", "other"):
            found.make(user)
        yield Site(gpg, found.host, key, found.fingerprint("image"), work)


def pieces(inner: bytes) -> dict[int, bytes]:
    """The bodies of packets, by their tags."""
    with in_memory("inner") as file:
        packets.write(file, inner)
        reader, found = packets.Packets(file), {}
        while not reader.at_end:
            tag, body = reader.next()
            found[tag] = b"".join(reader.content(body))
    return found


def put_together(parts: dict[int, bytes], *tags: int) -> bytes:
    return b"".join(packet(tag, parts[tag]) for tag in tags or (ONE_PASS, LITERAL, SIGNATURE))


def notation(value: str) -> bytes:
    name, said = FOR_IMAGE.encode(), value.encode()
    head = b"\x14\x80\0\0\0" + len(name).to_bytes(2, "big") + len(said).to_bytes(2, "big")
    return bytes([len(head + name + said)]) + head + name + said


def with_unhashed(signature: bytes, added: bytes) -> bytes:
    """Whoever has a signature can do that, and it stays good."""
    at = 6 + int.from_bytes(signature[4:6], "big")
    size = int.from_bytes(signature[at : at + 2], "big")
    return signature[:at] + (size + len(added)).to_bytes(2, "big") + added + signature[at + 2 :]


def says(fingerprint: str) -> str:
    return f"--sig-notation={FOR_IMAGE}={fingerprint}"


# --- signed, and by whom ---


def test_a_config_by_one_of_the_signers_is_taken(site: Site) -> None:
    trusted = site.trusted("signer", "another signer")
    for user in ("signer", "another signer"):
        assert site.taken(site.signed(by=(user,)), trusted) == CONFIG


def test_one_that_gpg_signs_and_encrypts_in_one_go_is_taken(site: Site) -> None:
    disk = site.work / "disk"
    for words in ([], ["--compress-algo=none"], ["--compress-algo=bzip2"], ["--digest-algo=SHA512"]):
        disk.write_bytes(site.gpg.encrypt(CONFIG, "--sign", "--local-user=signer", *words) + bytes(512))
        assert (
            openpgp.decrypt(openpgp.read_message(disk), site.key, site.work, site.trusted("signer")) == CONFIG
        )


def test_one_that_nobody_has_signed_is_refused(site: Site) -> None:
    for inner in (literal(CONFIG), compressed(literal(CONFIG))):
        assert site.taken(inner, None) == CONFIG
        assert site.refuses(inner, site.trusted("signer"))


def test_one_by_somebody_else_is_refused(site: Site) -> None:
    for user in ("other", "image"):
        inner = site.signed(by=(user,))
        assert site.taken(inner, site.trusted(user)) == CONFIG
        assert site.refuses(inner, site.trusted("signer"))


def test_an_image_with_no_signer_in_its_list_takes_none(site: Site) -> None:
    assert site.refuses(site.signed(), Signers({}))


def test_a_signature_that_was_stripped_is_missed(site: Site) -> None:
    parts = pieces(site.signed())
    assert site.taken(put_together(parts), site.trusted("signer")) == CONFIG
    for tags in ((LITERAL,), (ONE_PASS, LITERAL), (LITERAL, SIGNATURE)):
        assert site.refuses(put_together(parts, *tags), site.trusted("signer"))


def test_two_signatures_are_refused_whoever_made_them(site: Site) -> None:
    trusted = site.trusted("signer", "another signer")
    assert site.refuses(site.signed(by=("signer", "another signer")), trusted)
    parts = pieces(site.signed())
    twice = (ONE_PASS, ONE_PASS, LITERAL, SIGNATURE, SIGNATURE)
    assert site.taken(put_together(parts, *twice), None) == CONFIG
    assert site.refuses(put_together(parts, *twice), trusted)


def test_a_signature_of_other_text_is_refused(site: Site) -> None:
    parts, others = pieces(site.signed()), pieces(site.signed(text=CONFIG + b"\n"))
    assert site.refuses(put_together({**parts, LITERAL: others[LITERAL]}), site.trusted("signer"))
    assert site.refuses(put_together({**parts, SIGNATURE: others[SIGNATURE]}), site.trusted("signer"))


def test_what_stands_beside_the_text_means_nothing(site: Site) -> None:
    """Not signed: the file's name, its date and its kind. Signed as of old, before the text, is signed."""
    trusted = site.trusted("signer")
    assert site.taken(site.signed("--set-filename=_CONSOLE"), trusted) == CONFIG
    parts = pieces(site.signed())
    for head in (b"b\x06/-&3\n\0\1\2\3\4", b"u\0\0\0\0\0"):
        assert site.taken(put_together({**parts, LITERAL: head + CONFIG}), trusted) == CONFIG
    assert site.taken(put_together(parts, SIGNATURE, LITERAL), trusted) == CONFIG
    assert site.taken(compressed(put_together(parts)), trusted) == CONFIG


def test_a_signature_of_text_with_its_line_ends_changed_is_refused(site: Site) -> None:
    assert site.refuses(site.signed("--textmode", text=b"{}\n"), site.trusted("signer"))


@pytest.mark.parametrize(
    ("digest", "strong"), [("SHA1", False), ("RIPEMD160", False), ("SHA224", False), ("SHA384", True)]
)
def test_a_digest_that_is_weak_is_refused(site: Site, digest: str, strong: bool) -> None:
    inner = site.signed(f"--digest-algo={digest}")
    if strong:
        assert site.taken(inner, site.trusted("signer")) == CONFIG
    else:
        assert site.refuses(inner, site.trusted("signer"))


def test_a_signature_by_a_subkey_is_its_primary_keys(site: Site) -> None:
    site.make("with a subkey")
    primary = site.fingerprint("with a subkey")
    site.gpg("--pinentry-mode=loopback", "--passphrase=", "--quick-add-key", primary, "ed25519", "sign")
    trusted = site.trusted("with a subkey")
    inner = site.signed(by=("with a subkey",))
    assert pieces(inner)[SIGNATURE] != b"" and primary[-16:].encode() not in pieces(inner)[ONE_PASS]
    assert site.taken(inner, trusted) == CONFIG
    assert list(trusted.keys) == [primary]


# --- when ---


def test_a_signature_that_has_expired_is_refused(site: Site) -> None:
    site.make("early", EARLIER)
    trusted = site.trusted("early")
    assert site.taken(site.signed(A_DAY_LATER, by=("early",)), trusted) == CONFIG
    for expires, good in (("10y", True), ("10d", False)):
        inner = site.signed(A_DAY_LATER, f"--default-sig-expire={expires}", by=("early",))
        assert site.taken(inner, trusted) == CONFIG if good else site.refuses(inner, trusted)


@pytest.mark.parametrize("digest", ["SHA1", "SHA256"])
def test_a_signature_by_a_key_that_has_expired_is_refused(site: Site, digest: str) -> None:
    """Whatever the digest by which the key says so, as it came with the image."""
    user = f"of old, {digest}"
    site.make(user, EARLIER, f"--cert-digest-algo={digest}", expires="10d")
    assert site.refuses(site.signed(A_DAY_LATER, by=(user,)), site.trusted(user))


def test_a_signature_by_a_key_that_was_revoked_is_refused(site: Site) -> None:
    site.make("revoked")
    inner, before = site.signed(by=("revoked",)), site.trusted("revoked")
    revocation = (site.gpg.home / f"openpgp-revocs.d/{site.fingerprint('revoked')}.rev").read_bytes()
    site.gpg("--import", stdin=revocation.replace(b":-----BEGIN", b"-----BEGIN"))
    assert site.taken(inner, before) == CONFIG
    assert site.refuses(inner, site.trusted("revoked"))


# --- for which image ---


def test_a_config_for_another_image_is_refused_and_one_for_several_is_taken(site: Site) -> None:
    for bound in (False, True):
        trusted = site.trusted("signer", bound=bound)
        assert site.taken(site.signed(says(site.image)), trusted) == CONFIG
        assert site.taken(site.signed(says(ANOTHER), says(site.image)), trusted) == CONFIG
        for wrong in (ANOTHER, site.image.lower(), f"0x{site.image}", ""):
            assert site.refuses(site.signed(says(wrong)), trusted)


def test_a_config_that_names_no_image_is_refused_where_it_has_to(site: Site) -> None:
    for words in ([], [f"--sig-notation=other@secex-firstboot={site.image}"]):
        assert site.taken(site.signed(*words), site.trusted("signer")) == CONFIG
        assert site.refuses(site.signed(*words), site.trusted("signer", bound=True))


def test_only_what_was_signed_says_for_which_image(site: Site) -> None:
    """Anybody adds to the part of a signature that is not hashed."""
    bound = site.trusted("signer", bound=True)
    unbound = pieces(site.signed())
    unbound[SIGNATURE] = with_unhashed(unbound[SIGNATURE], notation(site.image))
    assert site.refuses(put_together(unbound), bound)
    assert site.taken(put_together(unbound), site.trusted("signer")) == CONFIG
    ours = pieces(site.signed(says(site.image)))
    ours[SIGNATURE] = with_unhashed(ours[SIGNATURE], notation(ANOTHER))
    assert site.taken(put_together(ours), bound) == CONFIG
    theirs = pieces(site.signed(says(ANOTHER)))
    theirs[SIGNATURE] = with_unhashed(theirs[SIGNATURE], notation(site.image))
    assert site.refuses(put_together(theirs), site.trusted("signer"))


def signature(hashed: bytes, version: int = 4, kind: int = 0) -> bytes:
    return bytes([version, kind, 22, 8]) + len(hashed).to_bytes(2, "big") + hashed + b"\0\0\xab\xcd"


OURS = notation(ANOTHER)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\4", signature(OURS)[:20], signature(OURS, version=3), signature(OURS, version=6)),
        *(signature(OURS, kind=1), signature(b"\0" + OURS), signature(OURS[:-1]), signature(OURS + b"\xff")),
        signature(OURS.replace(b"\0\x28", b"\0\x27", 1)),  # the value is shorter than the rest
        signature(OURS.replace(b"\0\x28", b"\0\x29", 1)),
    ],
)
def test_a_signature_that_makes_no_sense_is_for_no_image(body: bytes) -> None:
    assert Signers({}).accept(signature(OURS), {ANOTHER})
    assert not Signers({}).accept(body, {ANOTHER})


@pytest.mark.parametrize("size", [0, 191, 192, 300, 8383, 8384, 20000])
def test_a_subpacket_of_any_length_is_passed_over(size: int) -> None:
    length = size + 1
    two = bytes([(length - 192 >> 8) + 192 & 0xFF, length - 192 & 0xFF])
    head = bytes([length]) if length < 192 else two if length < 8384 else b"\xff" + length.to_bytes(4, "big")
    other = head + b"\x63" + bytes(size)
    assert Signers({}, bound=True).accept(signature(other + OURS), {ANOTHER})
    assert not Signers({}, bound=True).accept(signature(other), {ANOTHER})


@given(st.binary(max_size=80), st.booleans())
def test_whatever_a_signature_is_there_is_an_answer(hashed: bytes, bound: bool) -> None:
    for body in (hashed, signature(hashed), signature(OURS + hashed)):
        assert Signers({}, bound).accept(body, {ANOTHER}) in (True, False)
        assert not Signers({}, bound=True).accept(body, set())


# --- gpg's verdict ---

KEY = "0196B5914CD5D5F90798C6CC696C8F373759ED66"
# From gpg 2.2.40, of a signature by a subkey.
GOOD = f"""\
NEWSIG
KEY_CONSIDERED {KEY} 0
SIG_ID lKYxEmNg6LwjfMjZo2X3leevzzQ 2026-12-01 1796095204
KEY_CONSIDERED {KEY} 0
GOODSIG 8F4E40421C58A55B signer
NOTATION_NAME config-key@secex-firstboot
NOTATION_FLAGS 0 1
NOTATION_DATA {KEY}
VALIDSIG B79B855087010EA26FF4BCCB8F4E40421C58A55B 2026-12-01 1796095204 1798687204 4 0 22 8 00 {KEY}
KEY_CONSIDERED {KEY} 0
"""
PASSED_OVER = ("KEY_CONSIDERED", "NOTATION_NAME", "NOTATION_FLAGS", "NOTATION_DATA")


def is_good(status: str, code: int = 0, key: str = KEY) -> bool:
    lines = re.sub("^(?=.)", "[GNUPG:] ", status, flags=re.M)
    return Signers({key: b""}).have_made(code, lines)


def test_what_gpg_says_of_a_good_signature() -> None:
    assert is_good(GOOD)
    assert is_good(GOOD + "TRUST_FULLY 0 pgp\nVERIFICATION_COMPLIANCE_MODE 23\n")
    assert is_good(GOOD.replace("NEWSIG", "NEWSIG signer@example.org"))


@pytest.mark.parametrize(
    "changed",
    [
        lambda good: good.replace("GOODSIG", "EXPSIG"),
        lambda good: good.replace("GOODSIG", "EXPKEYSIG"),
        lambda good: good.replace("GOODSIG", "REVKEYSIG"),
        lambda good: good.replace(f" 8 00 {KEY}", f" 2 00 {KEY}"),
        lambda good: good.replace(f" 8 00 {KEY}", f" 8 01 {KEY}"),
        lambda good: good.replace(f" 8 00 {KEY}", " 8 00"),
        lambda good: good.replace(f" 8 00 {KEY}", f" 8 00 {ANOTHER}"),
        lambda good: good.replace(f" 8 00 {KEY}", f" 8 00 {KEY[-16:]}"),
        lambda good: good + good,
        lambda good: good + "TRUST_NEVER 0 pgp\n",
        lambda good: good + "FAILURE gpg-exit 33554433\n",
        lambda good: good.removesuffix("\n"),
        lambda good: "",
    ],
)
def test_any_other_verdict_is_none(changed: Callable[[str], str]) -> None:
    assert changed(GOOD) != GOOD
    assert not is_good(changed(GOOD))


def test_the_exit_code_counts_too_and_no_line_is_missing_there_twice_or_another() -> None:
    assert not is_good(GOOD, code=1)
    assert not is_good(GOOD, key=ANOTHER)
    lines = GOOD.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if line.split()[0] not in PASSED_OVER:
            assert not is_good("".join(lines[:number] + lines[number + 1 :])), line
            assert not is_good("".join([*lines[:number], line, *lines[number:]])), line
        for other in ("BADSIG 0 x\n", "ERRSIG 0\n", "PLAINTEXT 62 0 \n", "SOMETHING_NEW\n", "\n"):
            assert not is_good("".join([*lines[:number], other, *lines[number:]])), (other, line)


# --- in the image ---


def test_an_image_has_its_signers_in_files_or_none_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "CONFIG_SIGNERS", tmp_path / "config-signers")
    assert Signers.of_image(paths.CONFIG_SIGNERS) is None
    for bound in (False, True):
        written = Signers({KEY: b"key", ANOTHER: b"other"}, bound)
        paths.CONFIG_SIGNERS.mkdir(exist_ok=True)
        assert Signers.of_image(paths.CONFIG_SIGNERS) == Signers({})
        for path, content in written.files().items():
            path.write_bytes(content)
        assert Signers.of_image(paths.CONFIG_SIGNERS) == written
        for path in written.files():
            path.unlink()
