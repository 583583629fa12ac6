"""What an owner does before a first boot, by the commands of docs/run-a-guest.md: ``secex``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.se_ready import Signature

Config = dict[str, Any]


def adopt(
    published: Path,
    image: Path,
    *,
    documents: Sequence[Path],
    roots: Iterable[Path],
    proof: Sequence[Path],
    signer: Path | None,
) -> Path:
    """``secex adopt``, for the hosts of these documents; the public key that configs are encrypted to."""
    words = [*_hosts(documents, proof), *(f"--root={path}" for path in roots), "--offline"]
    if signer:
        words += [f"--config-signer={signer}", "--config-bound"]
    secex("adopt", published, *words, f"--output={image.with_suffix('')}")
    return image.with_suffix(".pub.asc")


def config(documents: Sequence[Path], proof: Sequence[Path], ssh_key: Path) -> Config:
    """``secex config``."""
    made: Config = json.loads(secex("config", *_hosts(documents, proof), f"--ssh-key={ssh_key}"))
    return made


def _hosts(documents: Sequence[Path], proof: Sequence[Path]) -> list[str]:
    """``proof``: certificates, and as .crl revocation lists."""
    words = [f"--hostkey={document}" for document in documents]
    return words + [f"--{'crl' if path.suffix == '.crl' else 'cert'}={path}" for path in proof]


def encrypt(
    config: Config, metadata: Path, certificates: Path, output: Path, signature: Signature | None
) -> None:
    """``secex encrypt``: after a check, for the image that has these metadata and the key beside them."""
    with tempfile.TemporaryDirectory() as directory, _keys(signature) as (gnupg, sign):
        plain = Path(directory) / "config.ign"
        plain.write_text(json.dumps(config))
        image_is = (f"--metadata={metadata}", f"--certificates={certificates}")
        secex("encrypt", plain, *image_is, "--offline", f"--output={output}", *sign, environment=gnupg)


@contextmanager
def _keys(signature: Signature | None) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The environment of a gpg that has the signer's key, and what ``secex encrypt`` is told of it."""
    if not signature:
        yield {}, []
        return
    with tempfile.TemporaryDirectory(prefix="gpg-") as home:
        environment = {"GNUPGHOME": home}
        gpg = ["gpg", "--batch", "--import"]
        subprocess.run(
            gpg, input=signature.by.private, env=os.environ | environment, check=True, capture_output=True
        )
        try:
            yield environment, [f"--sign-with={signature.by.fingerprint}"]
        finally:
            subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)


def secex(*words: str | Path, environment: Mapping[str, str] | None = None) -> str:
    command = Path(sys.executable).with_name("secex")  # of this virtual environment
    done = subprocess.run(
        [command, *words], env=os.environ | (environment or {}), check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"secex {words[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout
