"""Fetching host-key documents and certificates as Ignition would: source, compression, verification.

Rules from Ignition's configuration specification 3.3; the hash is that of the decompressed content
(https://github.com/coreos/ignition/pull/1566).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tempfile
import zlib
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from cryptography import x509

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import exists
from secex_firstboot.hostkeys.certificates import to_pem
from secex_firstboot.hostkeys.document import DECODING_ERRORS
from secex_firstboot.hostkeys.download import Client, Network, Request
from secex_firstboot.ignition.config import Config, FileEntry, Resource

DOCUMENT_LIMIT = 64 << 10  # bytes, before and after decompression
AUTHORITIES_LIMIT = 1 << 20  # bytes: a whole system's bundle is a quarter of that

_DIGEST_SIZES = {"sha256": 64, "sha512": 128}  # hexadecimal digits


@dataclass(frozen=True)
class Fetcher:
    """``on_attempt`` hears of each attempt over the network, in words. Whatever goes wrong is a Refusal."""

    config: Config
    network: Network
    on_attempt: Callable[[str], None]

    def file(self, entry: FileEntry, what: str, limit: int) -> bytes:
        """The content of a file of the config, decompressed, at most ``limit`` bytes; its hash is right."""
        what = f"the {what} {entry.name}"
        if entry.append:
            raise Refusal(
                "SX-HOSTKEY-17", f"{what} has appended parts", "put the whole file into its contents"
            )
        return self.content(entry.contents, what, limit)

    def content(self, resource: Resource, what: str, limit: int) -> bytes:
        """What it leads to, as for ``file``."""
        if not is_over_http(resource):
            return _content(what, resource, limit, None)
        with self._client() as client:
            return _content(what, resource, limit, client)

    def url(self, url: str, what: str, limit: int) -> bytes:
        """What is at a URL (http or https), at most ``limit`` bytes."""
        with self._client() as client:
            return client.get(Request(what, url, {}, limit))

    @contextmanager
    def _client(self) -> Iterator[Client]:
        ignition = self.config.ignition
        with _authorities(self.config, self.network, self.on_attempt) as authorities:
            yield Client(self.network, ignition.timeouts, ignition.proxy, authorities, self.on_attempt)


@contextmanager
def _authorities(config: Config, network: Network, on_attempt: Callable[[str], None]) -> Iterator[str | bool]:
    """Whom to trust for https: the system's authorities, and the config's in addition to those."""
    from requests.utils import DEFAULT_CA_BUNDLE_PATH

    ignition = config.ignition
    resources = ignition.security.tls.certificate_authorities
    system = Path(DEFAULT_CA_BUNDLE_PATH)
    if not resources:
        yield True
        return
    client = Client(network, ignition.timeouts, ignition.proxy, True, on_attempt)
    with tempfile.NamedTemporaryFile(suffix=".pem") as bundle:
        bundle.write(system.read_bytes() if exists(system) else b"")
        for index, resource in enumerate(resources):
            bundle.write(b"\n" + _authority(index, resource, client))
        bundle.flush()
        yield bundle.name


def _authority(index: int, resource: Resource, client: Client) -> bytes:
    what = f"ignition.security.tls.certificateAuthorities[{index}]"
    content = _content(what, resource, AUTHORITIES_LIMIT, client)
    try:
        authorities = x509.load_pem_x509_certificates(content)
    except DECODING_ERRORS:
        raise Refusal("SX-HOSTKEY-18", f"{what} is no PEM certificate", "correct the config") from None
    return to_pem(authorities)  # what was not read here is not for OpenSSL to read


def is_over_http(resource: Resource) -> bool:
    return _scheme(resource) in ("http", "https")


def _scheme(resource: Resource) -> str:
    return (resource.source or "").partition(":")[0].lower()


def _content(what: str, resource: Resource, limit: int, client: Client | None) -> bytes:
    raw = _raw(what, resource, limit, client)
    content = _decompressed(what, raw, resource.compression, limit)
    if len(content) > limit:
        raise Refusal("SX-HOSTKEY-19", f"{what} is larger than {limit} bytes", "check what the config names")
    _check_hash(what, content, resource.verification.hash)
    return content


def _raw(what: str, resource: Resource, limit: int, client: Client | None) -> bytes:
    if not resource.source:
        raise Refusal("SX-HOSTKEY-20", f"{what} has no contents.source", "give its URL in the config")
    if _scheme(resource) == "data":
        return _data_url(what, resource.source)
    if client is None or not is_over_http(resource):
        raise Refusal(
            "SX-HOSTKEY-21",
            f"{what}: URLs of scheme {_printable_scheme(resource.source)} are not supported",
            "use data, http or https",
        )
    headers = {header.name: header.value for header in resource.http_headers if header.value}
    return client.get(Request(what, resource.source, headers, limit))


def _printable_scheme(source: str) -> str:
    """The scheme as RFC 3986 defines it; anything else before a colon could be the content itself."""
    try:
        return urlsplit(source).scheme or "(none)"
    except ValueError:
        return "(none)"


def _data_url(what: str, url: str) -> bytes:
    """RFC 2397: ``data:[type][;base64],data``."""
    head, comma, data = url.partition(",")
    try:
        if not comma:
            raise ValueError
        decoded = unquote_to_bytes(data)
        return b64decode(decoded, validate=True) if head.lower().endswith(";base64") else decoded
    except ValueError:
        raise Refusal(
            "SX-HOSTKEY-22", f"{what} has a malformed data URL", "make the config with butane"
        ) from None


def _decompressed(what: str, raw: bytes, compression: str | None, limit: int) -> bytes:
    """At most a byte more than the limit."""
    if not compression:
        return raw
    if compression != "gzip":
        raise Refusal("SX-HOSTKEY-23", f"{what} has a compression that is not gzip", "use gzip or none")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as compressed:
            return compressed.read(limit + 1)
    except (OSError, EOFError, zlib.error):
        raise Refusal(
            "SX-HOSTKEY-24", f"{what} is not valid gzip", "check its compression in the config"
        ) from None


def _check_hash(what: str, content: bytes, expected: str | None) -> None:
    if not expected:
        return
    function, _, digest = expected.partition("-")
    try:
        wanted = bytes.fromhex(digest)
    except ValueError:
        wanted = b""
    if len(digest) != _DIGEST_SIZES.get(function) or not wanted:
        raise Refusal(
            "SX-HOSTKEY-25",
            f"{what} has a malformed verification.hash",
            "write it as sha256-HEX or sha512-HEX",
        )
    if hashlib.new(function, content).digest() != wanted:
        raise Refusal(
            "SX-HOSTKEY-26",
            f"{what} does not have the hash that the config gives",
            "check the document and the hash",
        )
