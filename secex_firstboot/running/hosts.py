"""The hosts that may start the guest: the documents in /etc/se-hostkeys, each proven before it counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import exists, is_regular, sync, write_private
from secex_firstboot.contract import parameters, paths
from secex_firstboot.contract.key_kind import KeyKind
from secex_firstboot.hostkeys import certificates, document
from secex_firstboot.hostkeys.document import Document
from secex_firstboot.hostkeys.download import Unreachable
from secex_firstboot.hostkeys.fetch import DOCUMENT_LIMIT
from secex_firstboot.hostkeys.proof import Proof, tell_kind
from secex_firstboot.hostkeys.verify import Revoked
from secex_firstboot.ignition.config import Config
from secex_firstboot.roots import system_image
from secex_firstboot.roots.kinds import Root
from secex_firstboot.sdboot import contents

# The SHA-256 of certificates that were seen to be revoked, a line each: they stay so, though the host keeps
# later revocation lists away, or turns the clock.
_REVOKED = paths.IMAGE_STATE / "revoked"
_WARNING = timedelta(days=90)  # before a document's end
_CURE = "secex hosts list says which there are"


class Verdict(StrEnum):
    VALID = "valid"
    ENDS = "ends soon"
    EXPIRED = "expired"
    REVOKED = "revoked"
    UNPROVEN = "not proven"


BAD = (Verdict.EXPIRED, Verdict.REVOKED, Verdict.UNPROVEN)


@dataclass(frozen=True)
class Judged:
    """``why``: empty for one that is valid."""

    name: str
    kind: KeyKind
    hash: str
    expires: datetime
    this_machine: bool | None
    verdict: Verdict
    why: str = ""


def settle(context: Context, root: Root, *, moving: bool = False) -> None:
    """Prove what is new in /etc/se-hostkeys, and let what is gone be gone.

    A document that was proven stays so when it expires, but not when it is known to be revoked. Raises
    Refusal for one that cannot be proven, and if none is left, or none for this machine, unless the guest
    is ``moving`` to another.
    """
    kept, given = system_image.hosts(root), _given(root)
    if given == kept and not _revoked(root):
        return
    found = [document.parse(name, content) for name, content in given.items()]
    if given != kept:
        _check(root, found, moving=moving)
        tell_kind(found, context)
        if new := [each for each in found if kept.get(each.name) != each.pem]:
            _prove(context, root, new)
            context.say(f"proven genuine: {', '.join(each.name for each in new)}")
        proven = {each.name: each.pem for each in found}
        if proven != kept:  # the same document may be written in other ways
            system_image.keep_hosts(root, proven)
    for each in found:
        _check_revoked(root, each)


def add(
    context: Context, root: Root, files: Iterable[Path], proofs: Iterable[Path], *, replace: bool = False
) -> list[str]:
    """Put documents into /etc/se-hostkeys, and certificates and CRLs beside them; the documents' names.

    ``replace``: in place of all that are there. Raises Refusal for a document that cannot be proven, and for
    what ``settle`` would refuse; nothing is written then but what should prove it.
    """
    for path in proofs:
        content = _read(path, certificates.FILE_LIMIT)
        certificates.parse(path.name, content)
        _write(root.place(paths.SYSTEM_CERTIFICATES) / path.name, content)
    found = [document.parse(document.system_name(path.name), _read(path, DOCUMENT_LIMIT)) for path in files]
    others = {name: each for name, each in _given(root).items() if name not in {new.name for new in found}}
    left = [] if replace else [document.parse(name, content) for name, content in others.items()]
    _check(root, [*left, *found])
    tell_kind([*left, *found], context)
    _prove(context, root, found)
    for each in found:
        _write(root.place(paths.SYSTEM_HOST_KEYS) / each.name, each.pem)
    if replace:
        _unlink(root, others)
    return [each.name for each in found]


def remove(root: Root, names: Iterable[str], *, moving: bool = False) -> list[str]:
    """Remove documents from /etc/se-hostkeys; the names.

    One that is gone already, but still in the boot image, counts as removed here. Raises Refusal for one that
    is not there, and if none would be left, or, unless the guest is ``moving`` to another machine, none for
    this one.
    """
    given, gone = _given(root), [document.system_name(name) for name in names]
    known = given.keys() | system_image.hosts(root).keys()
    for name in gone:
        if name not in known:
            raise Refusal("SX-SYSTEM-07", f"there is no host-key document {name}", _CURE)
    left = [document.parse(name, content) for name, content in given.items() if name not in gone]
    _check(root, left, moving=moving)
    _unlink(root, gone)
    return gone


def judge(context: Context, root: Root, now: datetime, *, ask: bool) -> list[Judged]:
    """How each document stands; ``ask``: with the newest CRLs that can be had, for which servers are asked.

    One that is revoked is noted: there is no update for its host, whatever is seen later.
    """
    machine, revoked = this_machine(root), _revoked(root)
    found = []
    for name, content in sorted(_given(root).items()):
        each = document.parse(name, content)
        if _fingerprints(each) & revoked:
            verdict, why = Verdict.REVOKED, "it was seen in a revocation list"
        else:
            verdict, why = _judge(root, _proof(context, root, ask=ask), each, now)
        here = document.is_of(each, machine) if machine else None
        key = document.key_hash(each).hex()
        found.append(Judged(name, each.key.kind, key, each.expires, here, verdict, why))
    return found


def given(root: Root) -> list[Document]:
    """The documents in /etc/se-hostkeys, whether they are genuine or not. Raises Refusal."""
    return [document.parse(name, content) for name, content in _given(root).items()]


def proof(context: Context, root: Root, image_certificates: Path, *, ask: bool = True) -> Proof:
    """By the root certificates in that directory, and what lies beside the documents on ``root``."""
    scratch = root.place(paths.RUNTIME)
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _Proof(
        config=Config.model_validate({"ignition": {"version": "3.3.0"}}),
        image_certificates=image_certificates,
        verification=parameters.value(context.command_line, parameters.HOSTKEY_VERIFY),
        scratch=scratch,
        context=context,
        root=root,
        ask=ask,
    )


def this_machine(root: Root) -> dict[bytes, KeyKind | None]:
    """The hashes of its host keys, and their kinds; empty if its kernel does not tell."""
    return document.this_host_key_hashes(root.place(paths.THIS_HOSTS_KEYS))


def check_this_machine(root: Root, found: Sequence[Document]) -> None:
    """Raise Refusal if this machine says that it does not start what is for these."""
    document.check_header_version(found, root.place(paths.THIS_HOSTS_HEADER_VERSIONS))
    document.check_this_host(found, this_machine(root))


def _judge(root: Root, proof: Proof, each: Document, now: datetime) -> tuple[Verdict, str]:
    left = each.expires - now
    if left <= timedelta():
        return Verdict.EXPIRED, "get the host's current document from IBM"
    try:
        proof.verify([each])
    except Revoked as error:
        _note_revoked(root, error)
        return Verdict.REVOKED, str(error)
    except FirstbootError as error:
        return Verdict.UNPROVEN, str(error)
    if left < _WARNING:
        return Verdict.ENDS, f"in {left.days} days: get the host's current document from IBM"
    return Verdict.VALID, ""


def _check(root: Root, left: Sequence[Document], *, moving: bool = False) -> None:
    if not left:
        raise Refusal("SX-SYSTEM-08", "no host could start the guest", "add another document first")
    contents.check_documents(left)
    if not moving:
        check_this_machine(root, left)


def _given(root: Root) -> dict[str, bytes]:
    directory = root.place(paths.SYSTEM_HOST_KEYS)
    names = (path for path in sorted(directory.iterdir()) if path.name.startswith(paths.HOST_KEY_PREFIX))
    # What files.write_private is about to put in place is no document yet.
    return {path.name: _read(path, DOCUMENT_LIMIT) for path in names if path.suffix != ".new"}


def _prove(context: Context, root: Root, found: Iterable[Document]) -> None:
    """Raises Refusal for one that cannot be proven."""
    proof = _proof(context, root)
    for each in found:
        _check_revoked(root, each)
        try:
            proof.verify([each])
        except Revoked as error:
            _note_revoked(root, error)
            raise


def _check_revoked(root: Root, each: Document) -> None:
    if _fingerprints(each) & _revoked(root):
        raise Refusal(
            "SX-SYSTEM-06",
            f"the host-key document {each.name} is revoked",
            f"secex hosts remove {each.name}, and add the host's current document",
        )


def _note_revoked(root: Root, error: Revoked) -> None:
    known = _revoked(root)
    if (fingerprint := _fingerprint(error.certificate)) not in known:
        lines = (f"{line}\n" for line in sorted(known | {fingerprint}))
        write_private(root.state(_REVOKED), "".join(lines).encode())


def _revoked(root: Root) -> set[str]:
    path = root.state(_REVOKED)
    return set(_read(path, DOCUMENT_LIMIT).decode(errors="replace").split()) if exists(path) else set()


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(SHA256()).hex()


def _fingerprints(each: Document) -> set[str]:
    return set(map(_fingerprint, each.certificates))


def _read(path: Path, limit: int) -> bytes:
    if not is_regular(path):
        raise Refusal("SX-SYSTEM-09", f"{path} is missing or no regular file", "name the file to read")
    with path.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise Refusal("SX-SYSTEM-10", f"{path} is larger than {limit} bytes", "check what it is")
    return content


def _unlink(root: Root, names: Iterable[str]) -> None:
    directory = root.place(paths.SYSTEM_HOST_KEYS)
    for name in names:
        (directory / name).unlink(missing_ok=True)
    sync(directory)


def _write(path: Path, content: bytes) -> None:
    write_private(path, content)
    path.chmod(0o644)


def _proof(context: Context, root: Root, *, ask: bool = True) -> Proof:
    directory = root.state(paths.IMAGE_STATE) / system_image.CERTIFICATES
    return proof(context, root, directory, ask=ask)


@dataclass(frozen=True)
class _Proof(Proof):
    """By the certificates on ``root``, where the config had them written."""

    root: Root = field(kw_only=True)
    ask: bool = True

    def _certificates(self) -> Iterable[tuple[str, bytes]]:
        directory = self.root.place(paths.SYSTEM_CERTIFICATES)
        for path in sorted(directory.glob("*.cr[lt]")):
            yield path.name, _read(path, certificates.FILE_LIMIT)

    def _crl(self, url: str, seconds: float | None) -> bytes:
        if not self.ask:
            raise Unreachable("SX-SYSTEM-11", "It is not fetched here", "secex hosts check asks for it")
        return super()._crl(url, seconds)
