"""Fetching host-key documents: data URLs, and HTTP(S) from a real server on the loopback interface."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import ipaddress
import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from harness import pki
from hypothesis import given, settings
from hypothesis import strategies as st

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.hostkeys.download import Network
from secex_firstboot.hostkeys.fetch import DOCUMENT_LIMIT, Fetcher
from secex_firstboot.ignition.config import Config, FileEntry

DOCUMENT = bytes(range(256)) * 4
NAME = "ibm-z-hostkey-1"


def entry(source: str | None, **contents: Any) -> FileEntry:
    return FileEntry.model_validate(
        {"path": f"/etc/se-hostkeys/{NAME}", "contents": {"source": source, **contents}}
    )


def config(**ignition: Any) -> Config:
    return Config.model_validate({"ignition": {"version": "3.3.0", **ignition}})


class Asked:
    """What the user hears, and a clock that does not wait."""

    def __init__(self) -> None:
        self.attempts: list[str] = []
        self.waits: list[float] = []
        self.network = Network(attempts=4, connect_timeout=2, attempt_timeout=5, sleep=self.waits.append)

    def get(self, file: FileEntry, settings: Config | None = None) -> bytes:
        fetcher = Fetcher(settings or config(), self.network, self.attempts.append)
        return fetcher.file(file, "host-key document", DOCUMENT_LIMIT)


@pytest.fixture
def asked() -> Asked:
    return Asked()


def data_url(content: bytes) -> str:
    return "data:;base64," + base64.b64encode(content).decode()


# Without a network.


@pytest.mark.parametrize(
    "url",
    [
        data_url(DOCUMENT),
        "data:application/x-x509-ca-cert;charset=x;base64,"
        + quote_from_bytes(base64.b64encode(DOCUMENT), safe=""),
        "data:," + quote_from_bytes(DOCUMENT),
        "DATA:text/plain," + quote_from_bytes(DOCUMENT),
    ],
)
def test_a_data_url_is_decoded_without_an_attempt_over_the_network(asked: Asked, url: str) -> None:
    assert asked.get(entry(url)) == DOCUMENT
    assert asked.attempts == []


@pytest.mark.parametrize(
    "url", ["data:", "data:text/plain", "data:;base64,AAA", "data:;base64,A*AA", "data:;base64,é"]
)
def test_a_malformed_data_url_is_refused(asked: Asked, url: str) -> None:
    with pytest.raises(Refusal, match=f"{NAME} has a malformed data URL"):
        asked.get(entry(url))


@settings(deadline=None)
@given(st.text())
def test_nothing_but_a_refusal_comes_of_any_data_url(rest: str) -> None:
    try:
        assert isinstance(Asked().get(entry("data:" + rest)), bytes)
    except Refusal as refusal:
        assert refusal.cure


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("tftp://a.example/secret", "tftp"),
        ("s3://secret/key", "s3"),
        ("file:///etc/secret", "file"),
        ("/etc/secret", r"\(none\)"),
        ("secret text: with a colon", r"\(none\)"),
    ],
)
def test_another_scheme_is_refused_by_its_name(asked: Asked, url: str, scheme: str) -> None:
    with pytest.raises(Refusal, match=f"URLs of scheme {scheme} are not supported") as refused:
        asked.get(entry(url))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("source", [None, ""])
def test_a_document_without_a_source_is_refused(asked: Asked, source: str | None) -> None:
    with pytest.raises(Refusal, match=r"no contents\.source"):
        asked.get(entry(source))


def test_a_document_with_appended_parts_is_refused(asked: Asked) -> None:
    whole = entry("data:,a")
    assert asked.get(whole) == b"a"
    with pytest.raises(Refusal, match="appended parts"):
        asked.get(whole.model_copy(update={"append": [entry("data:,b").contents]}))


def test_gzip_is_decompressed(asked: Asked) -> None:
    packed = gzip.compress(DOCUMENT[:500]) + gzip.compress(DOCUMENT[500:])
    assert asked.get(entry(data_url(packed), compression="gzip")) == DOCUMENT


@pytest.mark.parametrize(
    "packed",
    [b"", DOCUMENT, gzip.compress(DOCUMENT)[:-1], gzip.compress(DOCUMENT)[:-8] + bytes(8)],
    ids=["empty", "not packed", "cut", "wrong checksum"],
)
def test_broken_gzip_is_refused(asked: Asked, packed: bytes) -> None:
    if not packed:
        packed = b"\x1f\x8b"
    with pytest.raises(Refusal, match="not valid gzip"):
        asked.get(entry(data_url(packed), compression="gzip"))


def test_another_compression_is_refused(asked: Asked) -> None:
    with pytest.raises(Refusal, match="not gzip"):
        asked.get(entry(data_url(DOCUMENT), compression="xz"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_document_over_the_limit_is_refused(asked: Asked, pack: Callable[[bytes], bytes]) -> None:
    compression = None if pack is bytes else "gzip"
    fits = bytes(DOCUMENT_LIMIT)
    assert asked.get(entry(data_url(pack(fits)), compression=compression)) == fits
    with pytest.raises(Refusal, match="larger than 65536 bytes"):
        asked.get(entry(data_url(pack(fits + b"\0")), compression=compression))


@pytest.mark.parametrize("function", ["sha256", "sha512"])
def test_the_hash_is_that_of_the_decompressed_content(asked: Asked, function: str) -> None:
    packed = gzip.compress(DOCUMENT)

    def get(digest: str) -> bytes:
        verification = {"hash": f"{function}-{digest}"}
        return asked.get(entry(data_url(packed), compression="gzip", verification=verification))

    assert get(hashlib.new(function, DOCUMENT).hexdigest()) == DOCUMENT
    for wrong in packed, DOCUMENT[1:]:
        with pytest.raises(Refusal, match="does not have the hash"):
            get(hashlib.new(function, wrong).hexdigest())


@pytest.mark.parametrize(
    "text", ["sha256-", "sha256", "md5-" + "0" * 32, "sha512-" + "0" * 64, "sha256-" + "x" * 64]
)
def test_a_malformed_hash_is_refused(asked: Asked, text: str) -> None:
    with pytest.raises(Refusal, match=r"malformed verification\.hash"):
        asked.get(entry(data_url(DOCUMENT), verification={"hash": text}))


def test_data_urls_do_not_cost_the_import_of_requests() -> None:
    program = (
        "import sys; from secex_firstboot.hostkeys.fetch import Fetcher;"
        "from secex_firstboot.hostkeys.download import Network;"
        "from secex_firstboot.ignition.config import Config, FileEntry;"
        "config = Config.model_validate({'ignition': {'version': '3.3.0'}});"
        "entry = FileEntry.model_validate({'path': '/a', 'contents': {'source': 'data:,x'}});"
        "assert Fetcher(config, Network(), print).file(entry, 'document', 9) == b'x';"
        "assert 'requests' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# Over a network.

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def body(content: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(content)

    return answer


def broken_off(request: http.server.BaseHTTPRequestHandler) -> None:
    body(DOCUMENT[1:], Content_Length=str(len(DOCUMENT)))(request)


def hang_up(request: http.server.BaseHTTPRequestHandler) -> None:
    request.close_connection = True


class Server:
    """Gives its answers in turn, the last one for ever; keeps what it was asked."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        server, self.requests = self, []  # type: ignore[var-annotated]
        self.answers = list(answers)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self)
                answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                with suppress(OSError):  # the client may have had enough
                    answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            self.http.socket = tls.wrap_socket(self.http.socket, server_side=True)
        self.port = self.http.server_address[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}/hkd"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*answers: Answer, tls: ssl.SSLContext | None = None) -> Server:
        servers.append(Server(*answers, tls=tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


Serve = Callable[..., Server]


def test_a_document_is_fetched_with_the_headers_of_the_config(asked: Asked, serve: Serve) -> None:
    server = serve(body(DOCUMENT))
    headers = [{"name": "Authorization", "value": "Bearer t"}, {"name": "X-None"}]
    assert asked.get(entry(server.url, httpHeaders=headers)) == DOCUMENT
    (request,) = server.requests
    assert request.headers["Authorization"] == "Bearer t"
    assert request.headers["Accept-Encoding"] == "identity"
    assert "X-None" not in request.headers
    assert asked.attempts == [f"the host-key document {NAME} from 127.0.0.1: attempt 1 of 4"]


@pytest.mark.parametrize("trouble", [body(b"", 503), body(b"", 429), hang_up, broken_off])
def test_a_server_in_trouble_is_asked_again_after_a_growing_wait(
    asked: Asked, serve: Serve, trouble: Answer
) -> None:
    assert asked.get(entry(serve(trouble, trouble, trouble, body(DOCUMENT)).url)) == DOCUMENT
    assert len(asked.attempts) == 4
    assert all(low <= wait <= 2 * low for wait, low in zip(asked.waits, [0.5, 1, 2], strict=True))


def test_attempts_come_to_an_end(asked: Asked, serve: Serve) -> None:
    server = serve(body(b"", 500))
    with pytest.raises(Refusal, match="in 4 attempts: the server answered 500") as refused:
        asked.get(entry(server.url + "?token=secret"))
    assert len(server.requests) == len(asked.attempts) == 4
    assert len(asked.waits) == 3
    assert "secret" not in str(refused.value) + "".join(asked.attempts)


def test_all_attempts_together_are_bounded(asked: Asked, serve: Serve) -> None:
    asked.network = replace(asked.network, total=0.4)  # less than the first wait
    server = serve(body(b"", 500))
    with pytest.raises(Refusal, match="in 1 attempts"):
        asked.get(entry(server.url))
    assert asked.waits == []


def test_waits_are_bounded(asked: Asked, serve: Serve) -> None:
    asked.network = replace(asked.network, attempts=8, longest_wait=3)
    with pytest.raises(Refusal):
        asked.get(entry(serve(body(b"", 500)).url))
    assert max(asked.waits) <= 3


def test_a_server_that_is_not_there_is_refused_in_the_end(asked: Asked) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with pytest.raises(Refusal, match="in 4 attempts: no connection"):
        asked.get(entry(f"http://127.0.0.1:{port}/"))


@pytest.mark.parametrize("status", [204, 401, 404])
def test_an_answer_that_will_not_change_is_refused_at_once(asked: Asked, serve: Serve, status: int) -> None:
    with pytest.raises(Refusal, match=f"answered {status}"):
        asked.get(entry(serve(body(b"", status)).url))
    assert len(asked.attempts) == 1


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http:///a", "http://127.0.0.1:99999/", "http://a\x1bb/"]
)
def test_an_invalid_url_is_refused(asked: Asked, url: str) -> None:
    with pytest.raises(Refusal):
        asked.get(entry(url))
    assert len(asked.attempts) <= 1


def test_a_body_over_the_limit_is_refused_unread(asked: Asked, serve: Serve) -> None:
    sent = 0

    def endless(request: http.server.BaseHTTPRequestHandler) -> None:
        nonlocal sent
        request.send_response(200)
        request.end_headers()
        while True:
            sent += request.wfile.write(bytes(65536))

    assert asked.get(entry(serve(body(bytes(DOCUMENT_LIMIT))).url)) == bytes(DOCUMENT_LIMIT)
    with pytest.raises(Refusal, match="larger than 65536 bytes"):
        asked.get(entry(serve(endless).url))
    assert sent < 64 << 20  # what the kernel buffers


def test_a_compressed_document_comes_over_http_too(asked: Asked, serve: Serve) -> None:
    server = serve(body(gzip.compress(DOCUMENT), Content_Encoding="gzip"))
    assert asked.get(entry(server.url, compression="gzip")) == DOCUMENT


def test_a_server_that_does_not_answer_is_given_up(asked: Asked, serve: Serve) -> None:
    asked.network = replace(asked.network, attempts=2)
    server = serve(lambda request: time.sleep(3), body(DOCUMENT))
    assert asked.get(entry(server.url), config(timeouts={"httpResponseHeaders": 1})) == DOCUMENT
    assert len(asked.attempts) == 2


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(asked: Asked, serve: Serve) -> None:
    def drip(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        for _ in range(200):
            request.wfile.write(b"x")
            time.sleep(0.05)

    asked.network = replace(asked.network, attempts=1, attempt_timeout=0.5)
    start = time.monotonic()
    with pytest.raises(Refusal, match="no complete answer in time"):
        asked.get(entry(serve(drip).url), config(timeouts={"httpResponseHeaders": 1}))
    assert time.monotonic() - start < 4


def test_the_total_time_of_the_config_ends_the_attempts(asked: Asked, serve: Serve) -> None:
    asked.network = replace(asked.network, attempts=50, longest_wait=0.4, first_wait=0.4, sleep=time.sleep)
    with pytest.raises(Refusal, match="could not be fetched"):
        asked.get(entry(serve(body(b"", 503)).url), config(timeouts={"httpTotal": 1}))
    assert 2 <= len(asked.attempts) <= 5


def redirect(location: str) -> Answer:
    return body(b"", 302, Location=location)


def test_a_redirect_is_followed_and_headers_stay_with_their_server(asked: Asked, serve: Serve) -> None:
    target = serve(body(DOCUMENT))
    first = serve(redirect("/other"), redirect(target.url))
    headers = [{"name": "X-Token", "value": "secret"}]
    assert asked.get(entry(first.url, httpHeaders=headers)) == DOCUMENT
    assert [request.path for request in first.requests] == ["/hkd", "/other"]
    assert all(request.headers["X-Token"] == "secret" for request in first.requests)
    assert "X-Token" not in target.requests[0].headers


def test_a_redirect_without_end_is_refused(asked: Asked, serve: Serve) -> None:
    server = serve(redirect("/again"))
    with pytest.raises(Refusal, match="more than 5 times"):
        asked.get(entry(server.url))
    assert len(server.requests) == 6


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://["])
def test_a_redirect_away_from_http_is_refused(asked: Asked, serve: Serve, target: str) -> None:
    with pytest.raises(Refusal, match="redirected to where it may not go"):
        asked.get(entry(serve(redirect(target)).url))


def test_the_proxy_of_the_config_is_asked_but_for_the_hosts_excepted(asked: Asked, serve: Serve) -> None:
    proxy, server = serve(body(b"by proxy")), serve(body(b"direct"))
    settings = config(proxy={"httpProxy": proxy.url.removesuffix("/hkd"), "noProxy": ["127.0.0.1"]})
    assert asked.get(entry("http://documents.example/hkd"), settings) == b"by proxy"
    assert proxy.requests[0].path == "http://documents.example/hkd"
    assert asked.get(entry(server.url), settings) == b"direct"


def test_the_environment_has_no_say(asked: Asked, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert asked.get(entry(serve(body(DOCUMENT)).url)) == DOCUMENT


def test_no_url_is_logged(asked: Asked, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    asked.get(entry(serve(body(DOCUMENT)).url + "?token=secret"))
    assert "secret" not in caplog.text


@contextmanager
def tls_server_key(directory: Path) -> Iterator[tuple[ssl.SSLContext, bytes]]:
    """A self-signed certificate for 127.0.0.1, in use and as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    path = directory / "server.pem"
    path.write_bytes(certificate + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    yield context, certificate


def authorities(*sources: str) -> dict[str, Any]:
    return {"tls": {"certificateAuthorities": [{"source": source} for source in sources]}}


def test_https_is_trusted_by_the_authorities_of_the_config(
    asked: Asked, serve: Serve, tmp_path: Path
) -> None:
    with tls_server_key(tmp_path) as (context, certificate):
        server, ca = serve(body(DOCUMENT), tls=context), serve(body(certificate))
        for source in data_url(certificate), ca.url:
            assert asked.get(entry(server.url), config(security=authorities(source))) == DOCUMENT
        with pytest.raises(Refusal, match="certificate is not trusted"):
            asked.get(entry(server.url))


def test_only_what_is_read_as_an_authority_is_trusted(asked: Asked, serve: Serve, tmp_path: Path) -> None:
    """OpenSSL would take a block of this type for a certificate, the library here does not."""
    other = pki.pem(pki.make_root(datetime.now(UTC)).certificate)
    with tls_server_key(tmp_path) as (context, certificate):
        server = serve(body(DOCUMENT), tls=context)
        hidden = certificate.replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE")
        assert asked.get(entry(server.url), config(security=authorities(data_url(other + certificate))))
        with pytest.raises(Refusal, match="certificate is not trusted"):
            asked.get(entry(server.url), config(security=authorities(data_url(other + hidden))))


def test_an_authority_that_is_no_certificate_is_refused(asked: Asked) -> None:
    with pytest.raises(Refusal, match=r"certificateAuthorities\[0\] is no PEM certificate"):
        asked.get(entry("https://127.0.0.1:1/"), config(security=authorities("data:,nothing")))


def test_https_without_any_authority_is_refused_at_once(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", "/nowhere/bundle.pem")
    with pytest.raises(Refusal, match="no certificate authority to trust"):
        asked.get(entry("https://127.0.0.1:1/"))
    assert len(asked.attempts) == 1


def test_a_redirect_from_https_to_http_is_refused(asked: Asked, serve: Serve, tmp_path: Path) -> None:
    with tls_server_key(tmp_path) as (context, certificate):
        plain = serve(body(DOCUMENT))
        secure = serve(redirect(plain.url), tls=context)
        with pytest.raises(Refusal, match="redirected to where it may not go"):
            asked.get(entry(secure.url), config(security=authorities(data_url(certificate))))
        assert plain.requests == []
