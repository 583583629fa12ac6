"""A config's JSON is read as Go reads it, and so as Ignition does; tried against Ignition 2.14 in the guests'
system (vm-tests/test_ignition.py)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import TEST_VECTORS

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition.config import Config, parse, parse_merged

CASES = json.loads((TEST_VECTORS / "ignition-json.json").read_text(encoding="utf-8"))


def paths(config: Config) -> list[Any]:
    return [
        [file.path, file.overwrite, file.contents.source, [part.source for part in file.append]]
        for file in config.storage.files
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_files_are_those_that_ignition_reads(case: dict[str, Any]) -> None:
    assert paths(parse(case["text"].encode("latin-1"))) == case["files"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "01", "1.", "+1", "0x1", "1_0"])
def test_what_is_no_number_of_json_is_refused(number: str) -> None:
    with pytest.raises(Refusal, match="Invalid JSON"):
        parse(b'{"ignition": {"version": "3.3.0"}, "x": %s}' % number.encode())


@pytest.mark.parametrize("number", ["1", "-0", "1.5e-7", "12345678901234567890"])
def test_numbers_that_no_field_takes_pass(number: str) -> None:
    parse(b'{"ignition": {"version": "3.3.0"}, "x": %s}' % number.encode())


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbf{}", b'{"a": "\n"}', b"{}{}", b"{'a': 1}", b'{"a": 1,}', b"\xff{}"]
)
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(Refusal, match="Invalid JSON"):
        parse(text)


def test_a_text_nested_without_end_is_refused() -> None:
    for deep in (b"[" * 1_000_000, b'{"storage":' * 1_000_000):
        with pytest.raises(Refusal, match="Invalid JSON"):
            parse(deep)


def test_null_leaves_a_plain_value_and_takes_a_pointer_away() -> None:
    text = """{"ignition": {"version": "3.3.0"}, "storage": {
        "disks": [{"device": "/dev/a", "partitions": [
            {"number": 3, "number": null, "label": "x", "label": null, "sizeMiB": 1, "sizeMiB": null}]}],
        "raid": [{"name": "r", "name": null, "level": "raid1", "level": null}],
        "luks": [{"name": "l", "clevis": {"tang": [
            {"url": "u", "url": null, "thumbprint": "t", "thumbprint": null}]}}]
    }}"""
    storage = parse(text.encode()).storage
    (partition,), (raid,), (tang,) = storage.disks[0].partitions, storage.raid, storage.luks[0].clevis.tang
    assert (partition.number, partition.label, partition.size_mib) == (3, None, None)
    assert (raid.name, raid.level) == ("r", None)
    assert (tang.url, tang.thumbprint) == ("u", None)


def test_the_names_that_python_gives_the_fields_are_none_of_a_config() -> None:
    luks = b'{"name": "a", "device": "/dev/vdb", "wipe_volume": true}'
    config = parse(b'{"ignition": {"version": "3.3.0"}, "storage": {"luks": [%s]}}' % luks)
    assert config.storage.luks[0].wipe_volume is None


@pytest.mark.parametrize("version", ["3.3.1", "3.03.0", "3.3.0-rc1", "3.3.0+x"])
def test_a_version_that_was_never_published_is_refused(version: str) -> None:
    with pytest.raises(Refusal, match=r"ignition\.version"):
        parse(json.dumps({"ignition": {"version": version}}).encode())


def test_a_field_that_only_a_newer_ignition_knows_is_refused_in_a_merged_config() -> None:
    ignition = {"version": "3.9.0-experimental"}
    parse_merged(json.dumps({"ignition": ignition, "storage": {"luks": [], "raid": []}}).encode())
    newer = {"ignition": ignition, "storage": {"files": [{"path": "/a", "alsoAt": "/etc/luks/root"}]}}
    parse(json.dumps(newer).encode())
    with pytest.raises(Refusal, match=r"storage\.files\[0\]\.alsoAt"):
        parse_merged(json.dumps(newer).encode())


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("a" * 5000, "a" * 5000),
        ("a" * 5000 + r"\u0062\n", "a" * 5000 + "b\n"),
        ("a" * 4093 + r"\"}]", "a" * 4093 + '"}]'),
        ("é" * 5000, "é" * 5000),
    ],
)
def test_long_content_is_read_like_short(given: str, read: str) -> None:
    text = '{"ignition": {"version": "3.3.0"}, "%s": ["%s"], "storage": {"files": [%s]}}'
    file = '{"path": "/a", "contents": {"source": "%s"}}'
    for times in (1, 2):
        config = parse((text % ("k" * 5000 * times, given, file % given)).encode())
        assert config.storage.files[0].contents.source == read


def test_long_text_that_is_no_json_is_refused() -> None:
    for text in ('"%s', '{"ignition": "%s" "%s"}', '["%s\n"]', "%s", '" "%s" "', '["%s\\"]', '{"a" "%s" 1}'):
        with pytest.raises(Refusal, match="Invalid JSON"):
            parse(text.replace("%s", "a" * 5000).encode())
