"""What tests of several directories share."""

from pathlib import Path

from secex_firstboot.roots.kinds import Plain

REPOSITORY = Path(__file__).resolve().parents[2]
TEST_VECTORS = REPOSITORY / "tests/vectors"


def plain(root: Path) -> Plain:
    """A root file system that is the system, too."""
    return Plain(root, root)
