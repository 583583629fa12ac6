"""The config of a start after a crash is the merged one, without its references, and is looked at anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secex_firstboot.agent import boot_image, places
from secex_firstboot.agent.step import Context
from secex_firstboot.agent.steps import personalise
from secex_firstboot.agent.steps.config import DecryptConfig
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract import paths
from secex_firstboot.ignition import checks, ownership
from secex_firstboot.ignition.config import Config, without_references
from secex_firstboot.sdboot import boot_record, options
from secex_firstboot.sdboot.boot_entry import BootEntry
from secex_firstboot.sdboot.initramfs import Entry, File
from secex_firstboot.storage import disk, progress_record
from secex_firstboot.storage.disk import Disk
from secex_firstboot.storage.plan import Plan

REFERENCES = {
    "merge": [{"source": "https://a.example/x.ign", "verification": {}}],
    "replace": {"verification": {}},
}


def merged(references: dict[str, Any] | None = None, **sections: Any) -> bytes:
    """As Ignition 2.14 leaves it, structures that say nothing and all."""
    ignition = {"config": references or {"replace": {"verification": {}}}, "version": "3.4.0-experimental"}
    return json.dumps({"ignition": ignition, "passwd": {}, "systemd": {}} | sections).encode()


FILES = {"files": [{"path": "/é", "append": [{"source": "data:,\u2028"}, {"source": "data:,a"}]}]}


def test_the_stored_config_is_the_merged_one_but_for_its_references() -> None:
    stored = json.loads(without_references(merged(REFERENCES, storage=FILES)))
    expected = json.loads(merged(storage=FILES))
    del expected["ignition"]["config"]
    assert stored == expected


KEY_OVER_HTTP = {"name": "a", "device": "/dev/a", "keyFile": {"source": "http://a.example/key"}}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"storage": {"files": [{"path": "/boot/x"}]}}, "belongs to first boot"),
    ({"storage": {"files": [{"path": "/a"}, {"path": "/a/b"}]}}, "lies below"),
    ({"kernelArguments": {"shouldExist": ["init=/x"]}}, "kernelArguments"),
    ({"storage": {"filesystems": [{"device": "/dev/mapper/root"}]}}, "on the system disk"),
    ({"storage": {"clouds": []}}, "does not know what that does"),
    ({"storage": {"luks": [KEY_OVER_HTTP]}}, "the host can read it"),
    ({"ignition": {"version": "3.3.0", "config": {"merge": [{"source": "http://a/"}]}}}, "can change it"),
]


@pytest.mark.parametrize(("sections", "reason"), BAD)
def test_what_a_config_may_not_is_refused_in_a_merged_and_in_a_stored_one(
    sections: dict[str, Any], reason: str
) -> None:
    looks: list[Callable[[bytes], Config]]
    looks = [lambda text: checks.merged(text, (), print), lambda text: checks.stored(text, ())]
    for check in looks:
        assert check(merged()).storage.files == []
        with pytest.raises(Refusal, match=reason):
            check(merged(**sections))


def test_a_stored_config_that_refers_to_others_is_refused() -> None:
    checks.merged(merged(REFERENCES), (), print)
    for references in (REFERENCES, {"replace": {"source": "data:,x"}}):
        with pytest.raises(Refusal, match="refers to others"):
            checks.stored(merged(references), ())
    checks.stored(without_references(merged(REFERENCES)), ())


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A start from the personalised sdboot; the disk is a stand-in."""
    names = ("STATE", "COMMITTED", "PLAN", "PRIVATE_KEY", "RUNTIME")
    for name in (*names, "IGNITION_USER_CONFIG", "IGNITION_MERGED_CONFIG", "IGNITION_BASE_CONFIGS"):
        monkeypatch.setattr(paths if name == "PRIVATE_KEY" else places, name, tmp_path / name)
    places.COMMITTED.touch()
    monkeypatch.setattr(disk, "find_disk", lambda: Disk(Path("/dev/vda"), 1 << 30, 512, {}))
    monkeypatch.setattr(ownership, "device_numbers", lambda device: frozenset())
    return Context("ignition.firstboot")


def test_a_start_after_a_crash_looks_at_the_config_before_ignition_does(committed: Context) -> None:
    places.IGNITION_USER_CONFIG.write_bytes(without_references(merged(REFERENCES)))
    assert DecryptConfig().observe(committed).done
    for text in (merged(REFERENCES), *(merged(**sections) for sections, _ in BAD)):
        places.IGNITION_USER_CONFIG.write_bytes(text)
        with pytest.raises(Refusal):
            DecryptConfig().observe(committed)


def test_before_the_commit_point_the_users_config_may_refer_to_others(committed: Context) -> None:
    places.COMMITTED.unlink()
    places.IGNITION_USER_CONFIG.write_bytes(merged(REFERENCES))
    assert DecryptConfig().observe(committed).done


def test_the_personalised_image_brings_the_config_without_its_references(
    committed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: dict[str, Entry] = {}
    monkeypatch.setattr(personalise, "_prepare_volumes", lambda *arguments: None)
    monkeypatch.setattr(progress_record, "remove", lambda se: None)
    monkeypatch.setattr(options, "first_boot_command_line", lambda options: options)
    monkeypatch.setattr(boot_image, "build", lambda *arguments, overlay, **more: built.update(overlay))
    monkeypatch.setattr(boot_record, "install", lambda *arguments: None)
    places.IGNITION_USER_CONFIG.write_text("the user's own")
    places.IGNITION_MERGED_CONFIG.write_bytes(merged(REFERENCES, storage=FILES))
    plan, entry = Plan.model_construct(), BootEntry.__new__(BootEntry)
    object.__setattr__(entry, "options", "")
    personalise.Personalise()._commit(committed, plan, entry, Path("/se"), disk.find_disk())
    entry_in_image = built[str(places.IGNITION_USER_CONFIG)]
    assert isinstance(entry_in_image, File)
    assert entry_in_image.content == places.IGNITION_USER_CONFIG
    assert places.IGNITION_USER_CONFIG.read_bytes() == without_references(merged(REFERENCES, storage=FILES))
