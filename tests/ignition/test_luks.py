"""storage.luks: what first boot can keep safe is taken, the rest is refused by its place."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.ignition import config, luks


def check(**fields: Any) -> None:
    volume = {"name": "data", "device": "/dev/disk/by-id/virtio-data", "wipeVolume": True} | fields
    spare = {"name": "spare", "device": "/dev/vdc", "wipeVolume": True}
    text = json.dumps({"ignition": {"version": "3.3.0"}, "storage": {"luks": [spare, volume]}})
    luks.check(config.parse(text.encode()))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"clevis": {}, "openOptions": [], "options": None, "discard": True},
        {"clevis": {"tang": [], "custom": {"pin": None}}, "cex": {}},
        {"keyFile": {"source": "data:;base64,c2VjcmV0"}},
        {"keyFile": {"source": "https://keys.example.com/data"}},
        {"keyFile": {"source": "HTTPS://keys.example.com/data"}},
        {"keyFile": {"source": ""}},
        {"options": ["--pbkdf=pbkdf2", "--pbkdf-force-iterations", "1000", "--sector-size=4096"]},
        {"options": ["--iter-time", "100", "--pbkdf", "argon2id", "--pbkdf-memory=65536"]},
        {"options": ["--pbkdf", "argon2i", "--pbkdf-parallel=4", "--sector-size", "512"]},
        {"device": "/dev/mapper/other"},
        *({"name": name} for name in ("d", "my-data", "data.2", "_1", "a" * 64)),
    ],
)
def test_a_volume_that_a_key_file_opens_is_taken(fields: dict[str, Any]) -> None:
    check(**fields)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"clevis": {"tang": [{"url": "http://tang", "thumbprint": "x"}]}}, "clevis"),
        ({"clevis": {"tpm2": True}}, "clevis"),
        ({"clevis": {"custom": {"pin": "sss", "config": "{}"}}}, "clevis"),
        ({"cex": {"enabled": True}}, "cex"),
        *(
            ({"keyFile": {"source": source}}, "keyFile.source")
            for source in ("http://keys/data", "tftp://keys/data", "s3://keys/data", "DATA:,x", "x")
        ),
        ({"options": ["--cipher=cipher_null-ecb"]}, "options[0]"),
        ({"options": ["--pbkdf=pbkdf2", "--header=/run/header"]}, "options[1]"),
        ({"options": ["--pbkdf", "pbkdf2", "--type", "luks1"]}, "options[2]"),
        ({"options": ["--pbkdf", "--type=luks1"]}, "options[1]"),
        ({"options": ["--pbkdf=pbkdf2", "pbkdf2"]}, "options[1]"),
        ({"options": ["--sector-size=512", "--iter-time"]}, "options[1]"),
        *(
            ({"options": [option]}, "options[0]")
            for option in ("-c", "--integrity=hmac-sha256", "--key-size=256")
        ),
        *(({"options": [option]}, "options[0]") for option in ("--pbk=pbkdf2", "--", "", "=", "/dev/vda")),
        *(
            ({"options": ["--iter-time=1", *options]}, "options[1]")
            for options in (
                ["--sector-size", "123"],
                ["--sector-size=8192"],
                ["--pbkdf=foo"],
                ["--pbkdf", "Argon2i"],
                ["--iter-time", "abc"],
                ["--pbkdf-memory="],
                ["--pbkdf-parallel", "1k"],
                ["--pbkdf-force-iterations=1.5"],
            )
        ),
        ({"keyFile": {"source": "data:,"}}, "keyFile"),
        ({"keyFile": {"source": "data:;base64,"}}, "keyFile"),
        ({"device": "/dev/mapper/spare"}, "device"),
        ({"device": "/dev/mapper/data"}, "device"),
        ({"device": "/dev/disk/by-id/dm-name-spare"}, "device"),
        ({"openOptions": ["--perf-no_read_workqueue"]}, "openOptions[0]"),
        *(
            ({"name": name}, "name")
            for name in ("", ".data", "-data", "da ta", "data\n", "a@b", "a" * 65, "dätä")
        ),
    ],
)
def test_what_the_host_could_open_or_weaken_is_refused_by_its_place(
    fields: dict[str, Any], place: str
) -> None:
    with pytest.raises(
        Refusal, match=re.escape(f"the Ignition config's storage.luks[1].{place} ")
    ) as refused:
        check(**fields)
    assert refused.value.cure


@pytest.mark.parametrize(
    ("source", "why"),
    [
        *((f"{scheme}://a/b", "where the host can read it") for scheme in ("http", "HTTP", "tftp")),
        *((f"{scheme}://a/b", "is neither data: nor https:") for scheme in ("s3", "gs", "arn")),
    ],
)
def test_the_reason_why_a_key_is_not_taken_is_the_right_one(source: str, why: str) -> None:
    with pytest.raises(Refusal, match=why):
        check(keyFile={"source": source})


# --- Ignition's state between its stages ---


def put(path: Path, keys: object) -> Path:
    path.write_text(json.dumps({"fetchedConfigs": [], "luksPersistKeyFiles": keys}))
    return path


def test_the_keys_are_those_that_ignition_keeps(tmp_path: Path) -> None:
    content = base64.b64encode(b"\0secret").decode()
    urls = {"a": f"data:text/plain;charset=utf-8;base64,{content}", "b": "data:;base64,"}
    assert luks.keys(put(tmp_path / "state", urls)) == {"a": b"\0secret", "b": b""}
    assert luks.keys(put(tmp_path / "state", None)) == {}


@pytest.mark.parametrize(
    "keys",
    ["x", ["secret"], {"a": "secret"}, {"a": "data:,secret"}, {"a": "data:;base64,=secret="}, {"a": 1}],
)
def test_another_state_is_an_error_that_tells_no_key(tmp_path: Path, keys: object) -> None:
    with pytest.raises(FirstbootError, match="does not have the keys") as refused:
        luks.keys(put(tmp_path / "state", keys))
    assert "secret" not in str(refused.value)


def test_no_state_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FirstbootError, match="does not have the keys"):
        luks.keys(tmp_path / "state")
