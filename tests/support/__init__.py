"""What tests of several directories share."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TEST_VECTORS = REPOSITORY / "tests/vectors"
