"""What the documents say of an SE-ready image's partitions is what the code goes by."""

from __future__ import annotations

import re

from support import REPOSITORY

from secex_firstboot.contract import partitions


def test_the_documents_have_each_partition_with_its_number_and_name() -> None:
    documents = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    rows = re.findall(
        r"^\| (\d) \| `(\w+)` \|", "\n".join(each.read_text() for each in documents), re.MULTILINE
    )
    assert rows == [(str(each.number), each.name) for each in partitions.LAYOUT]


def test_each_volume_has_its_hash_tree_and_its_label() -> None:
    assert partitions.LASTING == {"se": 1, "boot": 3, "root": 4}
    assert list(partitions.HASH_TREES.values()) == ["boothash", "roothash"]
    assert {"se", "boot", "root", "crypt_bootfs", "crypt_rootfs"} == partitions.LABELS
