"""/etc/crypttab of the provisioned system: Ignition's lines stay, ours are added."""

from __future__ import annotations

import pytest

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.roots import crypttab

OURS = [
    crypttab.made("boot", "CRYPT-LUKS2-0-boot aes"),
    "boot PARTUUID=b /etc/luks/boot luks,x-initrd.attach",
    crypttab.made("root", "CRYPT-LUKS2-1-root aes"),
    "root PARTUUID=r /etc/luks/root luks",
]
OUR_LINES = "".join(f"{line}\n" for line in OURS).encode()
IGNITIONS = b"data UUID=00 /etc/luks/data luks\n"


@pytest.mark.parametrize(
    ("existing", "others"),
    [
        (b"", b""),
        (b"\n\n", b""),
        (b"# <target name> <source device>\n", b"# <target name> <source device>\n"),
        (IGNITIONS, IGNITIONS),
        (IGNITIONS.rstrip(), IGNITIONS),
        (IGNITIONS * 2, IGNITIONS),
        (b"# \xff\n" + IGNITIONS, b"# \xff\n" + IGNITIONS),
        (b"# root of all\nroots UUID=1\n", b"# root of all\nroots UUID=1\n"),
        (b"  indented UUID=1\n", b"  indented UUID=1\n"),
        (b"# secex-firstboot is here\n", b"# secex-firstboot is here\n"),
        (b"# secex-firstboot roots: x\n", b"# secex-firstboot roots: x\n"),
    ],
)
def test_other_lines_stay_once_and_ours_follow(existing: bytes, others: bytes) -> None:
    merged = crypttab.merge(existing, OURS)
    assert merged == others + OUR_LINES
    assert crypttab.merge(merged, OURS) == merged


def test_ignitions_lines_written_again_after_a_crash_change_nothing() -> None:
    merged = crypttab.merge(IGNITIONS, OURS)
    assert crypttab.merge(merged + IGNITIONS, OURS) == merged


@pytest.mark.parametrize(
    "line",
    [
        b"root /dev/vdb",
        b"root\t/dev/vdb",
        b" boot /dev/vdb",
        b"root",
        b"# secex-firstboot root: x",
        b"#  secex-firstboot boot:",
    ],
)
def test_another_line_for_one_of_our_volumes_is_refused(line: bytes) -> None:
    with pytest.raises(Refusal, match="another line for the volume"):
        crypttab.merge(IGNITIONS + line + b"\n", OURS)


def test_what_is_no_crypttab_is_refused() -> None:
    assert crypttab.merge(b"#" * (1 << 20), OURS).endswith(OUR_LINES)
    for existing in (b"#" * ((1 << 20) + 1), b"data\0"):
        with pytest.raises(Refusal, match="no crypttab"):
            crypttab.merge(existing, OURS)


def test_of_some_volumes_it_has_their_lines_and_what_first_boot_made() -> None:
    existing = IGNITIONS + crypttab.made("data", "CRYPT-LUKS2-2-data aes").encode() + b"\n"
    assert crypttab.of(["boot", "root"], crypttab.merge(existing, OURS)) == OUR_LINES
    assert crypttab.of(["root"], OUR_LINES) == "".join(f"{line}\n" for line in OURS[2:]).encode()


def test_what_first_boot_made_is_read_again_if_it_is_there_once() -> None:
    content = OUR_LINES.decode()
    assert crypttab.mode("root", content) == "CRYPT-LUKS2-1-root aes"
    assert crypttab.mode("data", content) is None
    assert crypttab.mode("root", content * 2) is None
