"""What a workstation can tell of a config and an image before any boot."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from harness import pki, site
from support import needs, owners_desk, recovery_keys, se_disk

from secex_firstboot.cli.firstboot import main
from secex_firstboot.contract import paths
from secex_firstboot.contract.metadata import Partition
from secex_firstboot.hostkeys import download
from secex_firstboot.ignition import config
from secex_firstboot.owner.check import config_file, patience
from secex_firstboot.storage import disk_image

MIB = 1 << 20
Rows = dict[str, dict[str, Any]]
Look = Callable[..., tuple[int, Rows]]
Validator = Callable[[str], None]
CHAIN = pki.make_chain(datetime.now(UTC))
DOCUMENT = pki.pem(CHAIN.document(pki.host_key("a").public_key()))


def file(path: str, content: bytes) -> dict[str, Any]:
    return {"path": path, "contents": {"source": f"data:;base64,{base64.b64encode(content).decode()}"}}


ONE_HOST = (
    "1 classical documents: ibm-z-hostkey-a; "
    "no recovery keys: nothing is left that opens the disk on another host"
)


def host_key(content: bytes = DOCUMENT) -> dict[str, Any]:
    return file("/etc/se-hostkeys/ibm-z-hostkey-a", content)


def proof() -> list[dict[str, Any]]:
    files = {**CHAIN.certificates(), **CHAIN.crls()}
    return [file(f"/etc/se-hostkeys/certs/{name}", content) for name, content in files.items()]


@pytest.fixture
def look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Look:
    needs.require("openssl")
    certificates = tmp_path / "certs"
    certificates.mkdir()
    (certificates / "root.crt").write_bytes(CHAIN.certificates()["root.crt"])

    def look(config: dict[str, Any], *options: str) -> tuple[int, Rows]:
        path = tmp_path / "config.ign"
        path.write_text(json.dumps({"ignition": {"version": "3.3.0"}} | config))
        arguments = ["--dry-run", "--json", f"--config={path}", f"--certificates={certificates}", *options]
        code = main(arguments)
        rows = json.loads(capsys.readouterr().out)["steps"]
        return code, {row["step"]: row for row in rows}

    return look


def test_a_good_config_passes_and_what_cannot_be_told_is_said(look: Look) -> None:
    code, rows = look({"storage": {"files": [host_key(), *proof()]}})
    assert code == 0
    assert rows["config"]["detail"] == "a config of specification 3.3.0"
    assert rows["hostkeys"]["detail"] == ONE_HOST
    assert rows["seal"] == rows["seal"] | {"state": "waiting", "detail": "can only be told at first boot"}


def test_a_recovery_key_is_looked_at_as_first_boot_does_it(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner in recovery_keys.owner(monkeypatch):
        for key, code, said in (
            (owner.key("good"), 0, "ibm-z-hostkey-a; recovery keys: owner.asc"),
            (owner.expired("expired"), 1, "gpg does not encrypt to owner.asc"),
            (b"no key", 1, "the recovery key owner.asc is no armored OpenPGP public key"),
        ):
            entry = file("/etc/se-hostkeys/recovery/owner.asc", key)
            found, rows = look({"storage": {"files": [host_key(), *proof(), entry]}})
            assert found == code
            assert said in rows["hostkeys"]["detail"]


def test_a_document_that_is_not_proven_is_refused_in_the_words_of_first_boot(look: Look) -> None:
    other = pki.make_chain(datetime.now(UTC), signing_key={"key": pki.rsa_key("another")})
    forged = pki.pem(other.document(pki.host_key("a").public_key()))
    code, rows = look({"storage": {"files": [host_key(forged), *proof()]}})
    assert code == 1
    assert rows["hostkeys"]["state"] == "refused"
    assert rows["hostkeys"]["detail"].startswith(
        "the host-key document ibm-z-hostkey-a is not signed by the IBM host-key signing key"
    )


def test_hybrid_documents_are_named_so_and_no_more_than_an_image_takes(look: Look) -> None:
    files = [
        file(
            f"/etc/se-hostkeys/ibm-z-hostkey-{who}",
            CHAIN.hybrid_document(pki.host_key(who).public_key(), pki.ml_kem_key(who).public_key()),
        )
        for who in "abcde"
    ]
    code, rows = look({"storage": {"files": [*files[1:], *proof()]}})
    assert (code, rows["hostkeys"]["detail"].partition(":")[0]) == (0, "4 hybrid documents")
    code, rows = look({"storage": {"files": [*files, *proof()]}})
    assert (code, rows["hostkeys"]["state"]) == (1, "refused")
    assert rows["hostkeys"]["detail"].startswith("5 hybrid host keys are given, an image takes 4")


def test_without_verification_the_same_document_passes(look: Look) -> None:
    code, rows = look({"storage": {"files": [host_key()]}}, "--hostkey-verify=no")
    assert (code, rows["hostkeys"]["state"]) == (0, "ready")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"storage": {"files": [file("/etc/luks/key", b"")]}}, "storage.files[0].path belongs to first boot"),
        ({"kernelArguments": {"shouldExist": ["rd.break"]}}, "kernelArguments.shouldExist[0] is one of rd*"),
        ({"storage": {"files": "x"}}, "storage.files: Input should be a valid array"),
        ({"ignition": {"version": "2.4.0"}}, "2.4.0 is not a version of Ignition's config specification 3"),
    ],
)
def test_a_config_that_first_boot_refuses_is_refused(look: Look, config: dict[str, Any], says: str) -> None:
    code, rows = look(config)
    assert code == 1
    assert says in rows["config"]["detail"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return se_disk.make(tmp_path, 300)


def test_an_image_is_laid_out_raw_or_qcow2(look: Look, image: Path, tmp_path: Path) -> None:
    config = {"storage": {"files": [host_key(), *proof()]}}
    qcow2 = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", image, qcow2], check=True)
    for disk in (image, qcow2):
        code, rows = look(config, f"--disk={disk}")
        assert code == 0
        assert rows["personalise"]["detail"] == (
            "encrypt boot and root in place, on a disk of 300 MiB: boot 32 MiB (ext4), root 32 MiB (ext4)"
        )


@pytest.mark.parametrize("how", ["backing file", "data file"])
def test_an_image_that_names_another_file_is_refused(
    look: Look, image: Path, tmp_path: Path, how: str
) -> None:
    qcow2, data = tmp_path / "image.qcow2", tmp_path / "data"
    backed, split = ["-F", "raw", "-b", str(image)], ["-o", f"data_file={data}"]
    options = backed if how == "backing file" else split
    size = ["300M"] if how == "data file" else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, qcow2, *size], check=True)
    code, rows = look({"storage": {"files": [host_key(), *proof()]}}, f"--disk={qcow2}")
    assert code == 1
    assert "names the file with the rest" in rows["personalise"]["detail"]


def test_an_image_without_room_is_refused_with_the_mib_missing(look: Look, tmp_path: Path) -> None:
    image = se_disk.make(tmp_path, 130)
    code, rows = look({"storage": {"files": [host_key(), *proof()]}}, f"--disk={image}")
    assert code == 1
    assert f"{image} is too small by" in rows["personalise"]["detail"]
    assert "qemu-img resize" in rows["personalise"]["detail"]


def test_an_image_without_a_partition_is_refused(look: Look, image: Path) -> None:
    subprocess.run(["sfdisk", "--quiet", "--delete", image, "6"], check=True)
    code, rows = look({"storage": {"files": [host_key(), *proof()]}}, f"--disk={image}")
    assert code == 1
    assert "has no partition 6 'roothash'" in rows["personalise"]["detail"]


@pytest.mark.parametrize(
    ("at", "says"),
    [
        (512 + 56, "there is no sound partition table: its header is damaged: name the SE-ready image"),
        (
            300 * MIB - 512 + 56,
            "there is no sound partition table: its header is damaged: name the SE-ready image",
        ),
        (121 * MIB + 64, "the dm-verity superblock for boot asks for (1, 1, 'sha256', 4097, 4096)"),
        (123 * MIB + 81, "the dm-verity superblock for root has a salt of another form"),
    ],
)
def test_a_flipped_bit_in_what_says_where_things_are_is_refused(
    look: Look, image: Path, at: int, says: str
) -> None:
    with image.open("r+b") as stream:
        stream.seek(at)
        old = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([old ^ 1]))
    code, rows = look({"storage": {"files": [host_key(), *proof()]}}, f"--disk={image}")
    assert (code, rows["personalise"]["state"]) == (1, "refused")
    assert says in rows["personalise"]["detail"]


# --- what is given instead of a config ---


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty: give the Ignition config"),
        (bytes(1024), "is empty: give the Ignition config"),
        (b"-----BEGIN PGP MESSAGE-----\n\nhQ", "is encrypted already: give the config as it was before gpg"),
        (b"\n-----BEGIN PGP MESSAGE-----\n\nhQ", "is encrypted already: "),
        (b"\x85\x01\x8c\x03", "is encrypted already: "),
        (b"\xc1\x8c\x03", "is encrypted already: "),
        (
            b"variant: fcos\nversion: 1.5.0\n",
            "is Butane's YAML: install butane, or make the Ignition config of it: butane ",
        ),
        (b"# mine\nvariant: fcos\n", "is Butane's YAML: "),
        (b'\xef\xbb\xbf{"ignition": {}}', "begins with a byte order mark, which Ignition does not take: "),
    ],
)
def test_what_is_no_config_is_called_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, says: str
) -> None:
    path = tmp_path / "config.ign"
    path.write_bytes(content)
    code, rows = run(capsys, "--config", path)
    assert code == 1
    assert rows["config"]["state"] == "refused"
    assert rows["config"]["detail"].startswith(f"{path} {says}")
    assert rows["hostkeys"]["state"] == "waiting"


@pytest.mark.parametrize("content", [b'{"a": "variant: fcos"', b'{"ignition":\nversion: 3}', b"hello"])
def test_a_config_that_is_damaged_is_not_taken_for_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / "config.ign"
    path.write_bytes(content)
    _, rows = run(capsys, "--config", path)
    assert rows["config"]["detail"].startswith("the Ignition config is not valid: ")


def test_a_config_that_cannot_be_read_is_refused_with_the_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, reason in {"none": "No such file or directory", ".": "Is a directory"}.items():
        code, rows = run(capsys, "--config", tmp_path / path)
        assert code == 1
        assert f"cannot be read: {reason}: name the Ignition config" in rows["config"]["detail"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, Rows]:
    code = main(["--dry-run", "--json", *map(str, arguments)])
    return code, {row["step"]: row for row in json.loads(capsys.readouterr().out)["steps"]}


# --- what cannot be told here ---

GOOD = {"storage": {"files": [host_key(), *proof()]}}


@pytest.fixture
def validator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Validator:
    """In place of ignition-validate, whose real words vm-tests/test_ignition.py has; None: it is not here."""
    needs.require("timeout", "openssl")
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("timeout", "openssl"):
        found = shutil.which(program)
        assert found
        (folder / program).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))

    def validator(script: str) -> None:
        (folder / "ignition-validate").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "ignition-validate").chmod(0o755)

    return validator


def test_without_ignition_s_own_check_a_config_is_not_called_ready(look: Look, validator: Validator) -> None:
    code, rows = look(GOOD)
    assert (code, rows["config"]["state"]) == (0, "unknown")
    assert rows["config"]["untold"] == [
        "what Ignition itself looks at (install ignition-validate, and ask again)"
    ]
    validator("exit 0")
    code, rows = look(GOOD)
    assert (code, rows["config"]["state"], rows["config"]["untold"]) == (0, "ready", [])


def test_what_ignition_s_own_check_refuses_is_refused(look: Look, validator: Validator) -> None:
    validator('echo "error at $.storage.raid.0.level, line 1 col 2: raid level is required"; exit 1')
    code, rows = look(GOOD)
    assert (code, rows["config"]["state"]) == (1, "refused")
    assert "ignition-validate refuses the Ignition config: error at " in rows["config"]["detail"]
    assert "raid level is required" in rows["config"]["detail"]


def test_a_misspelled_field_is_named_and_a_field_in_other_letters_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.ign"
    config = {"ignition": {"version": "3.3.0"}, "Storage": {"fles": [], "files": [host_key(), *proof()]}}
    path.write_text(json.dumps(config))
    main(["--dry-run", "--json", "--offline", f"--config={path}"])
    warned = [line for line in capsys.readouterr().err.splitlines() if "no field" in line]
    assert warned == ["Storage.fles is no field of a config, and Ignition ignores it: correct the name"]


def test_what_it_warns_of_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], validator: Validator
) -> None:
    validator('echo "warning at $.sytemd, line 1 col 9: Unused key sytemd"')
    path = tmp_path / "config.ign"
    path.write_text(json.dumps({"ignition": {"version": "3.3.0"}, **GOOD}))
    main(["--dry-run", f"--config={path}"])
    assert "ignition-validate: warning at $.sytemd, line 1 col 9: Unused key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo couldn\\'t parse config: unsupported config version >&2; exit 1", "does not know this"),
        ("exec sleep 600", "took longer than 1 s"),
    ],
)
def test_a_check_that_comes_to_no_verdict_is_none(
    look: Look, validator: Validator, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    monkeypatch.setattr(config_file, "_TIMEOUT", 1)
    validator(f"PATH=/usr/bin:/bin; {script}")
    code, rows = look(GOOD)
    assert (code, rows["config"]["state"]) == (0, "unknown")
    assert why in rows["config"]["untold"][0]


@pytest.mark.parametrize(
    ("version", "untold"),
    [
        ("3.0.0", None),
        ("3.3.0", None),
        ("3.4.0", "whether the image's Ignition is 2.15 or newer, and so knows 3.4.0"),
        ("3.6.0", "whether the image's Ignition is 2.26 or newer, and so knows 3.6.0"),
        ("3.4.0-experimental", "whether the image's Ignition is of the few versions that know 3.4.0-exper"),
    ],
)
def test_a_specification_that_an_image_may_not_know_is_named(
    look: Look, validator: Validator, version: str, untold: str | None
) -> None:
    validator("exit 0")
    code, rows = look({"ignition": {"version": version}, **GOOD})
    assert code == 0
    assert rows["config"]["state"] == ("unknown" if untold else "ready")
    assert [each[: len(untold or "")] for each in rows["config"]["untold"]] == ([untold] if untold else [])


@pytest.mark.parametrize("version", ["3.7.0", "3.99.0", "3.3.1"])
def test_a_specification_that_there_is_not_is_refused(look: Look, version: str) -> None:
    code, rows = look({"ignition": {"version": version}, **GOOD})
    assert (code, rows["config"]["state"]) == (1, "refused")


def test_devices_and_files_of_servers_are_named_by_their_place(look: Look, validator: Validator) -> None:
    validator("exit 0")
    files = [*GOOD["storage"]["files"], {"path": "/etc/x", "contents": {"source": "https://a.example/x"}}]
    filesystems = [{"device": "/dev/vdb", "format": "xfs"}]
    code, rows = look({"storage": {"files": files, "filesystems": filesystems}})
    assert (code, rows["config"]["state"]) == (0, "unknown")
    assert rows["config"]["untold"] == [
        "which of the guest's disks these are: storage.filesystems[0].device",
        f"whether the guest gets these from their servers: storage.files[{len(files) - 1}]",
    ]


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([{"path": "/etc/a"}, {"path": "/etc/a"}], "storage.files[1] is in the config twice"),
        ([{"path": "etc/a"}], "storage.files[0].path"),
    ],
)
def test_what_ignition_refuses_is_refused_without_its_own_check_too(
    look: Look, entries: list[dict[str, str]], says: str
) -> None:
    code, rows = look({"storage": {"files": [*entries, *GOOD["storage"]["files"]]}})
    assert (code, rows["config"]["state"]) == (1, "refused")
    assert says in rows["config"]["detail"]


def reference(config: dict[str, Any]) -> dict[str, str]:
    content = json.dumps({"ignition": {"version": "3.3.0"}} | config).encode()
    return {"source": f"data:;base64,{base64.b64encode(content).decode()}"}


def referring(**references: Any) -> dict[str, Any]:
    return {"ignition": {"version": "3.3.0", "config": references}}


ELSEWHERE = {"source": "https://a.example/base.ign"}


@pytest.mark.parametrize("config", [referring(merge=[reference(GOOD)]), referring(replace=reference(GOOD))])
def test_what_a_config_refers_to_in_itself_counts(
    look: Look, validator: Validator, config: dict[str, Any]
) -> None:
    validator("exit 0")
    code, rows = look(config)
    assert (code, rows["config"]["state"], rows["hostkeys"]["state"]) == (0, "ready", "ready")
    assert rows["hostkeys"]["detail"] == ONE_HOST


def test_what_it_refuses_there_is_refused(look: Look) -> None:
    code, rows = look(referring(merge=[reference({"storage": {"files": [file("/etc/luks/key", b"")]}})]))
    assert (code, rows["config"]["state"]) == (1, "refused")


def test_a_reference_that_the_host_can_change_is_refused_in_a_config_inside_too(look: Look) -> None:
    inside = reference(referring(replace={"source": "http://a.example/base.ign"}))
    code, rows = look(referring(merge=[inside]))
    assert (code, rows["config"]["state"]) == (1, "refused")
    assert rows["config"]["detail"].startswith("ignition.config.merge[0].replace comes over http without")


@pytest.mark.parametrize("offline", [[], ["--offline"]])
def test_what_is_elsewhere_is_named_and_may_have_the_host_keys(
    look: Look, validator: Validator, offline: list[str]
) -> None:
    validator("exit 0")
    code, rows = look(referring(merge=[reference({}), ELSEWHERE]), *offline)
    assert (code, rows["config"]["state"], rows["hostkeys"]["state"]) == (0, "unknown", "unknown")
    assert rows["config"]["untold"] == ["what other configs say: ignition.config.merge[1]"]
    assert rows["hostkeys"]["untold"] == ["what other configs say of host keys: ignition.config.merge[1]"]


def test_beside_what_is_elsewhere_what_is_here_is_looked_at(look: Look) -> None:
    config = referring(merge=[ELSEWHERE])
    code, rows = look(config | GOOD)
    assert (code, rows["hostkeys"]["state"]) == (0, "unknown")
    assert rows["hostkeys"]["detail"] == ONE_HOST
    code, rows = look(config | {"storage": {"files": [file("/etc/luks/key", b"")]}})
    assert (code, rows["config"]["state"]) == (1, "refused")


def test_a_config_that_another_replaces_does_not_count(look: Look) -> None:
    config = referring(replace=ELSEWHERE)
    code, rows = look(config | {"storage": {"files": [file("/etc/luks/key", b"")]}})
    assert (code, rows["config"]["state"], rows["hostkeys"]["state"]) == (0, "unknown", "unknown")
    assert rows["config"]["untold"] == ["what other configs say: ignition.config.replace"]


# --- host keys ---

OPENSHIFT = file("/etc/se-hostkeys/ibm-z-reg-hostkey-a", DOCUMENT)


def test_openshift_s_name_of_a_host_key_is_refused_with_ours(look: Look) -> None:
    code, rows = look({"storage": {"files": [OPENSHIFT, *proof()]}})
    assert (code, rows["hostkeys"]["state"]) == (1, "refused")
    assert rows["hostkeys"]["detail"] == (
        "storage.files[0].path is OpenShift's name for a host-key document (ibm-z-reg-hostkey-...): "
        "first boot takes /etc/se-hostkeys/ibm-z-hostkey-NAME [SX-CHECK-07]"
    )


def test_beside_a_name_of_ours_it_is_a_warning(look: Look, capsys: pytest.CaptureFixture[str]) -> None:
    code, rows = look({"storage": {"files": [host_key(), OPENSHIFT, *proof()]}})
    assert (code, rows["hostkeys"]["state"]) == (0, "ready")


def test_a_directory_of_certificates_that_is_not_there_is_refused(look: Look, tmp_path: Path) -> None:
    code, rows = look(GOOD, f"--certificates={tmp_path}/none")
    assert (code, rows["hostkeys"]["state"]) == (1, "refused")
    assert rows["hostkeys"]["detail"].startswith(f"there is no directory {tmp_path}/none: --certificates=")


def test_without_any_the_documents_are_not_called_genuine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "CERTIFICATES", tmp_path / "none")
    path = tmp_path / "config.ign"
    path.write_text(json.dumps({"ignition": {"version": "3.3.0"}, **GOOD}))
    code, rows = run(capsys, "--config", path)
    assert (code, rows["hostkeys"]["state"]) == (0, "unknown")
    assert rows["hostkeys"]["untold"][0].startswith("whether the documents are genuine (--certificates=")
    code, rows = run(capsys, "--config", path, "--hostkey-verify=no")
    assert (code, rows["hostkeys"]["state"]) == (0, "ready")


@pytest.mark.parametrize("options", [[], ["--offline"], ["--hostkey-verify=no"]])
def test_a_config_without_a_host_key_is_refused(
    look: Look,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    """Also where there is more that cannot be told."""
    monkeypatch.setattr(paths, "CERTIFICATES", tmp_path / "none")
    path = tmp_path / "no-host-key.ign"
    path.write_text(json.dumps({"ignition": {"version": "3.3.0"}}))
    for code, rows in (
        run(capsys, "--config", path, *options),
        look({"storage": {"files": proof()}}, *options),
    ):
        assert (code, rows["hostkeys"]["state"]) == (1, "refused")
        assert rows["hostkeys"]["detail"].startswith("the Ignition config names no host key: add ")


def fetched(port: int, name: str = "b") -> dict[str, Any]:
    """A document that only a server has."""
    contents = {
        "source": f"http://127.0.0.1:{port}/{name}.crt",
        "verification": {"hash": f"sha256-{'0' * 64}"},
    }
    return {"path": f"/etc/se-hostkeys/ibm-z-hostkey-{name}", "contents": contents}


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port where nobody listens, and no patience."""
    monkeypatch.setattr(patience, "SECONDS", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_server_out_of_reach_says_nothing_of_the_others(look: Look, nobody: int) -> None:
    code, rows = look({"storage": {"files": [host_key(), fetched(nobody), *proof()]}})
    assert (code, rows["hostkeys"]["state"]) == (0, "unknown")
    assert rows["hostkeys"]["detail"] == ONE_HOST
    unreachable, where = rows["hostkeys"]["untold"]
    assert unreachable.startswith(
        "the host-key document ibm-z-hostkey-b could not be fetched from 127.0.0.1 in "
    )
    assert where == "what only a server has: storage.files[1]"


def test_a_document_that_is_here_is_refused_all_the_same(look: Look, nobody: int) -> None:
    other = pki.make_chain(datetime.now(UTC), signing_key={"key": pki.rsa_key("another")})
    forged = pki.pem(other.document(pki.host_key("a").public_key()))
    code, rows = look({"storage": {"files": [host_key(forged), fetched(nobody), *proof()]}})
    assert (code, rows["hostkeys"]["state"]) == (1, "refused")


def test_what_the_host_can_change_on_its_way_is_refused_or_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {"source": "http://a.example/x"}
    for entry, code, says in (
        ({"path": "/etc/x", "contents": plain}, 0, "storage.files[0].contents comes over http without"),
        ({**fetched(1), "contents": plain}, 1, ""),
    ):
        path = tmp_path / "config.ign"
        files = [entry, host_key(), *proof()]
        path.write_text(json.dumps({"ignition": {"version": "3.3.0"}, "storage": {"files": files}}))
        assert main(["--dry-run", f"--config={path}", "--offline"]) == code
        output = capsys.readouterr()
        assert says in output.err
        assert ("config        refused  storage.files[0].contents comes over http" in output.out) == bool(
            code
        )


def test_a_server_that_answers_no_is_a_refusal(look: Look) -> None:
    with site.web_server({}) as port:
        code, rows = look({"storage": {"files": [host_key(), fetched(port), *proof()]}})
    assert (code, rows["hostkeys"]["state"]) == (1, "refused")
    assert "answered 404" in rows["hostkeys"]["detail"]


@pytest.mark.parametrize(("asked", "granted"), [(3600, 30), (0, 30), (5, 5)])
def test_servers_are_not_waited_for_as_long_as_a_config_may_ask(asked: int, granted: int) -> None:
    given = {"ignition": {"version": "3.3.0", "timeouts": {"httpTotal": asked}}}
    found = patience.impatient(config.parse(json.dumps(given).encode()))
    assert found.ignition.timeouts.http_total == granted


def test_offline_asks_nobody(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(download.Client, "get", no_network)
    certificate, *rest = sorted(proof(), key=lambda each: not each["path"].endswith(".crt"))
    for files, untold in (
        ([host_key(), fetched(1), *proof()], "what only a server has: storage.files[1]"),
        ([fetched(1), *proof()], "what only a server has: storage.files[0]"),
        (
            [host_key(), fetched(1) | {"path": certificate["path"]}, *rest],
            "what only a server has: storage.files[1]",
        ),
    ):
        code, rows = look({"storage": {"files": files}}, "--offline")
        assert (code, rows["hostkeys"]["state"]) == (0, "unknown")
        assert rows["hostkeys"]["untold"] == [untold]
    code, rows = look(GOOD, "--offline")
    assert (code, rows["hostkeys"]["state"]) == (0, "ready")


def with_revocation_lists_elsewhere(*, given: bool) -> dict[str, Any]:
    """A config whose certificates say where theirs are, on a port where nobody listens."""
    urls = {"crl_urls": ["http://127.0.0.1:1/x.crl"]}
    chain = pki.make_chain(datetime.now(UTC), intermediate=urls, signing_key=urls)
    document = pki.pem(chain.document(pki.host_key("a").public_key(), **urls))
    files = chain.certificates() | (chain.crls() if given else {})
    certificates = [file(f"/etc/se-hostkeys/certs/{name}", content) for name, content in files.items()]
    return {"storage": {"files": [host_key(document), *certificates]}}


@pytest.mark.parametrize("options", [[], ["--offline"]])
def test_a_revocation_list_out_of_reach_is_no_refusal(look: Look, nobody: int, options: list[str]) -> None:
    code, rows = look(with_revocation_lists_elsewhere(given=False), *options)
    assert (code, rows["hostkeys"]["state"]) == (0, "unknown")
    assert rows["hostkeys"]["untold"][0].startswith("whether the documents are genuine: the CRL of ")


@pytest.mark.parametrize("options", [[], ["--offline"]])
def test_a_newer_one_out_of_reach_is_named(look: Look, nobody: int, options: list[str]) -> None:
    code, rows = look(with_revocation_lists_elsewhere(given=True), *options)
    assert (code, rows["hostkeys"]["state"]) == (0, "unknown")
    assert rows["hostkeys"]["untold"] == ["what newer revocation lists say"]


def test_one_that_nobody_has_is_a_refusal(look: Look) -> None:
    files = [each for each in GOOD["storage"]["files"] if not each["path"].endswith(".crl")]
    code, rows = look({"storage": {"files": files}}, "--offline")
    assert (code, rows["hostkeys"]["state"]) == (1, "refused")
    assert "the CRL of " in rows["hostkeys"]["detail"]


# --- the image ---


def test_what_is_no_image_is_refused_with_the_cure(look: Look, tmp_path: Path) -> None:
    (tmp_path / "blank").write_bytes(bytes(MIB))
    for name, says in {
        "blank": "no sound partition table: nothing says that it is a GPT",
        "none": "cannot be read: No such file or directory",
        ".": "cannot be read: Is a directory",
    }.items():
        code, rows = look(GOOD, f"--disk={tmp_path / name}")
        assert (code, rows["personalise"]["state"]) == (1, "refused")
        cure = "name the SE-ready image" if name == "blank" else "name a disk image"
        assert f"{says}: {cure}" in rows["personalise"]["detail"]


def test_an_image_with_other_partitions_than_its_metadata_say_is_refused(look: Look, image: Path) -> None:
    found = disk_image.read(image, image).all
    partitions = tuple(
        Partition(number=each.number, name=each.name, start=each.start, size=each.size) for each in found
    )
    for made, code, state in (
        (owners_desk.metadata(partitions=partitions), 0, "ready"),
        (owners_desk.metadata(), 1, "refused"),
    ):
        made.write(image.with_suffix(".json"))
        found_code, rows = look(GOOD, f"--disk={image}", "--offline")
        assert (found_code, rows["personalise"]["state"]) == (code, state)
    assert f"{image} has other partitions than its metadata say" in rows["personalise"]["detail"]


# --- the table ---


def test_the_table_fits_100_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.ign"
    path.write_text(json.dumps({"ignition": {"version": "3.5.0"}, **GOOD}))
    assert main(["--dry-run", f"--config={path}", "--offline"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert "config        unknown  a config of specification 3.5.0" in lines
    assert [line for line in lines if line.startswith(f"{'':<23}not told here: whether the image's Ignition")]
