"""The host-key documents of a config, fetched and proven genuine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.key_kind import KeyKind
from secex_firstboot.contract.parameters import HOSTKEY_VERIFY
from secex_firstboot.hostkeys import certificates, document, verify
from secex_firstboot.hostkeys.document import Document
from secex_firstboot.hostkeys.download import Network, Unreachable
from secex_firstboot.hostkeys.fetch import DOCUMENT_LIMIT, Fetcher
from secex_firstboot.hostkeys.key import EXPERIMENTAL
from secex_firstboot.ignition import config
from secex_firstboot.ignition.config import Config, FileEntry

# A distribution point that does not answer is no reason to wait, least of all where a CRL is given.
_CRL_ATTEMPTS = 3
_NEWER_CRL_SECONDS = 10.0


def named(merged: Config) -> list[FileEntry]:
    """The host-key documents of the config, at least one."""
    entries = config.host_keys(merged)
    if not entries:
        raise Refusal(
            "SX-HOSTKEY-27",
            "the Ignition config names no host key",
            "add a storage.files entry with a path /etc/se-hostkeys/ibm-z-hostkey-NAME",
        )
    return entries


def tell_kind(documents: Sequence[Document], context: Context) -> None:
    """Warn of a kind that is experimental. Raises Refusal if they are of two."""
    document.check_one_kind(documents)
    if documents[0].key.kind is KeyKind.HYBRID:
        context.warn(EXPERIMENTAL)


@dataclass(frozen=True)
class Proof:
    """The documents of a config, and what they are proven by.

    ``image_certificates`` is the directory with the root certificates; ``scratch`` one for a moment's files.
    """

    config: Config
    image_certificates: Path
    verification: Literal["strict", "no"]
    scratch: Path
    context: Context

    def documents(self) -> list[Document]:
        """Raises Refusal for the first that cannot be proven genuine."""
        found = []
        for entry in named(self.config):
            content = self._fetcher(Network()).file(entry, "host-key document", DOCUMENT_LIMIT)
            found.append(document.parse(entry.name, content))
        tell_kind(found, self.context)
        self.verify(found)
        for each in found:
            self.context.say(f"{each.key.kind} host key {each.name}: {document.key_hash(each).hex()}")
        return found

    def verify(self, documents: Sequence[Document]) -> None:
        """Raises Refusal for the first that cannot be proven genuine, and valid now."""
        if self.verification == "no":
            self.context.warn(
                f"{HOSTKEY_VERIFY.name}=no: nothing proves that the host keys are those of IBM Z"
            )
            return
        verify.verify(
            documents,
            certificates.load(self.image_certificates, self._certificates()),
            now=datetime.now(UTC),
            fetch_crl=self._crl,
            scratch=self.scratch,
        )

    def _certificates(self) -> Iterable[tuple[str, bytes]]:
        for entry in config.certificates(self.config):
            yield entry.name, self._fetcher(Network()).file(entry, "file", certificates.FILE_LIMIT)

    def _crl(self, url: str, seconds: float | None) -> bytes:
        """As for crl.fetch: patiently, or, where what is given would do, within so many ``seconds``."""
        what, network = "a certificate revocation list", Network(attempts=_CRL_ATTEMPTS)
        if seconds is not None:
            seconds = min(seconds, _NEWER_CRL_SECONDS)
            what = f"a newer certificate revocation list, for {seconds:.0f} s at most,"
            network = Network(attempts=1, total=seconds)
        try:
            return self._fetcher(network).url(url, what, certificates.FILE_LIMIT)
        except Refusal as refusal:
            if seconds is not None:
                self.context.say(f"{refusal.message}: those that are given count")
            raise

    def _fetcher(self, network: Network) -> Fetcher:
        return Fetcher(self.config, network, self.context.say)


def by_files(
    context: Context,
    documents: Sequence[Document],
    roots: Mapping[str, bytes],
    given: Collection[tuple[str, bytes]],
    *,
    offline: bool,
    scratch: Path,
) -> None:
    """Prove them with root certificates, and with certificates and CRLs that are ``given``, name and content.

    Raises Refusal for the first that cannot be proven genuine, and valid now.
    """
    trusted = scratch / "roots"
    trusted.mkdir()
    for name, content in roots.items():
        (trusted / name).with_suffix(".crt").write_bytes(content)
    _ByFiles(
        config=Config.model_validate({"ignition": {"version": "3.3.0"}}),
        image_certificates=trusted,
        verification="strict",
        scratch=scratch,
        context=context,
        given=given,
        offline=offline,
    ).verify(documents)


@dataclass(frozen=True)
class _ByFiles(Proof):
    given: Collection[tuple[str, bytes]]
    offline: bool

    def _certificates(self) -> Iterable[tuple[str, bytes]]:
        return self.given

    def _crl(self, url: str, seconds: float | None) -> bytes:
        if self.offline:
            raise Unreachable("SX-BUILD-35", "It is not fetched", "do without --offline")
        return super()._crl(url, seconds)
