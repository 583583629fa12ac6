"""Asking Ignition for the newest specification it knows, and refusing a config that is newer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition.specification import check, newest_known

# As Ignition 2.14.0 behaves: of Debian 13, run on the smallest config.
IGNITION = """\
#!/bin/sh
for word; do case $word in --config-cache=*) cache=${word#*=};; esac; done
[ "$IGNITION_SYSTEM_CONFIG_DIR" = "${cache%/*}" ] || exit 1
[ "$(cat "$IGNITION_SYSTEM_CONFIG_DIR/user.ign")" = '{"ignition": {"version": "3.0.0"}}' ] || exit 1
[ "$*" = "--log-to-stdout --stage=fetch-offline --platform=file --root=${cache%/*} --config-cache=$cache \
--neednet=${cache%/*}/neednet --state-file=${cache%/*}/state" ] || exit 1
echo "INFO     : Ignition finished successfully"
printf '%s' '{"ignition":{"proxy":{},"version":"VERSION"},"kernelArguments":{},"storage":{}}' > "$cache"
"""


def install(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "ignition"
    path.write_text(script)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@pytest.mark.parametrize("version", ["3.4.0-experimental", "3.6.0"])
def test_the_newest_version_is_that_of_the_config_ignition_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    install(tmp_path, IGNITION.replace("VERSION", version), monkeypatch)
    assert newest_known() == version


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\nexit 1\n",
        "#!/bin/sh\n",
        IGNITION.replace("VERSION", "4.0.0"),
        IGNITION.replace('"VERSION"', "7"),
        IGNITION.replace('"proxy":{},"version":"VERSION"', ""),
        IGNITION.replace('{"ignition"', '"ignition"'),
        IGNITION.replace('{"ignition":{"proxy":{},"version":"VERSION"}', '{"ignition":7'),
    ],
)
def test_an_ignition_that_does_not_say_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    install(tmp_path, script, monkeypatch)
    assert newest_known() is None


def test_no_ignition_at_all_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert newest_known() is None


@pytest.mark.parametrize(
    ("newest", "accepted", "refused"),
    [
        (
            "3.4.0-experimental",
            ["3.0.0", "3.3.0", "3.4.0-experimental"],
            ["3.4.0", "3.5.0", "3.3.0-experimental", "3.3.1", "3.10.0", "3.5.0-experimental"],
        ),
        ("3.10.0-experimental", ["3.4.0", "3.9.0"], ["3.10.0", "3.11.0"]),
        ("3.6.0", ["3.5.0", "3.6.0"], ["3.7.0", "3.6.0-experimental"]),
        (None, ["3.0.0", "3.99.0"], []),
    ],
)
def test_a_config_is_for_an_ignition_that_knows_its_version(
    newest: str | None, accepted: list[str], refused: list[str]
) -> None:
    for version in accepted:
        check(version, newest)
    for version in refused:
        with pytest.raises(Refusal, match=f"specification {version}; Ignition here knows 3.0.0 to 3."):
            check(version, newest)


def test_a_refusal_names_their_version_and_ours() -> None:
    with pytest.raises(Refusal) as refused:
        check("3.4.0", "3.4.0-experimental")
    assert refused.value.message == (
        "the Ignition config is of specification 3.4.0; Ignition here knows 3.0.0 to 3.3.0, "
        "and 3.4.0-experimental"
    )
    assert refused.value.cure
