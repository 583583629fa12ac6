"""What surrounds a guest: test hosts with their keys, a web server, a user with a config."""

from __future__ import annotations

import base64
import hashlib
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from harness import pki
from harness.pki import Chain
from harness.ultravisor import HostKey, HybridKey

HOSTS = ("universal", "customer-1", "customer-2", "customer-3")  # the last is in no config


@dataclass(frozen=True)
class Host:
    """A pretended IBM Z machine: its private host key, and the document with its public key."""

    name: str
    directory: Path

    @property
    def document(self) -> Path:
        return self.directory / f"{self.name}.crt"

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.document.read_bytes())

    @property
    def key(self) -> HostKey:
        key = load_pem_private_key((self.directory / f"{self.name}.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        second = self.directory / f"{self.name}.ml-kem"
        if not second.exists():
            return key
        return HybridKey(key, MLKEM1024PrivateKey.from_seed_bytes(second.read_bytes()))


def make_host(name: str, directory: Path, chain: Chain, *, hybrid: bool = False, **options: Any) -> Host:
    """A host with a fresh key; ``options`` are those of the document, see pki.Authority.certify."""
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP521R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / f"{name}.key").write_bytes(private)
    if hybrid:
        second = MLKEM1024PrivateKey.generate()
        (directory / f"{name}.ml-kem").write_bytes(second.private_bytes_raw())
        document = chain.hybrid_document(key.public_key(), second.public_key(), **options)
    else:
        document = pki.pem(chain.document(key.public_key(), **options))
    (directory / f"{name}.crt").write_bytes(document)
    return Host(name, directory)


def make_ssh_identity(directory: Path) -> Path:
    """That directory's SSH key pair; returns the private key's path, the public key has .pub added."""
    path = directory / "id_ed25519"
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test user", "-f", path], check=True)
    return path


@dataclass(frozen=True)
class Tls:
    """A certificate with its private key, PEM, and that of the authority behind it."""

    certificate: bytes
    key: bytes
    authority: bytes


def make_tls(address: str) -> Tls:
    authority = pki.make_root(datetime.now(UTC), "The site's own CA")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = authority.certify(pki.name(CN=address), key.public_key(), addresses=[ip_address(address)])
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Tls(pki.pem(certificate), private, pki.pem(authority.certificate))


@contextmanager
def web_server(files: Mapping[str, bytes], tls: Tls | None = None) -> Iterator[int]:
    """Serve ``files`` (path -> content) over HTTP(S) on a free port of 127.0.0.1, which it yields."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = _server_context(tls).wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _server_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(tls.certificate + tls.key)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def data_url(content: bytes) -> str:
    return f"data:;base64,{base64.b64encode(content).decode()}"


def host_key_file(host: Host, url: str | None = None) -> dict[str, Any]:
    """The Ignition ``storage.files`` entry of a host-key document: inline, or from ``url`` with its hash."""
    content = host.document.read_bytes()
    source: dict[str, Any] = {"source": data_url(content)}
    if url:
        source = {"source": url, "verification": {"hash": f"sha256-{hashlib.sha256(content).hexdigest()}"}}
    return {"path": f"/etc/se-hostkeys/ibm-z-hostkey-{host.name}", "mode": 0o644, "contents": source}


def certificate_files(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """The Ignition ``storage.files`` entries of certificates and CRLs, inline."""
    return [
        {"path": f"/etc/se-hostkeys/certs/{name}", "mode": 0o644, "contents": {"source": data_url(content)}}
        for name, content in files.items()
    ]


def add_wishes(config: dict[str, Any], ssh_key: str) -> None:
    """What a user wants beside what ``secex config`` makes: a login of root, a file and what leads to it, a
    systemd unit with a drop-in.
    """
    unit = (
        "[Unit]\nDescription=A unit of the user's config\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\n"
        "ExecStart=/bin/sh -c 'echo it runs > /run/user-unit'\n\n[Install]\nWantedBy=multi-user.target\n"
    )
    dropin = {
        "name": "10-user.conf",
        "contents": "[Service]\nExecStart=/bin/sh -c 'echo more >> /run/user-unit'\n",
    }
    config["passwd"]["users"].append({"name": "root", "sshAuthorizedKeys": [ssh_key]})
    config["storage"]["files"].append(
        {"path": "/etc/user-file", "mode": 0o640, "contents": {"source": "data:,from%20the%20user%0A"}}
    )
    config["storage"] |= {
        "directories": [{"path": "/etc/user-file-directory", "mode": 0o700}],
        "links": [
            {"path": "/etc/user-file-link", "target": "user-file"},
            {"path": "/etc/user-file-hard-link", "target": "/etc/user-file", "hard": True},
        ],
    }
    config["systemd"] = {
        "units": [{"name": "user.service", "enabled": True, "contents": unit, "dropins": [dropin]}]
    }
