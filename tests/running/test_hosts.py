"""Which machines may start the guest: only those whose documents were proven, by the image's own roots."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support import needs, plain
from support.host_keys import CHAIN, NOW, certify, certify_hybrid, forged
from support.machine import put

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.boot_image import Arguments, Origin
from secex_firstboot.contract.key_kind import KeyKind
from secex_firstboot.hostkeys import document
from secex_firstboot.hostkeys.key import EXPERIMENTAL, listed_hash
from secex_firstboot.roots import system_image
from secex_firstboot.running import hosts
from secex_firstboot.running.hosts import Verdict

A, B = "ibm-z-hostkey-a", "ibm-z-hostkey-b"
CONTEXT = Context("quiet")

pytestmark = needs.programs("openssl")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Provisioned for the host A, whose document was proven by what lies beside it."""
    files = CHAIN.certificates() | CHAIN.crls()
    trusted = {"root.crt": files.pop("root.crt")}
    for name, content in files.items():
        put(tmp_path / "etc/se-hostkeys/certs" / name, content)
    put(tmp_path / "etc/se-hostkeys" / A, certify("a"))
    put(tmp_path / "etc/luks/root", b"key")
    system_image.remember(
        plain(tmp_path), Arguments(), {}, {A: certify("a")}, trusted, {}, Origin(root_hashes={})
    )
    return tmp_path


def runs_on(root: Path, *names: str) -> None:
    """This machine has the keys of these hosts."""
    keys = [document.key_hash(document.parse(name, certify(name))).hex() for name in names]
    put(root / "sys/firmware/uv/keys/all", "".join(f"{key}\n" for key in keys).encode())


def given(tmp_path: Path, name: str, content: bytes) -> list[Path]:
    put(tmp_path / "given" / name, content)
    return [tmp_path / "given" / name]


def kept(root: Path) -> list[str]:
    hosts.settle(CONTEXT, plain(root))
    return sorted(system_image.hosts(plain(root)))


def test_with_nothing_new_nothing_is_proven_again(root: Path) -> None:
    (root / "etc/luks/boot-image/certificates/root.crt").unlink()
    assert kept(root) == [A]


def test_a_document_that_is_added_counts_once_it_was_proven(root: Path) -> None:
    assert hosts.add(CONTEXT, plain(root), given(root, "b.crt", certify("b")), []) == [B]
    assert kept(root) == [A, B]
    assert system_image.hosts(plain(root))[B] == certify("b")


def test_one_that_somebody_put_there_counts_as_well_once_it_was_proven(root: Path) -> None:
    put(root / "etc/se-hostkeys" / B, certify("b") + b"\n")
    assert kept(root) == [A, B]


@pytest.mark.parametrize("by_hand", [False, True])
def test_one_that_is_not_genuine_is_refused_and_never_counts(root: Path, *, by_hand: bool) -> None:
    with pytest.raises(Refusal):
        if by_hand:
            put(root / "etc/se-hostkeys" / B, forged())
            hosts.settle(CONTEXT, plain(root))
        else:
            hosts.add(CONTEXT, plain(root), given(root, B, forged()), [])
    assert list(system_image.hosts(plain(root))) == [A]
    assert (root / "etc/se-hostkeys" / B).exists() is by_hand


def test_a_root_that_lies_beside_the_documents_proves_nothing(root: Path) -> None:
    """Of the image's own, root's alone is missing: it is among the user's certificates now."""
    trusted = root / "etc/luks/boot-image/certificates/root.crt"
    trusted.rename(root / "etc/se-hostkeys/certs/root.crt")
    put(root / "etc/se-hostkeys" / B, certify("b"))
    with pytest.raises(Refusal, match="the image has no root certificate to trust"):
        hosts.settle(CONTEXT, plain(root))


def test_what_proves_it_comes_along(root: Path) -> None:
    certificates = root / "etc/se-hostkeys/certs"
    moved = [path.rename(root / path.name) for path in sorted(certificates.iterdir())]
    file = given(root, "b.crt", certify("b"))
    with pytest.raises(Refusal):
        hosts.add(CONTEXT, plain(root), file, [])
    assert hosts.add(CONTEXT, plain(root), file, moved) == [B]
    assert kept(root) == [A, B]


