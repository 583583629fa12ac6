"""The host-key documents of a config, fetched and proven on a workstation as far as it reaches."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import exists
from secex_firstboot.contract import paths
from secex_firstboot.hostkeys import recovery_keys
from secex_firstboot.hostkeys.crl import NoCrl
from secex_firstboot.hostkeys.download import Network, Unreachable
from secex_firstboot.hostkeys.fetch import Fetcher
from secex_firstboot.hostkeys.proof import Proof, named
from secex_firstboot.ignition import config
from secex_firstboot.ignition.config import Config, FileEntry
from secex_firstboot.owner.check import patience
from secex_firstboot.owner.check.config_file import Given, is_proof, is_remote
from secex_firstboot.owner.check.look import Look, listed
from secex_firstboot.sdboot import contents

_OPENSHIFT_NAME = re.compile(re.escape(str(paths.SYSTEM_HOST_KEYS)) + r"/ibm-z-reg-hostkey-[^/]*", re.DOTALL)
_UNPROVEN = "whether the documents are genuine"


def look(
    given: Given,
    certificates: Path | None,
    *,
    verification: Literal["strict", "no"],
    offline: bool,
    context: Context,
    kept: dict[str, bytes],
) -> Look:
    """``certificates`` as for Preflight; ``kept`` gets what servers gave, by path in the config or URL.

    Raises Refusal in the words of first boot.
    """
    if given.is_replaced or (given.elsewhere and not config.host_keys(given.config)):
        return Look("no document that can be looked at here", [_others(given)])
    _check_names(given, context)
    named(given.config)
    if certificates and not exists(certificates):
        raise Refusal(
            "SX-CHECK-06",
            f"there is no directory {certificates}",
            "--certificates=DIRECTORY names the root certificates that the image trusts",
        )
    trusted = certificates or paths.CERTIFICATES
    untold = [_others(given)] if given.elsewhere else []
    if verification == "strict" and not exists(trusted):
        untold.append(f"{_UNPROVEN} (--certificates=DIRECTORY names the root certificates of the image)")
        verification, context = "no", replace(context, warn=lambda line: None)
    remote = [place for place, entry in given.files() if is_proof(entry) and is_remote(entry)]
    whole = _Documents(given.config, trusted, verification, context, kept)
    if not offline:
        if remote or verification == "strict":
            context.say(
                f"what only a server has is asked for, {patience.SECONDS} s a file at most (or --offline)"
            )
        try:
            return whole.proven(untold)
        except Unreachable as error:
            untold.append(error.message)
    if remote:
        untold.append(f"what only a server has: {listed(remote)}")
    return whole.without_network().proven(untold)


def _others(given: Given) -> str:
    return f"what other configs say of host keys: {listed(list(given.elsewhere))}"


def _check_names(given: Given, context: Context) -> None:
    for place, entry in given.files():
        if _OPENSHIFT_NAME.fullmatch(entry.path):
            what = f"{place}.path is OpenShift's name for a host-key document (ibm-z-reg-hostkey-...)"
            cure = f"first boot takes {paths.SYSTEM_HOST_KEYS}/ibm-z-hostkey-NAME"
            if not config.host_keys(given.config):
                raise Refusal("SX-CHECK-07", what, cure)
            context.warn(f"{what}: {cure}")


@dataclass(frozen=True)
class _Documents:
    config: Config
    certificates: Path
    verification: Literal["strict", "no"]
    context: Context
    kept: dict[str, bytes]
    offline: bool = False

    def proven(self, untold: Sequence[str]) -> Look:
        """Raises Unreachable if a server is asked and none answers."""
        names = [entry.name for entry in config.host_keys(self.config)]
        if not names:
            return Look("no document that can be looked at here", untold)
        what = "documents"
        with tempfile.TemporaryDirectory() as scratch:
            proof = _Proof(
                patience.impatient(self.config),
                self.certificates,
                self.verification,
                Path(scratch),
                self.context,
                kept=self.kept,
                offline=self.offline,
            )
            keys = recovery_keys.of_config(proof.config, self.context.say, Path(tempfile.gettempdir()))
            try:
                found = proof.documents()
                contents.check_documents(found)
            except NoCrl as error:
                if not proof.unreachable:
                    raise
                untold = [*untold, f"{_UNPROVEN}: {error.message}"]
            else:
                what = f"{found[0].key.kind} documents"
                if proof.unreachable:
                    untold = [*untold, "what newer revocation lists say"]
        told = recovery_keys.told([each.name for each in keys])
        return Look(f"{len(names)} {what}: {', '.join(names)}; {told}", untold)

    def without_network(self) -> _Documents:
        """What the config itself has. Without a certificate that a server has, nothing can be proven."""
        kept: list[FileEntry] = []
        missing: list[FileEntry] = []
        for entry in self.config.storage.files:
            (missing if is_remote(entry) else kept).append(entry)
        unproven = any(map(config.is_certificate, missing))
        storage = self.config.storage.model_copy(update={"files": kept})
        return replace(
            self,
            config=self.config.model_copy(update={"storage": storage}),
            verification="no" if unproven else self.verification,
            context=replace(self.context, warn=lambda line: None) if unproven else self.context,
            offline=True,
        )


@dataclass(frozen=True)
class _Proof(Proof):
    """``unreachable``: the revocation lists that could not be fetched."""

    kept: dict[str, bytes]
    offline: bool = False
    unreachable: list[str] = field(default_factory=list)

    def _crl(self, url: str, seconds: float | None) -> bytes:
        try:
            if self.offline:
                raise Unreachable("SX-CHECK-08", "It is not fetched here")
            return super()._crl(url, seconds)
        except Unreachable:
            self.unreachable.append(url)
            raise

    def _fetcher(self, network: Network) -> Fetcher:
        return _Keeper(self.config, network, self.context.say, self.kept)


@dataclass(frozen=True)
class _Keeper(Fetcher):
    kept: dict[str, bytes]

    def file(self, entry: FileEntry, what: str, limit: int) -> bytes:
        self.kept[entry.path] = found = super().file(entry, what, limit)
        return found

    def url(self, url: str, what: str, limit: int) -> bytes:
        self.kept[url] = found = super().url(url, what, limit)
        return found
