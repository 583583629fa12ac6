"""What of a config the host could change or read on its way: warned of, or refused, by its place."""

from __future__ import annotations

from typing import Any

import pytest

from secex_firstboot.errors import Refusal
from secex_firstboot.ignition import transport
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


def test_a_config_that_the_host_can_change_is_warned_of() -> None:
    merge = [{"source": URL, **HASH}, {"source": URL}]
    lines = warnings(ignition={"config": {"merge": merge, "replace": {"source": URL}}})
    assert [line.partition(" comes over http without ")[0] for line in lines] == [
        "ignition.config.replace",
        "ignition.config.merge[1]",
    ]


@pytest.mark.parametrize(("resource", "count"), [({"source": URL}, 1), ({"source": URL, **HASH}, 0), ({}, 0)])
def test_a_config_that_takes_the_place_of_another_can_be_asked_for_alone(
    resource: dict[str, Any], count: int
) -> None:
    told: list[str] = []
    ignition = {"version": "3.3.0", "config": {"replace": resource, "merge": [{"source": URL}]}}
    transport.check_replacement(Config.model_validate({"ignition": ignition}), told.append)
    assert len(told) == count


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
