"""The agent reads a config as the real Ignition does, that of the guests' system, run through qemu-user."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import debian

from secex_firstboot.ignition import config, merge

JSON_CASES = json.loads((debian.REPOSITORY / "tests/vectors/ignition-json.json").read_text(encoding="utf-8"))


@pytest.fixture
def merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], bytes]:
    """What its first stage makes of a config that refers to nothing outside."""
    system = debian.build()
    debian.register_binfmt()
    monkeypatch.setenv("QEMU_LD_PREFIX", str(system))
    monkeypatch.setenv("PATH", f"{system}/usr/lib/dracut/modules.d/30ignition:{os.environ['PATH']}")
    monkeypatch.setenv("IGNITION_SYSTEM_CONFIG_DIR", str(tmp_path))

    def run(text: bytes) -> bytes:
        (tmp_path / "user.ign").write_bytes(text)
        cache = tmp_path / "merged.json"
        cache.unlink(missing_ok=True)
        subprocess.run(
            [
                *("ignition", "--log-to-stdout", "--stage=fetch-offline", "--platform=file"),
                *(f"--root={tmp_path}", f"--config-cache={cache}"),
                *(f"--neednet={tmp_path}/neednet", f"--state-file={tmp_path}/state"),
            ],
            capture_output=True,
            check=True,
        )
        return cache.read_bytes()

    return run


@pytest.mark.parametrize("case", JSON_CASES, ids=lambda case: case["name"])
def test_a_config_is_read_as_ignition_reads_it(
    case: dict[str, Any], merged: Callable[[bytes], bytes]
) -> None:
    text = case["text"].encode("latin-1")
    theirs, ours = config.parse_merged(merged(text)), config.parse(text)
    assert theirs.storage == ours.storage


def inline(**sections: Any) -> dict[str, str]:
    text = json.dumps({"ignition": {"version": "3.3.0"}} | sections).encode()
    return {"source": f"data:;base64,{base64.b64encode(text).decode()}"}


def test_inline_references_are_merged_as_ignition_merges_them(merged: Callable[[bytes], bytes]) -> None:
    header = {"name": "A", "value": "1"}
    parent = {
        "storage": {
            "files": [
                {
                    "path": "/a",
                    "mode": 420,
                    "contents": {"source": "data:,x"},
                    "append": [{"source": "data:,1"}],
                },
                {"path": "/b", "contents": {"source": "https://a.example", "httpHeaders": [header]}},
                {"path": "/c"},
            ],
            "luks": [{"name": "l", "device": "/dev/a", "options": ["--x"], "wipeVolume": True}],
            "links": [{"path": "/l", "target": "/m"}],
        },
        "systemd": {"units": [{"name": "a.service", "enabled": True, "dropins": [{"name": "x.conf"}]}]},
        "passwd": {"users": [{"name": "u", "sshAuthorizedKeys": ["k"], "groups": ["g"]}]},
        "kernelArguments": {"shouldExist": ["a", "b"]},
    }
    child = {
        "storage": {
            "files": [
                {"path": "/a", "mode": 384, "append": [{"source": "data:,1"}]},
                {"path": "/b", "contents": {"httpHeaders": [{"name": "A"}], "source": "https://b.example"}},
                {"path": "/l"},
            ],
            "directories": [{"path": "/c"}],
            "luks": [{"name": "l", "device": "/dev/b", "options": ["--x", "--y"]}],
        },
        "systemd": {
            "units": [
                {
                    "name": "a.service",
                    "mask": False,
                    "dropins": [{"name": "y.conf"}, {"name": "x.conf", "contents": ""}],
                },
                {"name": "b.service", "mask": True},
            ]
        },
        "passwd": {
            "users": [{"name": "u", "sshAuthorizedKeys": ["k", "m"], "groups": ["g", "h"]}, {"name": "v"}]
        },
        "kernelArguments": {"shouldNotExist": ["a"]},
    }
    references = {"merge": [inline(**child), inline(storage={"files": [{"path": "/a", "overwrite": False}]})]}
    text = json.dumps({"ignition": {"version": "3.3.0", "config": references}} | parent).encode()
    theirs = config.parse_merged(merged(text))
    ours, elsewhere = merge.read(text)
    assert elsewhere == {}
    for section in ("storage", "systemd", "passwd", "kernel_arguments"):
        assert getattr(theirs, section) == getattr(ours, section)


def test_the_stored_config_is_merged_into_the_same_again(merged: Callable[[bytes], bytes]) -> None:
    part = {"path": "/a", "append": [{"source": "data:,1"}]}
    references = {"merge": [inline(storage={"files": [part]})]}
    text = {"ignition": {"version": "3.3.0", "config": references}, "storage": {"files": [part]}}
    once = merged(json.dumps(text).encode())
    again = merged(config.without_references(once))
    assert len(config.parse_merged(once).storage.files[0].append) == 2
    assert config.parse_merged(again).storage == config.parse_merged(once).storage
    assert config.parse_merged(again).ignition.config.merge == []
