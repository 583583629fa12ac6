"""Where on its volume a system lies, plain or made by ostree."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from support import deployments

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.contract import paths
from secex_firstboot.roots import kinds

ETC, VAR = PurePosixPath("/etc/crypttab"), PurePosixPath("/var/lib/x")


def test_a_plain_root_is_its_volume(tmp_path: Path) -> None:
    for root in (kinds.on(tmp_path, "quiet"), kinds.of(tmp_path, "quiet")):
        assert root.place(ETC) == root.state(ETC) == tmp_path / "etc/crypttab"
    assert kinds.volume_of(tmp_path, "quiet") == tmp_path


def test_a_deployment_has_an_etc_of_its_own_and_shares_var_and_the_volume_has_what_outlives_it(
    tmp_path: Path,
) -> None:
    deployment = deployments.make(tmp_path)
    root = kinds.on(tmp_path, f"quiet {deployments.ARGUMENT}")
    assert root.place(ETC) == deployment / "etc/crypttab"
    assert root.place(VAR) == tmp_path / "ostree/deploy/debian/var/lib/x"
    assert root.state(paths.SEALED) == tmp_path / "etc/luks/sealed"
    assert {each.where: each.directory for each in root.written} == {
        PurePosixPath("/etc"): deployment / "etc",
        PurePosixPath("/var"): tmp_path / "ostree/deploy/debian/var",
    }


def test_a_system_that_runs_needs_no_link_which_libostree_may_have_removed(tmp_path: Path) -> None:
    root = kinds.of(tmp_path, deployments.ARGUMENT)
    assert root.place(VAR) == tmp_path / "var/lib/x"
    assert root.state(ETC) == tmp_path / "sysroot/etc/crypttab"


def test_a_boot_image_has_the_link_of_the_deployment_that_it_starts(tmp_path: Path) -> None:
    deployments.make(tmp_path)
    root = kinds.on(tmp_path, deployments.ARGUMENT)
    options = f"{deployments.ARGUMENT} quiet"
    (content,) = root.for_initramfs(options).values()
    assert content.decode().split() == [
        deployments.LINK,
        f"../../../deploy/debian/deploy/{deployments.NAME}",
    ]
    assert root.deployment_of(options) == f"ostree/deploy/debian/deploy/{deployments.NAME}"
    assert root.has(root.deployment_of(options))


@pytest.mark.parametrize("target", ["missing", "/etc", "../../..", "../../../deploy/debian", "other"])
def test_a_link_that_leads_to_no_deployment_is_an_error(tmp_path: Path, target: str) -> None:
    deployments.make(tmp_path)
    link = tmp_path / deployments.LINK[1:]
    link.unlink()
    link.symlink_to(target)
    with pytest.raises(FirstbootError, match=r"has no deployment /ostree/boot\.1/debian/"):
        kinds.on(tmp_path, deployments.ARGUMENT)


@pytest.mark.parametrize(
    "link", ["", "/", "/etc", "/ostree/boot.1/../../etc", f"/ostree/boot.1/a b/{'c5' * 32}/0"]
)
def test_what_is_no_link_to_a_deployment_is_refused(tmp_path: Path, link: str) -> None:
    with pytest.raises(Refusal, match="is not a link to a deployment"):
        kinds.on(tmp_path, f'"ostree={link}"')
