"""What of a config the host could change or read on its way: warned of, or refused, by its place."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition import merge, transport
from secex_firstboot.ignition.config import Config

HASH = {"verification": {"hash": "sha512-" + "0" * 128}}
URL = "http://user:secret@a.example/secret?token=secret"


def warnings(**config: Any) -> list[str]:
    """What is warned of in a config with these sections."""
    told: list[str] = []
    sections = {"ignition": {"version": "3.3.0"} | config.pop("ignition", {})} | config
    transport.check(Config.model_validate(sections), told.append)
    assert "secret" not in "".join(told)
    return told


def file(contents: dict[str, Any], path: str = "/etc/motd", **fields: Any) -> dict[str, Any]:
    return {"files": [{"path": "/etc/other"}, {"path": path, "contents": contents, **fields}]}


@pytest.mark.parametrize("source", [URL, URL.replace("http", "HTTP"), URL.replace("http", "tftp")])
def test_a_file_that_the_host_can_change_is_warned_of_by_its_place(source: str) -> None:
    (line,) = warnings(storage=file({"source": source}))
    assert line.startswith("storage.files[1].contents comes over ")
    assert "without verification.hash, so the host can change it: give its verification.hash" in line


@pytest.mark.parametrize(
    "contents",
    [
        {"source": URL, **HASH},
        {"source": URL.replace("http", "https")},
        {"source": "data:,http:"},
        {"source": "s3://bucket/a"},
        {"source": ""},
        {},
    ],
)
def test_a_file_that_the_host_cannot_change_is_not(contents: dict[str, Any]) -> None:
    assert warnings(storage=file(contents)) == []
    assert warnings(storage=file(contents, "/etc/se-hostkeys/ibm-z-hostkey-a")) == []


@pytest.mark.parametrize("verification", [{}, {"verification": {}}, {"verification": {"hash": ""}}])
def test_each_part_that_is_appended_counts(verification: dict[str, Any]) -> None:
    parts = [{"source": URL, **HASH}, {"source": URL, **verification}]
    (line,) = warnings(storage=file({}, append=parts))
    assert line.startswith("storage.files[1].append[1] comes over http without")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/se-hostkeys/ibm-z-hostkey-a",
        "/etc/se-hostkeys/certs/signing-key.crt",
        "/etc/se-hostkeys/README",
        "//etc//se-hostkeys/./a",
        "/etc/x/../se-hostkeys/a",
        "/etc/se-hostkeys",
    ],
)
def test_nothing_of_the_hosts_comes_below_se_hostkeys(path: str) -> None:
    assert warnings(storage=file({"source": URL, **HASH}, path)) == []
    for entry in (file({"source": URL}, path), file({}, path, append=[{"source": URL}])):
        with pytest.raises(Refusal, match=r"storage\.files\[1\].* so the host can change it") as refused:
            warnings(storage=entry)
        assert "secret" not in str(refused.value)
        assert refused.value.cure


@pytest.mark.parametrize("path", ["/etc/se-hostkeys-too/a", "/srv/etc/se-hostkeys/a", "/etc/se-host/a"])
def test_a_path_that_only_looks_like_it_is_warned_of(path: str) -> None:
    assert len(warnings(storage=file({"source": URL}, path))) == 1


@pytest.mark.parametrize("source", [URL, URL.replace("http", "HTTP"), URL.replace("http", "tftp")])
def test_a_config_that_the_host_can_change_is_refused(source: str) -> None:
    changeable: dict[str, Any] = {"source": source}
    good = [{"source": source, **HASH}, {"source": "https://a.example/x"}, {"source": "data:,x"}]
    assert warnings(ignition={"config": {"merge": good, "replace": good[0]}}) == []
    for place, references in (
        ("ignition.config.merge[3]", {"merge": [*good, changeable]}),
        ("ignition.config.replace", {"replace": changeable}),
    ):
        with pytest.raises(Refusal, match=f"{re.escape(place)} .* so the host can change it") as refused:
            warnings(ignition={"config": references})
        assert "secret" not in str(refused.value)
        assert "verification.hash" in refused.value.cure


def inline(references: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps({"ignition": {"version": "3.3.0", "config": references}}).encode()
    return {"source": f"data:;base64,{base64.b64encode(text).decode()}"}


@pytest.mark.parametrize(
    ("references", "place"),
    [
        ({"replace": {"source": URL}}, "replace"),
        ({"merge": [{"source": "https://a.example/x"}, {"source": URL}]}, "merge[1]"),
        ({"replace": inline({"replace": {"source": URL}})}, "replace.replace"),
        ({"replace": inline({"merge": [{"source": URL}]})}, "replace.merge[0]"),
        ({"merge": [inline({"replace": {"source": URL}})]}, "merge[0].replace"),
        ({"merge": [{"source": URL, **HASH}, inline({"merge": [{"source": URL}]})]}, "merge[1].merge[0]"),
    ],
)
def test_so_is_one_that_a_config_inside_refers_to(references: dict[str, Any], place: str) -> None:
    def check(references: dict[str, Any]) -> None:
        text = json.dumps({"ignition": {"version": "3.3.0", "config": references}}).encode()
        transport.check_references(merge.read(text)[1])

    with pytest.raises(
        Refusal, match=re.escape(f"ignition.config.{place} comes over http without")
    ) as refused:
        check(references)
    assert "secret" not in str(refused.value)
    check({"merge": [inline({"replace": {"source": URL, **HASH}}), {"source": "https://a.example/x"}]})


def test_whom_https_trusts_is_not_for_the_host_to_say() -> None:
    def authorities(*resources: dict[str, Any]) -> dict[str, Any]:
        return {"security": {"tls": {"certificateAuthorities": list(resources)}}}

    good = {"source": URL, **HASH}
    assert warnings(ignition=authorities(good)) == []
    with pytest.raises(Refusal, match=r"certificateAuthorities\[1\] comes over http without"):
        warnings(ignition=authorities(good, {"source": URL}))


def test_the_key_of_a_volume_is_not_for_the_host_to_read() -> None:
    def volume(key_file: dict[str, Any]) -> dict[str, Any]:
        return {"luks": [{"name": "a"}, {"name": "b", "keyFile": key_file}]}

    assert warnings(storage=volume({"source": URL.replace("http", "https")})) == []
    for key_file in ({"source": URL}, {"source": URL, **HASH}):
        with pytest.raises(
            Refusal, match=r"storage\.luks\[1\]\.keyFile comes over http, so the host can read"
        ):
            warnings(storage=volume(key_file))
