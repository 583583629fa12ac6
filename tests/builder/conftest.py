"""The least tree there can be, and hosts: what the tests of a whole build have in common."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.site import Host, make_host
from support import host_keys, se_tree
from support.builds import CONTEXT, made_of

from secex_firstboot.builder import build
from secex_firstboot.builder.outputs import Outputs


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return se_tree.make(tmp_path_factory.mktemp("tree") / "tree")


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    directory = tmp_path_factory.mktemp("hosts")
    return {name: make_host(name, directory, host_keys.CHAIN) for name in ("first", "mine", "other")}


@pytest.fixture(scope="session")
def built(tree: Path, hosts: dict[str, Host], tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    """Tests look at it, and change copies."""
    outputs = Outputs(tmp_path_factory.mktemp("built") / "linux")
    build.build(CONTEXT, made_of(tree, hosts), outputs)
    return outputs
