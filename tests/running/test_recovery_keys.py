"""Recovery keys that come and go in the running system."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import plain, recovery_keys
from support.machine import put
from support.recovery_keys import Owner

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.hostkeys import recovery_keys as hostkeys
from secex_firstboot.roots import system_image
from secex_firstboot.running import recovery_keys as running


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    yield from recovery_keys.owner(monkeypatch)


def settled(root: Path) -> list[str]:
    running.settle(Context(""), plain(root))
    return sorted(system_image.recovery_keys(plain(root)))


def test_a_key_counts_once_it_could_be_encrypted_to_and_until_it_is_gone(
    owner: Owner, tmp_path: Path
) -> None:
    assert settled(tmp_path) == []
    directory = tmp_path / "etc/se-hostkeys/recovery"
    put(directory / "a.asc", owner.key("a"))
    put(directory / "README", b"no key")
    assert settled(tmp_path) == ["a.asc"]
    put(directory / "b.asc", owner.expired("b"))
    with pytest.raises(Refusal, match=r"gpg does not encrypt to b\.asc"):
        settled(tmp_path)
    assert list(system_image.recovery_keys(plain(tmp_path))) == ["a.asc"]
    (directory / "b.asc").unlink()
    (directory / "a.asc").unlink()
    assert settled(tmp_path) == []


def test_one_that_has_expired_since_is_no_news(owner: Owner, tmp_path: Path) -> None:
    put(tmp_path / "etc/se-hostkeys/recovery/a.asc", owner.expired("a"))
    key = hostkeys.of_files({"a.asc": owner.public("a")})[0]
    system_image.keep_recovery_keys(plain(tmp_path), {key.name: key.armored})
    assert settled(tmp_path) == ["a.asc"]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etc/se-hostkeys/recovery/a.asc").mkdir(parents=True)
    with pytest.raises(Refusal, match=r"a\.asc is no regular file"):
        settled(tmp_path)
