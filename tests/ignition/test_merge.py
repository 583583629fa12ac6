"""Inline references are merged as Ignition merges them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from typing import Any

import pytest

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition.config import host_keys
from secex_firstboot.ignition.merge import read


def config(*, replace: Any = None, merge: Any = (), **sections: Any) -> dict[str, Any]:
    references = {"merge": list(merge)} | ({"replace": replace} if replace else {})
    return {"ignition": {"version": "3.3.0", "config": references}, **sections}


def inline(content: dict[str, Any], **more: Any) -> dict[str, Any]:
    text = json.dumps(content).encode()
    return {"source": f"data:;base64,{base64.b64encode(text).decode()}"} | more


def files(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"files": list(entries)}


def merged(**sections: Any) -> Any:
    found, elsewhere = read(json.dumps(config(**sections)).encode())
    assert elsewhere == {}
    return found


def test_a_config_without_references_is_as_it_stands() -> None:
    assert [file.path for file in merged(storage=files({"path": "/a"})).storage.files] == ["/a"]


def test_host_keys_may_come_from_a_merged_config_and_from_one_it_merges() -> None:
    def keys(name: str, **more: Any) -> dict[str, Any]:
        return config(storage=files({"path": f"/etc/se-hostkeys/ibm-z-hostkey-{name}"}), **more)

    found = merged(merge=[inline(keys("a", merge=[inline(keys("b"))])), inline(keys("c"))])
    assert [entry.name[-1] for entry in host_keys(found)] == ["a", "b", "c"]


def test_a_replacement_counts_alone() -> None:
    other = config(storage=files({"path": "/b"}))
    found = merged(
        replace=inline(other), merge=[{"source": "https://a.example"}], storage=files({"path": "/a"})
    )
    assert [file.path for file in found.storage.files] == ["/b"]


def test_what_both_have_is_merged_field_by_field_and_parts_are_appended() -> None:
    first = {"path": "/a", "mode": 420, "contents": {"source": "data:,x"}, "append": [{"source": "data:,1"}]}
    second = {"path": "/a", "mode": 384, "append": [{"source": "data:,1"}, {"source": "data:,2"}]}
    (file,) = merged(merge=[inline(config(storage=files(second)))], storage=files(first)).storage.files
    assert (file.mode, file.contents.source) == (384, "data:,x")
    assert [part.source for part in file.append] == ["data:,1", "data:,1", "data:,2"]


def test_a_path_is_in_one_list_only_that_of_the_child() -> None:
    parent = files({"path": "/a"}, {"path": "/b"}) | {"links": [{"path": "/c", "target": "/d"}]}
    child = {"directories": [{"path": "/a"}], "files": [{"path": "/c"}]}
    storage = merged(merge=[inline(config(storage=child))], storage=parent).storage
    assert [file.path for file in storage.files] == ["/b", "/c"]
    assert [directory.path for directory in storage.directories] == ["/a"]
    assert storage.links == []


def test_an_argument_is_in_one_list_only() -> None:
    child = {"shouldNotExist": ["a"]}
    arguments = merged(
        merge=[inline(config(kernelArguments=child))], kernelArguments={"shouldExist": ["a", "b"]}
    ).kernel_arguments
    assert (arguments.should_exist, arguments.should_not_exist) == (["b"], ["a"])


def test_units_and_their_drop_ins_are_merged_by_name() -> None:
    parent = {
        "units": [{"name": "a.service", "enabled": True, "dropins": [{"name": "x.conf", "contents": "1"}]}]
    }
    child = {
        "units": [{"name": "a.service", "dropins": [{"name": "y.conf"}, {"name": "x.conf", "contents": "2"}]}]
    }
    (unit,) = merged(merge=[inline(config(systemd=child))], systemd=parent).systemd.units
    assert unit.enabled
    assert [(dropin.name, dropin.contents) for dropin in unit.dropins] == [("x.conf", "2"), ("y.conf", None)]


def test_a_header_without_value_takes_it_away() -> None:
    def file(*headers: dict[str, str]) -> dict[str, Any]:
        return {"path": "/a", "contents": {"source": "https://a.example", "httpHeaders": list(headers)}}

    parent = files(file({"name": "A", "value": "1"}, {"name": "B", "value": "2"}))
    child = files(file({"name": "A"}))
    (found,) = merged(merge=[inline(config(storage=child))], storage=parent).storage.files
    assert [header.name for header in found.contents.http_headers] == ["B"]


def test_references_that_need_the_network_are_named() -> None:
    remote = {"source": "https://a.example/x.ign"}
    inner = config(merge=[remote], storage=files({"path": "/b"}))
    found, elsewhere = read(json.dumps(config(merge=[remote, inline(inner)])).encode())
    assert list(elsewhere) == ["ignition.config.merge[0]", "ignition.config.merge[1].merge[0]"]
    assert [file.path for file in found.storage.files] == ["/b"]
    _, elsewhere = read(json.dumps(config(replace=remote)).encode())
    assert list(elsewhere) == ["ignition.config.replace"]


def test_a_packed_reference_with_its_hash_is_followed_and_with_another_refused() -> None:
    text = json.dumps(config(storage=files({"path": "/b"}))).encode()
    packed = {
        "source": f"data:;base64,{base64.b64encode(gzip.compress(text)).decode()}",
        "compression": "gzip",
        "verification": {"hash": f"sha512-{hashlib.sha512(text).hexdigest()}"},
    }
    assert [file.path for file in merged(merge=[packed]).storage.files] == ["/b"]
    with pytest.raises(Refusal, match=r"ignition\.config\.merge\[0\] does not have the hash"):
        merged(merge=[packed | {"verification": {"hash": "sha256-" + "0" * 64}}])


def test_a_reference_that_is_no_config_is_refused() -> None:
    with pytest.raises(Refusal, match=r"ignition\.version"):
        merged(merge=[inline({"ignition": {"version": "2.3.0"}})])
    with pytest.raises(Refusal, match="Invalid JSON"):
        merged(replace={"source": "data:,x"})


def test_more_references_than_anybody_needs_are_refused() -> None:
    each = inline(config())
    merged(merge=[each] * 64)
    with pytest.raises(Refusal, match="more than 64 references"):
        merged(merge=[each] * 65)