def test_one_in_another_form_is_the_same_and_nothing_is_written(root: Path) -> None:
    path = root / "etc/se-hostkeys" / A
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\n")
    kept_at = (root / "etc/luks/boot-image/hosts" / A).stat().st_ino
    assert kept(root) == [A]
    assert (root / "etc/luks/boot-image/hosts" / A).stat().st_ino == kept_at


def test_a_document_that_is_replaced_is_proven_anew(root: Path) -> None:
    put(root / "etc/se-hostkeys" / A, forged("a"))
    with pytest.raises(Refusal):
        hosts.settle(CONTEXT, plain(root))
    newer = certify("a", end=300)
    put(root / "etc/se-hostkeys" / A, newer)
    hosts.settle(CONTEXT, plain(root))
    assert system_image.hosts(plain(root)) == {A: newer}


def test_one_that_is_removed_counts_no_more(root: Path) -> None:
    hosts.add(CONTEXT, plain(root), given(root, "b", certify("b")), [])
    assert kept(root) == [A, B]
    assert hosts.remove(plain(root), ["a"]) == [A]
    assert kept(root) == [B]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["c"], "there is no host-key document ibm-z-hostkey-c"),
        (["a", "b"], "no host could start the guest"),
        (["a"], "no host-key document is for this machine"),
    ],
)
def test_what_would_leave_nobody_is_refused(root: Path, names: Sequence[str], says: str) -> None:
    hosts.add(CONTEXT, plain(root), given(root, "b", certify("b")), [])
    runs_on(root, "a")
    with pytest.raises(Refusal, match=says):
        hosts.remove(plain(root), names)
    assert kept(root) == [A, B]


def test_a_guest_that_moves_may_leave_its_machine(root: Path) -> None:
    hosts.add(CONTEXT, plain(root), given(root, "b", certify("b")), [])
    runs_on(root, "a")
    hosts.remove(plain(root), [A], moving=True)
    with pytest.raises(Refusal, match="no host-key document is for this machine"):
        hosts.settle(CONTEXT, plain(root))
    hosts.settle(CONTEXT, plain(root), moving=True)
    assert list(system_image.hosts(plain(root))) == [B]


def test_documents_that_are_gone_by_themselves_stop_it(root: Path) -> None:
    (root / "etc/se-hostkeys" / A).unlink()
    with pytest.raises(Refusal, match="no host could start the guest"):
        hosts.settle(CONTEXT, plain(root))
    assert list(system_image.hosts(plain(root))) == [A]


# --- how they stand ---


def judged(root: Path, later: timedelta = timedelta()) -> dict[str, Verdict]:
    return {each.name: each.verdict for each in hosts.judge(CONTEXT, plain(root), NOW + later, ask=False)}


def ends(root: Path) -> timedelta:
    certificate = x509.load_pem_x509_certificate((root / "etc/se-hostkeys" / A).read_bytes())
    return certificate.not_valid_after_utc - NOW


def test_they_are_valid_until_they_end(root: Path) -> None:
    left = ends(root)
    day = timedelta(days=1)
    assert judged(root) == {A: Verdict.VALID}
    assert judged(root, left - 91 * day) == {A: Verdict.VALID}
    assert judged(root, left - 89 * day) == {A: Verdict.ENDS}
    assert judged(root, left + day) == {A: Verdict.EXPIRED}


def test_one_that_was_proven_and_has_expired_stops_no_update(root: Path) -> None:
    expired = certify("a", start=-20, end=-10)
    put(root / "etc/se-hostkeys" / A, expired)
    system_image.keep_hosts(plain(root), {A: expired})
    assert judged(root) == {A: Verdict.EXPIRED}
    hosts.settle(CONTEXT, plain(root))


