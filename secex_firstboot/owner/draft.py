"""``secex config``: a config to begin with, for the machines of some host-key documents.

What goes into it is read and encoded anew, as text. So the same can be written for Butane, to be edited.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.paths import HOST_KEY_PREFIX, SYSTEM_CERTIFICATES, SYSTEM_HOST_KEYS
from secex_firstboot.hostkeys import certificates, document
from secex_firstboot.ignition import config, validity

# Ignition's of Debian 12 knows it, and so does each newer one; Butane's docs/specs.md: which makes it.
_SPECIFICATION = "3.3.0"
_BUTANE = {"variant": "fcos", "version": "1.4.0"}
_MODE = 0o644

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._-]")
# sshd(8), AUTHORIZED_KEYS FILE FORMAT, without options; PROTOCOL.u2f of OpenSSH.
_SSH_KEY = re.compile(
    r"(ssh-(rsa|ed25519)|ecdsa-sha2-nistp(256|384|521)"
    r"|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com) [A-Za-z0-9+/]+={0,2}( .*)?"
)
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,64}}\Z){_LABEL}(\.{_LABEL})*")  # hostname(7)


@dataclass(frozen=True)
class Draft:
    """``files``: path and text; ``ssh_keys``: lines of authorized_keys, of ``user``."""

    files: dict[str, str]
    ssh_keys: Sequence[str]
    user: str

    def ignition(self) -> str:
        """JSON."""
        sections = {
            "ignition": {"version": _SPECIFICATION},
            "passwd": {"users": [{"name": self.user, "sshAuthorizedKeys": list(self.ssh_keys)}]},
            "storage": {
                "files": [
                    {"path": path, "overwrite": True, "mode": _MODE, "contents": {"source": _data_url(text)}}
                    for path, text in self.files.items()
                ]
            },
        }
        return json.dumps(sections, indent=2) + "\n"

    def butane(self) -> str:
        """YAML, in which a JSON text is a scalar (YAML 1.2, 1.3)."""
        return "\n".join(self._butane()) + "\n"

    def _butane(self) -> Iterator[str]:
        yield from (f"{name}: {value}" for name, value in _BUTANE.items())
        yield f"passwd:\n  users:\n    - name: {json.dumps(self.user)}\n      ssh_authorized_keys:"
        yield from (f"        - {json.dumps(key)}" for key in self.ssh_keys)
        yield "storage:\n  files:"
        for path, text in self.files.items():
            yield f"    - path: {path}\n      overwrite: true\n      mode: 0{_MODE:o}"
            yield f"      contents:\n        inline: |\n{indent(text, ' ' * 10).rstrip()}"


def make(
    *,
    host_keys: Iterable[Path],
    proof: Iterable[Path],
    revocation_lists: Iterable[Path],
    ssh_keys: Iterable[Path],
    user: str,
    host_name: str | None,
) -> Draft:
    """``proof``: certificates between the image's root and the documents. Raises Refusal."""
    files: dict[str, str] = {}
    for path in host_keys:
        read = document.parse(path.name, certificates.read_file(path))
        _add(files, f"{SYSTEM_HOST_KEYS}/{HOST_KEY_PREFIX}{_name(path)}", read.pem, path)
    for paths, suffix in ((proof, ".crt"), (revocation_lists, ".crl")):
        for path in paths:
            items = certificates.parse(f"{path.stem}{suffix}", certificates.read_file(path))
            _add(files, f"{SYSTEM_CERTIFICATES}/{_name(path)}{suffix}", certificates.to_pem(items), path)
    if host_name is not None:
        if not _HOST_NAME.fullmatch(host_name):
            raise Refusal(
                "SX-OWNER-01",
                "the host name is none",
                "use letters in lower case, digits, - and dots between; at most 64",
            )
        files["/etc/hostname"] = f"{host_name}\n"
    made = Draft(files, [key for path in ssh_keys for key in _ssh_keys(path)], user)
    validity.check(config.parse(made.ignition().encode()))
    return made


def _name(path: Path) -> str:
    return _NOT_PLAIN.sub("-", path.stem)


def _add(files: dict[str, str], place: str, content: bytes, source: Path) -> None:
    if place in files:
        raise Refusal(
            "SX-OWNER-02",
            f"{source} is the second file for {place}",
            "give each file a name of its own",
        )
    files[place] = content.decode()


def _ssh_keys(path: Path) -> list[str]:
    lines = certificates.read_file(path).decode(errors="replace").splitlines()
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys or not all(_SSH_KEY.fullmatch(key) and key.isprintable() for key in keys):
        raise Refusal(
            "SX-OWNER-03",
            f"{path} holds something else than SSH public keys",
            "name the file whose name ends in .pub",
        )
    return keys


def _data_url(text: str) -> str:
    return f"data:;base64,{b64encode(text.encode()).decode()}"
