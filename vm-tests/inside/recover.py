"""The trusted machine of test_recovery.py: ``secex recover``, of a disk whose hosts are gone.

Disks: the guest's, and one with serial ``facts`` (JSON, padded with zeros): ``modules`` that the initramfs
does not have, the ``recovery key``, the ``evidence``; in base64 host-key ``documents``, ``roots``, and what
else ``proves`` them.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from base64 import b64decode
from pathlib import Path
from typing import Any

import secex_firstboot
from secex_firstboot import basic, contract
from secex_firstboot.basic.context import Context
from secex_firstboot.storage import disk

FACTS: dict[str, Any] = json.loads(disk.find_by_serial("facts").read_bytes().rstrip(b"\0"))


def recover() -> dict[str, Any]:
    from secex_firstboot.contract.evidence import Evidence
    from secex_firstboot.hostkeys import document, proof
    from secex_firstboot.owner import recover

    def given(what: str) -> dict[str, bytes]:
        return {name: b64decode(content) for name, content in FACTS[what].items()}

    system = disk.of_device(disk.find_disk().device)
    context = Context("", say=print)
    with tempfile.TemporaryDirectory(dir="/run") as directory:
        work = Path(directory)
        documents = [document.parse(name, content) for name, content in given("documents").items()]
        proofs = given("proves")
        proof.by_files(context, documents, given("roots"), proofs.items(), offline=True, scratch=work)
        found = recover.find(system, work)
        recover.prove(found, Evidence.parse("evidence", json.dumps(FACTS["evidence"]).encode()))
        made = recover.start_on(context, system, found, documents, proofs, work)
        left = sorted(str(path.relative_to(work)) for path in work.rglob("*"))
    return {"left with": found.generation, "made": made.generation, "left behind": left}


def add_modules(directory: Path) -> None:
    """Beside those that are there: /usr is read-only."""
    for name, content in FACTS["modules"].items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(content)
    secex_firstboot.__path__.append(str(directory))
    for package in (basic, contract):
        package.__path__.append(str(directory / package.__name__.rpartition(".")[2]))


def main() -> None:
    add_modules(Path(tempfile.mkdtemp(prefix="modules-", dir="/run")))
    home = Path(tempfile.mkdtemp(prefix="gpg-", dir="/run"))
    os.environ["GNUPGHOME"] = str(home)
    subprocess.run(["gpg", "--batch", "--import"], input=FACTS["recovery key"].encode(), check=True)
    print("RESULT " + json.dumps(recover()), flush=True)


main()