def test_one_that_is_revoked_stops_every_update_until_it_is_removed(root: Path) -> None:
    hosts.add(CONTEXT, plain(root), given(root, "b", certify("b")), [])
    assert kept(root) == [A, B]
    revoked = x509.load_pem_x509_certificate(certify("a"))
    put(root / "etc/se-hostkeys/certs/newer.crl", CHAIN.signing_key.crl(revoked=[revoked]))
    assert judged(root) == {A: Verdict.REVOKED, B: Verdict.VALID}
    with pytest.raises(Refusal, match=f"the host-key document {A} is revoked: secex hosts remove {A}"):
        hosts.settle(CONTEXT, plain(root))
    hosts.remove(plain(root), [A])
    assert kept(root) == [B]


@pytest.mark.parametrize("later", [timedelta(), timedelta(days=4000)])
def test_what_was_seen_to_be_revoked_stays_so_whatever_the_host_withholds(
    root: Path, later: timedelta
) -> None:
    """The list is not there any more, or the clock says that the document has expired."""
    revoked = x509.load_pem_x509_certificate(certify("a"))
    newer = root / "etc/se-hostkeys/certs/newer.crl"
    put(newer, CHAIN.signing_key.crl(revoked=[revoked]))
    assert judged(root) == {A: Verdict.REVOKED}
    newer.unlink()
    assert judged(root, later) == {A: Verdict.REVOKED}
    with pytest.raises(Refusal, match="is revoked"):
        hosts.settle(CONTEXT, plain(root))
    put(root / "etc/se-hostkeys" / A, certify("a", end=300))  # of the same name, but another document
    hosts.settle(CONTEXT, plain(root))
    assert judged(root) == {A: Verdict.VALID}


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_revocation_that_an_update_sees_is_kept_in_mind(root: Path, *, by_hand: bool) -> None:
    newer = root / "etc/se-hostkeys/certs/newer.crl"
    put(newer, CHAIN.signing_key.crl(revoked=[x509.load_pem_x509_certificate(certify("b"))]))
    for _ in range(2):
        with pytest.raises(Refusal, match="revoked"):
            if by_hand:
                put(root / "etc/se-hostkeys" / B, certify("b"))
                hosts.settle(CONTEXT, plain(root))
            else:
                hosts.add(CONTEXT, plain(root), given(root, B, certify("b")), [])
        newer.unlink(missing_ok=True)  # the host keeps it away
    (root / "etc/se-hostkeys" / B).unlink(missing_ok=True)
    assert judged(root) == {A: Verdict.VALID}
    with pytest.raises(Refusal, match="revoked"):
        hosts.add(CONTEXT, plain(root), given(root, B, certify("b")), [])


def test_a_removal_that_was_cut_short_goes_on(root: Path) -> None:
    """Behind the document's end, and before the boot image without it."""
    hosts.add(CONTEXT, plain(root), given(root, "b", certify("b")), [])
    assert kept(root) == [A, B]
    runs_on(root, "a")
    for _ in range(2):
        assert hosts.remove(plain(root), [A], moving=True) == [A]
    hosts.settle(CONTEXT, plain(root), moving=True)
    with pytest.raises(Refusal, match="there is no host-key document"):
        hosts.remove(plain(root), [A], moving=True)


def test_a_document_that_is_just_being_written_is_none_yet(root: Path) -> None:
    put(root / "etc/se-hostkeys" / f"{B}.new", certify("b")[:100])
    assert kept(root) == [A]


def test_one_that_nothing_proves_any_more_is_said(root: Path) -> None:
    for path in (root / "etc/se-hostkeys/certs").iterdir():
        path.unlink()
    assert judged(root) == {A: Verdict.UNPROVEN}


def test_whether_one_is_for_this_machine_is_told_if_the_kernel_does(root: Path) -> None:
    assert [each.this_machine for each in hosts.judge(CONTEXT, plain(root), NOW, ask=False)] == [None]
    runs_on(root, "a")
    assert [each.this_machine for each in hosts.judge(CONTEXT, plain(root), NOW, ask=False)] == [True]
    runs_on(root, "b")
    assert [each.this_machine for each in hosts.judge(CONTEXT, plain(root), NOW, ask=False)] == [False]


# --- hybrid documents ---


def test_documents_of_another_kind_take_the_place_of_all_or_are_refused(root: Path) -> None:
    hosts.add(CONTEXT, plain(root), given(root, "b.crt", certify("b")), [])
    hybrid = [*given(root, "a.crt", certify_hybrid("a")), *given(root, "c.crt", certify_hybrid("c"))]
    with pytest.raises(Refusal, match=f"classical: {B}; hybrid: {A}, ibm-z-hostkey-c") as refused:
        hosts.add(CONTEXT, plain(root), hybrid, [])
    assert "--replace" in refused.value.cure
    assert kept(root) == [A, B]
    warnings: list[str] = []
    context = Context("quiet", warn=warnings.append)
    hosts.add(context, plain(root), hybrid, [], replace=True)
    assert warnings == [EXPERIMENTAL]
    assert kept(root) == [A, "ibm-z-hostkey-c"]
    judged = hosts.judge(CONTEXT, plain(root), NOW, ask=False)
    assert [(each.kind, each.verdict) for each in judged] == [(KeyKind.HYBRID, Verdict.VALID)] * 2
    assert system_image.hosts(plain(root))[A] == certify_hybrid("a")


def test_what_somebody_put_there_of_another_kind_stops_an_update(root: Path) -> None:
    put(root / "etc/se-hostkeys" / B, certify_hybrid("b"))
    with pytest.raises(Refusal, match="of two"):
        hosts.settle(CONTEXT, plain(root))
    assert list(system_image.hosts(plain(root))) == [A]
    hosts.remove(plain(root), [A])
    assert kept(root) == [B]


def test_nothing_takes_the_place_of_this_machines_document_but_one_for_it(root: Path) -> None:
    key = document.parse("a", certify_hybrid("a")).key
    put(root / "sys/firmware/uv/keys/all", "0" * 64 + "\n" + f"{listed_hash(key).hex()}\n")
    with pytest.raises(Refusal, match="no host-key document is for this machine"):
        hosts.add(CONTEXT, plain(root), given(root, "b.crt", certify_hybrid("b")), [], replace=True)
    assert [path.name for path in (root / "etc/se-hostkeys").glob("ibm-*")] == [A]
    hosts.add(CONTEXT, plain(root), given(root, "a.crt", certify_hybrid("a")), [], replace=True)
    assert [each.this_machine for each in hosts.judge(CONTEXT, plain(root), NOW, ask=False)] == [True]


def test_a_machine_that_takes_no_such_header_keeps_its_documents(root: Path) -> None:
    versions = root / "sys/firmware/uv/query/supp_se_hdr_ver"
    put(versions, "8000000000000000\n")
    hybrid = given(root, "a.crt", certify_hybrid("a"))
    with pytest.raises(Refusal, match="this machine takes no SE header of version 0x200"):
        hosts.add(CONTEXT, plain(root), hybrid, [], replace=True)
    assert kept(root) == [A]
    put(versions, "c000000000000000\n")
    hosts.add(CONTEXT, plain(root), hybrid, [], replace=True)
    assert kept(root) == [A]


@pytest.mark.parametrize("half", [0, 1])
def test_a_hybrid_document_of_which_a_half_is_revoked_is_kept_in_mind(root: Path, half: int) -> None:
    """And a classical one with the other half is not."""
    put(root / "etc/se-hostkeys" / A, certify_hybrid("a"))
    revoked = x509.load_pem_x509_certificates(certify_hybrid("a"))[half]
    newer = root / "etc/se-hostkeys/certs/newer.crl"
    put(newer, CHAIN.signing_key.crl(revoked=[revoked]))
    assert judged(root) == {A: Verdict.REVOKED}
    newer.unlink()
    assert judged(root) == {A: Verdict.REVOKED}
    first = x509.load_pem_x509_certificates(certify_hybrid("a"))[0]
    put(root / "etc/se-hostkeys" / A, first.public_bytes(Encoding.PEM))
    assert judged(root) == {A: Verdict.VALID if half else Verdict.REVOKED}
