"""``secex check``, as a person and as a program reads it; what it refuses: tests/owner/test_check.py."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from harness import pki, site
from support import json_schemas, needs
from support.owners_desk import CHAIN, HASH, Desk, Output

from secex_firstboot.cli import check, firstboot
from secex_firstboot.contract.metadata import BootEntry
from secex_firstboot.owner.check import patience

SCHEMA = json_schemas.of("check")


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    needs.require("openssl")
    return Desk(tmp_path, capsys)


def valid(output: str) -> dict[str, Any]:
    printed = json.loads(output)
    jsonschema.validate(printed, SCHEMA, jsonschema.Draft202012Validator)
    assert isinstance(printed, dict)
    return printed


def steps(checked: Output) -> dict[str, dict[str, Any]]:
    return {row["step"]: row for row in valid(checked.out)["steps"]}


def test_it_prints_what_its_schema_says(desk: Desk) -> None:
    words: list[str | Path] = ["check", desk.config(), *desk.certificates(), "--offline", "--json"]
    without = desk.secex(*words)
    assert (without.code, valid(without.out)["image"]) == (0, None)
    whole = valid(desk.secex(*words, f"--metadata={desk.metadata(config_signers=('A' * 40,))}").out)
    assert whole["schema"] == check.SCHEMA
    assert whole["image"] == {
        "agent": "0.1.0",
        "config_key": desk.key.fingerprint,
        "config_signers": ["A" * 40],
        "config_bound": False,
        "host_keys": [{"document": "first.crt", "kind": "classical", "hash": HASH}],
    }


def test_the_schema_refuses_what_is_not_in_it(desk: Desk) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    printed = valid(desk.secex("check", desk.config(), "--offline", "--json").out)
    changes: list[dict[str, Any]] = [
        {"schema": 2},
        {"expires": [{}]},
        {"image": {}},
        {"steps": None},
        {"new": 1},
    ]
    for wrong in changes:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(printed | wrong, SCHEMA, jsonschema.Draft202012Validator)


def test_the_dry_run_of_a_config_says_the_same(desk: Desk) -> None:
    words = [*desk.certificates(), "--offline"]
    mine = desk.secex("check", desk.config(), *words)
    assert firstboot.main(["--dry-run", f"--config={desk.file('config.ign')}", *words]) == 0
    assert desk.capture.readouterr().out == mine.out


def test_lines_fit_100_columns_and_do_not_command_the_terminal(desk: Desk) -> None:
    content = json.loads(desk.config().read_text())
    content["ignition"]["version"] = "3.5.0"
    content["sto\x1b[2Jrage"] = {}
    content["storage"]["files"].append({"path": "/etc/x", "contents": {"source": "http://a.example/x"}})
    long = desk.file(f"{'long-name-' * 20}.ign", json.dumps(content))
    words = [
        f"--metadata={desk.metadata(config_signers=('A' * 40, 'B' * 40))}",
        *desk.certificates(),
        "--offline",
    ]
    for name in (long, desk.file("none.ign")):
        seen = desk.secex("check", name, *words)
        assert all(len(line) <= 100 for line in (seen.out + seen.err).splitlines())
        assert "\x1b" not in seen.out + seen.err


def test_a_refusal_has_an_exit_code_of_its_own(desk: Desk) -> None:
    refused = desk.file("refused.ign", '{"ignition": {"version": "3.3.0"}}')
    seen = desk.secex("check", refused, "--offline")
    assert seen.code == 3
    assert "hostkeys      refused  the Ignition config names no host key" in seen.out


# --- expiry ---


def test_every_document_certificate_and_list_is_told_with_its_end_soonest_first(desk: Desk) -> None:
    seen = valid(desk.secex("check", desk.config(), *desk.certificates(), "--offline", "--json").out)
    expires = [(each["kind"], each["name"]) for each in seen["expires"]]
    assert expires == [
        *(("revocation list", f"{name}.crl") for name in ("intermediate", "root", "signing-key")),
        *(("certificate", f"{name}.crt") for name in ("intermediate", "root", "signing-key")),
        ("host-key document", "ibm-z-hostkey-host-a"),
    ]
    end = CHAIN.root.certificate.not_valid_after_utc
    assert datetime.fromisoformat(seen["expires"][-1]["until"]) == end
    page = desk.secex("check", desk.config(), *desk.certificates(), "--offline").out
    assert f"{end:%Y-%m-%d}  host-key document ibm-z-hostkey-host-a\n" in page


def test_what_has_expired_is_told_beside_the_refusal_and_what_cannot_be_read_is_not(desk: Desk) -> None:
    old = pki.pem(CHAIN.document(pki.host_key("a").public_key(), start=-9, end=-2))
    desk.config()
    content = json.loads(desk.file("config.ign").read_text())
    content["storage"]["files"][0]["contents"]["source"] = site.data_url(old)
    content["storage"]["files"].append(
        {"path": "/etc/se-hostkeys/certs/x.crt", "contents": {"source": "data:,no%20certificate"}}
    )
    path = desk.file("old.ign", json.dumps(content))
    seen = desk.secex("check", path, *desk.certificates(), "--offline", "--json")
    assert (seen.code, steps(seen)["hostkeys"]["state"]) == (3, "refused")
    first = valid(seen.out)["expires"][0]
    assert (first["kind"], first["name"]) == ("host-key document", "ibm-z-hostkey-host-a")
    assert datetime.fromisoformat(first["until"]) < datetime.now(UTC)
    assert "x.crt" not in {each["name"] for each in valid(seen.out)["expires"]}


def test_what_a_server_has_is_told_as_well(desk: Desk) -> None:
    content = json.loads(desk.config().read_text())
    document = desk.file("host-a.crt").read_bytes()
    with site.web_server({"/a.crt": document}) as port:
        content["storage"]["files"][0]["contents"] = {
            "source": f"http://127.0.0.1:{port}/a.crt",
            "verification": {"hash": f"sha256-{hashlib.sha256(document).hexdigest()}"},
        }
        path = desk.file("remote.ign", json.dumps(content))
        seen = valid(desk.secex("check", path, *desk.certificates(), "--json").out)
        offline = valid(desk.secex("check", path, *desk.certificates(), "--offline", "--json").out)
    assert "ibm-z-hostkey-host-a" in {each["name"] for each in seen["expires"]}
    assert "ibm-z-hostkey-host-a" not in {each["name"] for each in offline["expires"]}


# --- the image and its metadata ---


def test_without_the_image_its_metadata_tell_what_they_can(desk: Desk) -> None:
    words: list[str | Path] = ["check", desk.config(), "--offline", "--json"]
    seen = steps(desk.secex(*words, f"--metadata={desk.metadata()}"))["personalise"]
    assert (seen["state"], seen["untold"]) == (
        "unknown",
        ["whether the disk has room for them (--image=IMAGE names it)"],
    )
    assert seen["detail"] == "encrypt boot and root in place: boot 32 MiB (ext4), root 32 MiB (ext4)"


def test_whether_documents_are_proven_is_as_the_image_says(desk: Desk) -> None:
    entry = BootEntry(release="6", kernel=HASH, initramfs=(), options="secex.hostkey_verify=no")
    words: list[str | Path] = ["check", desk.config(), "--offline", "--json", *desk.certificates()]
    forged = pki.make_chain(datetime.now(UTC), signing_key={"key": pki.rsa_key("another")})
    content = json.loads(desk.file("config.ign").read_text())
    document = pki.pem(forged.document(pki.host_key("a").public_key()))
    content["storage"]["files"][0]["contents"]["source"] = site.data_url(document)
    words[1] = desk.file("forged.ign", json.dumps(content))
    for options, code in (
        ([], 3),
        ([f"--metadata={desk.metadata(boot_entry=entry)}"], 0),
        (["--hostkey-verify=strict"], 3),
    ):
        assert desk.secex(*words, *options).code == code
    both = [f"--metadata={desk.metadata(boot_entry=entry)}", "--hostkey-verify=strict"]
    assert desk.secex(*words, *both).code == 3


def test_an_image_that_is_not_sealed_is_said_to_be_none_to_encrypt_to(desk: Desk) -> None:
    words: list[str | Path] = ["check", desk.config(), "--offline"]
    unsealed = desk.metadata(config_key=None, host_keys=())
    assert "config key  none: the image is not sealed\n" in desk.secex(*words, f"--metadata={unsealed}").out
    assert f"config key  {desk.key.fingerprint}\n" in desk.secex(*words, f"--metadata={desk.metadata()}").out


def test_metadata_lie_beside_the_image(desk: Desk) -> None:
    words: list[str | Path] = ["check", desk.config(), "--offline", f"--image={desk.place / 'linux.qcow2'}"]
    assert "config key" not in desk.secex(*words).out
    desk.metadata()
    assert "config key" in desk.secex(*words).out


# --- Butane ---

BUTANE = """\
[ "$#" = 3 ] && [ "$1" = --strict ] && [ "$2" = "--files-dir=${3%/*}" ] && [ "${3##*/}" = a.bu ] || exit 2
"""


@pytest.fixture
def butane(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """In place of the real one, whose arguments and exit codes are those of its internal/main.go."""
    needs.require("timeout", "cat", "env", "openssl")
    made = desk.config()
    made.rename(desk.place / "made.ign")
    desk.certificates()
    desk.file("a.bu", "variant: fcos\nversion: 1.4.0\n")
    desk.stand_ins(monkeypatch, "timeout", "cat", "openssl")
    return desk


def test_butane_s_yaml_is_checked_as_what_butane_makes_of_it(butane: Desk) -> None:
    butane.program("butane", f"{BUTANE}cat {butane.file('made.ign')}")
    butane.program("ignition-validate", f'[ "$1" = - ] && [ "$(cat)" = "$(cat {butane.file("made.ign")})" ]')
    seen = butane.secex("check", butane.file("a.bu"), *butane.certificates(), "--offline", "--json")
    assert seen.code == 0
    assert (steps(seen)["config"]["state"], steps(seen)["hostkeys"]["state"]) == ("ready", "ready")


def test_what_butane_refuses_is_refused(butane: Desk) -> None:
    butane.program("butane", f'{BUTANE}echo "error at line 1, column 1" >&2; exit 1')
    seen = butane.secex("check", butane.file("a.bu"), "--offline", "--json")
    assert (seen.code, steps(seen)["config"]["state"]) == (3, "refused")
    assert "butane refuses" in steps(seen)["config"]["detail"]
    assert "error at line 1, column 1" in steps(seen)["config"]["detail"]


def test_without_butane_its_yaml_is_refused_with_the_cure(butane: Desk) -> None:
    seen = butane.secex("check", butane.file("a.bu"), "--offline", "--json")
    assert (seen.code, steps(seen)["config"]["state"]) == (3, "refused")
    assert "is Butane's YAML: install butane" in steps(seen)["config"]["detail"]


# --- configs that a config refers to ---


def referring(desk: Desk, url: str, content: bytes | None, **more: Any) -> Path:
    reference: dict[str, Any] = {"source": url}
    if content is not None:
        reference["verification"] = {"hash": f"sha256-{hashlib.sha256(content).hexdigest()}"}
    ignition = {"version": "3.3.0", "config": {"merge": [reference]}, **more}
    return desk.file("referring.ign", json.dumps({"ignition": ignition}))


def test_on_request_a_config_elsewhere_is_fetched_and_counts(desk: Desk) -> None:
    text = desk.config().read_bytes()
    with site.web_server({"/base.ign": text}) as port:
        path = referring(desk, f"http://127.0.0.1:{port}/base.ign", text)
        words: list[str | Path] = ["check", path, *desk.certificates(), "--json"]
        left, fetched = desk.secex(*words), desk.secex(*words, "--fetch")
    assert steps(left)["config"]["untold"][0] == "what other configs say: ignition.config.merge[0]"
    assert not [each for each in steps(fetched)["config"]["untold"] if "other configs" in each]
    assert steps(fetched)["hostkeys"] | {"state": "ready"} == steps(fetched)["hostkeys"]


def test_what_is_refused_there_is_refused(desk: Desk) -> None:
    luks = {"path": "/etc/luks/key", "contents": {"source": "data:,"}}
    text = json.dumps({"ignition": {"version": "3.3.0"}, "storage": {"files": [luks]}}).encode()
    with site.web_server({"/base.ign": text}) as port:
        seen = desk.secex(
            "check", referring(desk, f"http://127.0.0.1:{port}/base.ign", text), "--fetch", "--json"
        )
    assert (seen.code, steps(seen)["config"]["state"]) == (3, "refused")
    assert "storage.files[0].path belongs to first boot" in steps(seen)["config"]["detail"]


def test_one_that_the_host_can_change_is_refused_and_not_fetched(desk: Desk) -> None:
    seen = desk.secex("check", referring(desk, "http://a.example/base.ign", None), "--fetch", "--json")
    assert (seen.code, steps(seen)["config"]["state"]) == (3, "refused")
    assert (
        "ignition.config.merge[0] comes over http without verification.hash"
        in steps(seen)["config"]["detail"]
    )
    assert "attempt" not in seen.err


def test_one_with_another_hash_is_refused(desk: Desk) -> None:
    with site.web_server({"/base.ign": b"{}"}) as port:
        path = referring(desk, f"http://127.0.0.1:{port}/base.ign", b"another")
        seen = desk.secex("check", path, "--fetch", "--json")
    assert (seen.code, steps(seen)["config"]["state"]) == (3, "refused")
    assert "ignition.config.merge[0] does not have the hash" in steps(seen)["config"]["detail"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/base.ign", "s3://bucket/base.ign"])
def test_one_out_of_reach_is_named(desk: Desk, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(patience, "SECONDS", 1)
    seen = desk.secex("check", referring(desk, url, b""), "--fetch", "--json")
    assert seen.code == 0
    assert "what other configs say: ignition.config.merge[0]" in steps(seen)["config"]["untold"]


def test_what_is_fetched_may_be_inside_of_what_is_inline(desk: Desk) -> None:
    text = desk.config().read_bytes()
    with site.web_server({"/base.ign": text}) as port:
        inner = referring(desk, f"http://127.0.0.1:{port}/base.ign", text).read_bytes()
        url = f"data:;base64,{base64.b64encode(inner).decode()}"
        seen = desk.secex("check", referring(desk, url, None), *desk.certificates(), "--fetch", "--json")
    assert steps(seen)["hostkeys"]["detail"].startswith("1 classical documents: ibm-z-hostkey-host-a;")


def test_to_fetch_and_to_fetch_nothing_exclude_each_other(desk: Desk) -> None:
    assert desk.secex("check", desk.config(), "--fetch", "--offline").code == 2
