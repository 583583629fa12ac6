"""What is read from an Ignition config, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition.config import Config, host_keys, parse


def config_text(**sections: Any) -> bytes:
    return json.dumps({"ignition": {"version": "3.3.0"}, **sections}).encode()


def with_paths(*paths: str) -> Config:
    return parse(config_text(storage={"files": [{"path": path} for path in paths]}))


def test_a_config_is_read_and_what_the_agent_does_not_use_passes() -> None:
    config = parse(
        json.dumps(
            {
                "ignition": {
                    "version": "3.3.0",
                    "config": {"merge": [{"source": "https://a.example/more.ign"}]},
                    "timeouts": {"httpResponseHeaders": 20, "httpTotal": 600},
                    "security": {"tls": {"certificateAuthorities": [{"source": "data:,x"}]}},
                    "proxy": {"httpProxy": "http://p.example", "noProxy": ["a.example"]},
                },
                "passwd": {"users": [{"name": "core"}]},
                "storage": {
                    "disks": [{"device": "/dev/vda"}],
                    "files": [
                        {
                            "path": "/etc/se-hostkeys/ibm-z-hostkey-1",
                            "mode": 420,
                            "contents": {
                                "source": "https://a.example/1.crt",
                                "compression": "gzip",
                                "httpHeaders": [{"name": "Authorization", "value": "x"}],
                                "verification": {"hash": "sha512-00"},
                            },
                        }
                    ],
                },
            }
        ).encode()
    )
    (entry,) = host_keys(config)
    assert entry.name == "ibm-z-hostkey-1"
    assert entry.contents.source == "https://a.example/1.crt"
    assert entry.contents.compression == "gzip"
    assert [(header.name, header.value) for header in entry.contents.http_headers] == [("Authorization", "x")]
    assert entry.contents.verification.hash == "sha512-00"
    assert (config.ignition.timeouts.http_response_headers, config.ignition.timeouts.http_total) == (20, 600)
    assert config.ignition.security.tls.certificate_authorities[0].source == "data:,x"
    assert config.ignition.proxy.http_proxy == "http://p.example"
    assert config.ignition.proxy.no_proxy == ["a.example"]


def test_the_longest_path_and_the_most_kernel_arguments_are_read() -> None:
    kernel_arguments = {"shouldExist": ["a"] * 256, "shouldNotExist": ["b"] * 256}
    text = config_text(storage={"files": [{"path": "/" + "a" * 4094}]}, kernelArguments=kernel_arguments)
    assert parse(text).kernel_arguments.should_exist == ["a"] * 256


def test_what_ignition_leaves_merged_is_read() -> None:
    """As Ignition 2.14.0 wrote it for the smallest config."""
    parse(
        b'{"ignition":{"config":{"replace":{"verification":{}}},"proxy":{},"security":{"tls":{}},"timeouts":{},'
        b'"version":"3.4.0-experimental"},"kernelArguments":{},"passwd":{},"storage":{},"systemd":{}}'
    )


def test_null_means_absent_as_in_ignition() -> None:
    config = parse(
        b'{"ignition": {"version": "3.0.0", "proxy": null, "timeouts": {"httpTotal": null}},'
        b' "storage": {"files": [{"path": "/etc/se-hostkeys/ibm-z-hostkey-1", '
        b'"contents": {"httpHeaders": null}}]}}'
    )
    assert config.ignition.timeouts.http_total == 0
    assert config.ignition.timeouts.http_response_headers == 10
    assert host_keys(config)[0].contents.http_headers == []


@pytest.mark.parametrize("version", ["3.0.0", "3.3.0", "3.4.0-experimental"])
def test_every_config_of_specification_3_is_read(version: str) -> None:
    assert parse(json.dumps({"ignition": {"version": version}}).encode()).ignition.version == version


@pytest.mark.parametrize(
    ("version", "named"),
    [
        ("2.3.0", "2.3.0"),
        ("3.3", "3.3"),
        ("4.0.0", "4.0.0"),
        ("3.3.0\n", "this"),
        ("", "this"),
        ("३.3.0", "this"),
        ("3.99999.0", "this"),
    ],
)
def test_other_specifications_are_refused(version: str, named: str) -> None:
    with pytest.raises(Refusal, match=rf"ignition\.version: {named} is not a version .* specification 3:"):
        parse(json.dumps({"ignition": {"version": version}}).encode())


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "Invalid JSON"),
        (b"variant: fcos\n", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "not valid"),
        (b"{}", "ignition: Field required"),
        (b'{"ignition": {}}', r"ignition\.version: Field required"),
        (config_text(storage={"files": [{}]}), r"storage\.files\[0\]\.path: Field required"),
        (
            config_text(storage={"files": [{"path": "/a", "contents": {"source": 1}}]}),
            r"storage\.files\[0\]\.contents\.source: Input should be a valid string",
        ),
        (
            config_text(storage={"disks": [{"device": "/a", "partitions": [{}, {"label": 7}]}]}),
            r"storage\.disks\[0\]\.partitions\[1\]\.label: Input should be a valid string",
        ),
        (
            config_text(storage={"raid": [{"devices": ["/dev/a", None]}]}),
            r"storage\.raid\[0\]\.devices\[1\]: Input should be a valid string",
        ),
        (
            config_text(kernelArguments={"shouldExist": ["a", ["b"]]}),
            r"kernelArguments\.shouldExist\[1\]: Input should be a valid string",
        ),
        (
            config_text(kernelArguments={"shouldNotExist": ["a"] * 257}),
            r"kernelArguments\.shouldNotExist: List should have at most 256 items",
        ),
        (
            config_text(storage={"files": [{"path": "/" + "a" * 4095}]}),
            r"storage\.files\[0\]\.path: String should have at most 4095 characters",
        ),
        (b'{"ignition": {"version": "3.3.0"}, "x": ' + b"[" * 100_000, "not valid"),
        (
            b'{"ignition": {"version": "3.3.0", "timeouts": {"httpTotal": -1}}}',
            r"ignition\.timeouts\.httpTotal: Input should be greater",
        ),
    ],
)
def test_a_config_that_is_none_is_refused_naming_the_place(text: bytes, what: str) -> None:
    with pytest.raises(Refusal, match=what) as refused:
        parse(text)
    assert refused.value.cure


def test_a_refusal_does_not_quote_the_config() -> None:
    for text in (
        b'{"ignition": {"version": "hunter2"}}',
        b'{"ignition": {"version": "3.3.0", "timeouts": {"httpTotal": "hunter2"}}}',
        config_text(storage={"files": ["hunter2"]}),
        b'{"ignition": {"version": "3.3.0"}, hunter2',
    ):
        with pytest.raises(Refusal) as refused:
            parse(text)
        assert "hunter2" not in str(refused.value)
        assert refused.value.__suppress_context__


KEYS = ["path", "contents", "source", "files", "httpTotal", "noProxy", "tls", "certificateAuthorities"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner),
)


@settings(deadline=None)
@given(st.one_of(st.binary(), json_values.map(lambda value: json.dumps(value).encode())))
def test_nothing_but_a_refusal_comes_of_any_text(text: bytes) -> None:
    with pytest.raises(Refusal):
        parse(text)


@settings(deadline=None)
@given(json_values, json_values)
def test_nothing_but_a_refusal_comes_of_any_content(ignition: Any, storage: Any) -> None:
    section = {"version": "3.3.0", "timeouts": ignition, "proxy": ignition, "security": storage}
    try:
        host_keys(parse(json.dumps({"ignition": section, "storage": storage}).encode()))
    except Refusal as refusal:
        assert refusal.cure


def test_host_keys_are_the_files_of_one_folder_and_prefix_in_order() -> None:
    folder = "/etc/se-hostkeys"
    config = with_paths(
        f"{folder}/ibm-z-hostkey-b",
        f"{folder}/ibm-z-hostkey-a.crt",
        f"{folder}/ibm-z-hostkey-a/b",
        f"{folder}/other",
        f"{folder}/x-ibm-z-hostkey-a",
        "/var/etc/se-hostkeys/ibm-z-hostkey-c",
        "/etc/se-hostkeys-ibm-z-hostkey-d",
    )
    assert [entry.name for entry in host_keys(config)] == ["ibm-z-hostkey-b", "ibm-z-hostkey-a.crt"]


def test_a_host_key_name_that_would_write_to_the_terminal_is_refused() -> None:
    with pytest.raises(Refusal, match=r"storage\.files\[1\]\.path has unprintable"):
        host_keys(with_paths("/etc/se-hostkeys/ibm-z-hostkey-a", "/etc/se-hostkeys/ibm-z-hostkey-\x1b[2J"))


def test_a_config_without_files_has_no_host_keys() -> None:
    assert host_keys(parse(config_text())) == []
