"""A root file system with a deployment, laid out as libostree does it."""

from __future__ import annotations

from pathlib import Path

LINK = f"/ostree/boot.1/debian/{'c5' * 32}/0"
ARGUMENT = f"ostree={LINK}"
NAME = f"{'c0' * 32}.0"


def make(volume: Path) -> Path:
    """The deployment's directory."""
    deployment = volume / "ostree/deploy/debian/deploy" / NAME
    link = volume / LINK[1:].replace("boot.1", "boot.1.1")
    link.parent.mkdir(parents=True)
    link.symlink_to(f"../../../deploy/debian/deploy/{NAME}")
    (volume / "ostree/boot.1").symlink_to("boot.1.1")
    (volume / "ostree/deploy/debian/var/lib").mkdir(parents=True)
    for name in ("etc", "var", "usr"):
        (deployment / name).mkdir(parents=True)
    return deployment


def of(tree: Path) -> Path:
    """The deployment that a plain tree is made to."""
    deployment = make(tree)
    for name in ("etc", "usr"):
        (deployment / name).rmdir()
        (tree / name).rename(deployment / name)
    (tree / "ostree/repo").mkdir()
    return deployment
