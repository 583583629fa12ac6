"""The kernel of a build host need not have device-mapper, so a stand-in plays dmsetup here.

Its answers are those of dmsetup(8); in the guest the real one creates and removes each of these mappings.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.process import ToolError
from secex_firstboot.roots import crypttab
from secex_firstboot.storage import devicemapper
from secex_firstboot.storage.cryptsetup import HEADER_SIZE
from secex_firstboot.storage.devicemapper import Mapping, Piece, Target, linear_table

CHECK_VOLUME = REPOSITORY / "dracut/check-volume.sh"
DMSETUP = """\
#!{python}
import pathlib, sys
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as calls:
    print(*sys.argv[1:], file=calls)
if sys.argv[1] == "create":
    (here / "table").write_text(sys.stdin.read())
elif sys.argv[1] in ("table", "info"):
    answer = here / {{"table": sys.argv[2], "info": f"{{sys.argv[-1]}}.uuid"}}[sys.argv[1]]
    if not answer.exists():
        sys.exit("Device does not exist.")
    print(answer.read_text(), end="")
"""


@pytest.fixture
def dmsetup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in, its answers and what it was asked; /dev/mapper and sysfs are below it, too."""
    tool = tmp_path / "dmsetup"
    tool.write_text(DMSETUP.format(python=sys.executable))
    tool.chmod(0o755)
    (tmp_path / "mapper").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(devicemapper, "MAPPER", tmp_path / "mapper")
    monkeypatch.setattr(devicemapper, "BLOCK", tmp_path / "block")
    return tmp_path


def put_mapping(directory: Path, number: int, name: str, uuid: str) -> None:
    """As sysfs shows a mapping: Linux, Documentation/ABI/testing/sysfs-block-dm."""
    device = directory / "block" / f"dm-{number}"
    (device / "dm").mkdir(parents=True)
    (device / "dev").write_text(f"253:{number}\n")
    (device / "dm/name").write_text(f"{name}\n")
    (device / "dm/uuid").write_text(f"{uuid}\n")


def calls(dmsetup: Path) -> list[str]:
    log = dmsetup / "calls"
    return log.read_text().splitlines() if log.exists() else []


def test_pieces_follow_each_other_in_sectors_of_512_bytes() -> None:
    pieces = [Piece(Path("/dev/vda4"), 4096, 1 << 20), Piece(Path("/dev/vda3"), 0, 512)]
    assert linear_table(pieces) == "0 2048 linear /dev/vda4 8\n2048 1 linear /dev/vda3 0"


def test_an_empty_piece_is_left_out() -> None:
    pieces = [Piece(Path("/dev/a"), 0, 512), Piece(Path("/dev/b"), 512, 0), Piece(Path("/dev/c"), 0, 1024)]
    assert linear_table(pieces) == "0 1 linear /dev/a 0\n1 2 linear /dev/c 0"


@pytest.mark.parametrize(("read_only", "options"), [(False, ""), (True, " --readonly")])
def test_a_mapping_is_created_under_its_name(dmsetup: Path, read_only: bool, options: str) -> None:
    pieces = [Piece(Path("/dev/vda4"), 0, 512)]
    device = devicemapper.create_linear("root_old", pieces, read_only=read_only)
    assert device == dmsetup / "mapper" / "root_old"
    assert calls(dmsetup) == [f"create root_old --verifyudev{options}"]
    assert (dmsetup / "table").read_text() == linear_table(pieces)


def test_removing_what_does_not_exist_does_nothing(dmsetup: Path) -> None:
    devicemapper.remove("root_old")
    assert calls(dmsetup) == []
    put_mapping(dmsetup, 0, "root_old", "")
    assert devicemapper.exists("root_old")
    devicemapper.remove("root_old")
    assert calls(dmsetup) == ["remove --retry root_old"]


def test_a_mapping_is_what_the_kernel_says_of_it_and_not_a_path(dmsetup: Path) -> None:
    (dmsetup / "mapper" / "root").touch()
    assert devicemapper.find("root") is None
    put_mapping(dmsetup, 7, "roots", "CRYPT-LUKS2-1-roots")
    put_mapping(dmsetup, 300, "root", UUID)
    assert devicemapper.find("root") == Mapping("253:300", "root", UUID)


def test_a_mapping_closed_meanwhile_is_none(dmsetup: Path) -> None:
    put_mapping(dmsetup, 1, "root", UUID)
    (dmsetup / "block/dm-1/dm/uuid").unlink()
    assert devicemapper.find("root") is None


def test_the_uuid_of_a_mapping_is_made_as_libcryptsetup_makes_it() -> None:
    uuid = "0e4a2f11-6a0c-4a6e-9d1b-2b6f3a1d90d0"
    assert devicemapper.uuid_of("LUKS2", uuid, "root") == UUID


@pytest.mark.parametrize(
    ("table", "targets"),
    [
        (
            "0 585728 crypt aes-xts-plain64 :96 0 254:0 0 1 integrity:32:aead",
            [Target("crypt", ["aes-xts-plain64", ":96", "0", "254:0", "0", "1", "integrity:32:aead"])],
        ),
        (
            "0 2048 linear 252:4 8\n2048 1 linear 252:3 0",
            [Target("linear", ["252:4", "8"]), Target("linear", ["252:3", "0"])],
        ),
        ("", []),
    ],
)
def test_the_targets_of_a_mapping_are_told(dmsetup: Path, table: str, targets: list[Target]) -> None:
    (dmsetup / "boot").write_text(table)
    assert devicemapper.table("boot") == targets


def test_asking_for_the_targets_of_no_mapping_is_an_error(dmsetup: Path) -> None:
    with pytest.raises(ToolError, match=r"dmsetup failed with exit code 1 .*Device does not exist"):
        devicemapper.table("boot")


TABLE = (
    "0 1298432 crypt capi:authenc(hmac(sha256),xts(aes))-random :96:logon:cryptsetup:0e4a-d0 0 254:1 0 "
    "2 integrity:32:aead sector_size:4096\n"
)
UUID = "CRYPT-LUKS2-0e4a2f116a0c4a6e9d1b2b6f3a1d90d0-root"
MODE = f"{UUID} capi:authenc(hmac(sha256),xts(aes))-random integrity:32:aead sector_size:4096"


def test_the_mode_of_a_volume_is_its_uuid_its_cipher_and_how_it_is_read(dmsetup: Path) -> None:
    (dmsetup / "root.uuid").write_text(f"{UUID}\n")
    (dmsetup / "root").write_text(TABLE)
    assert devicemapper.crypt_mode("root") == MODE
    (dmsetup / "root").write_text(TABLE.replace("2 integrity", "3 allow_discards integrity"))
    assert devicemapper.crypt_mode("root") == MODE


def test_what_is_no_encrypted_volume_has_no_mode(dmsetup: Path) -> None:
    (dmsetup / "root.uuid").write_text("\n")
    (dmsetup / "root").write_text("0 1298432 linear 254:1 0\n")
    with pytest.raises(FirstbootError, match="is not an encrypted volume"):
        devicemapper.crypt_mode("root")


def check_volume(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", CHECK_VOLUME, "root", directory], capture_output=True, text=True)


def note(directory: Path, mode: str) -> None:
    """In crypttab, for the volume root."""
    lines = [crypttab.made("boot", "another"), "boot - - luks", crypttab.made("root", mode), "root - - luks"]
    (directory / "etc").mkdir(exist_ok=True)
    (directory / "etc/crypttab").write_bytes(crypttab.merge(b"# a comment\ndata - - luks\n", lines))


def test_at_later_boots_the_script_accepts_the_mode_that_first_boot_noted(dmsetup: Path) -> None:
    (dmsetup / "root.uuid").write_text(f"{UUID}\n")
    (dmsetup / "root").write_text(TABLE)
    note(dmsetup, devicemapper.crypt_mode("root"))
    assert check_volume(dmsetup).returncode == 0


def test_at_later_boots_the_script_accepts_a_volume_without_options(dmsetup: Path) -> None:
    """As of a disk with sectors of 512 bytes, without integrity: then the table has not even their number."""
    (dmsetup / "root.uuid").write_text(f"{UUID}\n")
    (dmsetup / "root").write_text("0 98304 crypt aes-xts-plain64 :64:logon:cryptsetup:0-d0 0 254:16 32768\n")
    note(dmsetup, devicemapper.crypt_mode("root"))
    assert check_volume(dmsetup).returncode == 0
    (dmsetup / "root").write_text("0 98304 crypt aes-cbc-plain64 :64:logon:cryptsetup:0-d0 0 254:16 32768\n")
    assert check_volume(dmsetup).returncode == 1


@pytest.mark.parametrize(
    "table",
    [
        TABLE.replace("capi:authenc(hmac(sha256),xts(aes))-random", "cipher_null-ecb"),
        TABLE.replace("xts(aes)", "ctr(aes)"),
        TABLE.replace("2 integrity:32:aead ", "1 "),
        TABLE.replace("integrity:32:aead", "integrity:32:none"),
        TABLE.replace("sector_size:4096", "sector_size:512"),
        TABLE.replace("crypt", "linear"),
        "0 1298432 linear 254:1 0\n",
        "",
    ],
)
def test_at_later_boots_the_script_refuses_any_other_mode(dmsetup: Path, table: str) -> None:
    (dmsetup / "root.uuid").write_text(f"{UUID}\n")
    note(dmsetup, MODE)
    (dmsetup / "root").write_text(table)
    refused = check_volume(dmsetup)
    assert refused.returncode == 1
    assert refused.stderr.startswith("secex-firstboot: the volume root is not as first boot made it")


@pytest.mark.parametrize("uuid", [None, "\n", f"{UUID}2\n", f"{UUID.replace('LUKS2', 'PLAIN')}\n"])
def test_at_later_boots_the_script_refuses_another_volume_of_the_same_mode(
    dmsetup: Path, uuid: str | None
) -> None:
    if uuid is not None:
        (dmsetup / "root.uuid").write_text(uuid)
    note(dmsetup, MODE)
    (dmsetup / "root").write_text(TABLE)
    assert check_volume(dmsetup).returncode == 1


@pytest.mark.parametrize(
    "noted",
    [
        None,
        "",
        "# secex-firstboot root: \n",
        f"# secex-firstboot boot: {MODE}\n",
        f"#secex-firstboot root: {MODE}\n",
        f"# secex-firstboot root: {MODE}\n" * 2,
        f"# secex-firstboot root: {MODE}\n# secex-firstboot root: other\n",
    ],
)
@pytest.mark.parametrize("table", [TABLE, ""])
def test_at_later_boots_the_script_refuses_a_volume_of_which_nothing_was_noted_or_twice(
    dmsetup: Path, table: str, noted: str | None
) -> None:
    (dmsetup / "root.uuid").write_text(f"{UUID}\n")
    (dmsetup / "root").write_text(table)
    (dmsetup / "etc").mkdir()
    if noted is not None:
        (dmsetup / "etc/crypttab").write_text(noted)
    assert check_volume(dmsetup).returncode == 1


# --- what is mounted as root ---

CHECK_ROOT = REPOSITORY / "dracut/check-root.sh"
MOUNTS = """\
1 1 0:2 / / rw - rootfs rootfs rw
30 1 {number} / /sysroot rw,relatime - xfs /dev/mapper/root rw
31 1 253:8 / /sysroot/boot rw,relatime - ext4 /dev/mapper/boot rw
"""


@pytest.fixture
def later_boot(tmp_path: Path) -> Path:
    """What the script looks at in the initramfs of the provisioned system."""
    for number, uuid in (("253:1", UUID), ("253:8", UUID.replace("root", "boot")), ("252:4", None)):
        device = tmp_path / "sys/dev/block" / number
        device.mkdir(parents=True)
        if uuid:
            (device / "dm").mkdir()
            (device / "dm/uuid").write_text(f"{uuid}\n")
    keys = {
        f"{top}etc/luks/{name}": header * HEADER_SIZE + f"key of {name}\0{name}\n"
        for top, header in (("", "a"), ("sysroot/", "b"))
        for name in ("boot", "root")
    }
    for name, content in {
        "etc/crypttab": f"# secex-firstboot root: {MODE}\n",
        "etc/secex-no-login/a.service.d/a.conf": "of sdboot",
        "sysroot/etc/luks/boot-image/no-login/a.service.d/a.conf": "of root",
        "proc/self/mountinfo": MOUNTS,
        "proc/cmdline": "root=/dev/mapper/root secex.generation=7 x=*\n",
        "sysroot/etc/luks/generations": "7\n6\n",
        **keys,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content.replace("{number}", "253:1"))
    return tmp_path


def check_root(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", CHECK_ROOT, directory], capture_output=True, text=True)


def test_at_later_boots_root_is_the_mapping_that_first_boot_made(later_boot: Path) -> None:
    done = check_root(later_boot)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "mounts",
    [
        MOUNTS.replace("{number}", "253:8"),
        MOUNTS.replace("{number}", "252:4"),
        MOUNTS.replace("{number}", "253:9"),
        MOUNTS.replace("{number}", "253:1") + "32 1 253:8 / /sysroot rw - xfs /dev/mapper/root rw\n",
        MOUNTS.replace("{number}", "253:1") + "32 1 0:42 / /sysroot ro - overlay composefs ro\n",
        MOUNTS.replace("/sysroot rw", "/else rw").replace("{number}", "253:1"),
        "",
    ],
)
def test_at_later_boots_another_root_is_refused_whatever_its_path(later_boot: Path, mounts: str) -> None:
    (later_boot / "proc/self/mountinfo").write_text(mounts)
    refused = check_root(later_boot)
    assert refused.returncode == 1
    assert "secex-firstboot: what is mounted as root is not the volume that first boot made" in refused.stderr


@pytest.mark.parametrize("name", ["boot", "root"])
@pytest.mark.parametrize("content", [None, "", "key of root\0rooT\n", "key of root\0root", "key of root"])
def test_at_later_boots_a_root_without_the_keys_of_sdboot_is_refused(
    later_boot: Path, name: str, content: str | None
) -> None:
    """First boot wrote them last; what has others, or none, is older."""
    path = later_boot / "sysroot/etc/luks" / name
    path.unlink()
    if content is not None:
        path.write_text("b" * HEADER_SIZE + content.replace("root", name))
    refused = check_root(later_boot)
    assert refused.returncode == 1
    assert "secex-firstboot: the root file system is from before first boot had ended: " in refused.stderr


@pytest.mark.parametrize(
    "path", ["etc", "etc/luks", "etc/luks/boot", "etc/luks/root", "etc/luks/generations"]
)
def test_at_later_boots_no_link_on_root_leads_to_the_keys_of_sdboot(later_boot: Path, path: str) -> None:
    on_root = later_boot / "sysroot" / path
    on_root.rename(later_boot / "kept")
    on_root.symlink_to(later_boot / path)
    refused = check_root(later_boot)
    assert refused.returncode == 1
    assert f"the root file system has a link for /{path}: " in refused.stderr


@pytest.mark.parametrize("number", ["6", "7"])
def test_at_later_boots_the_newest_image_starts_and_the_fallback(later_boot: Path, number: str) -> None:
    (later_boot / "proc/cmdline").write_text(f"quiet secex.generation={number}\n")
    assert check_root(later_boot).returncode == 0


@pytest.mark.parametrize(
    ("command_line", "allowed"),
    [
        ("secex.generation=5", "7\n6\n"),
        ("secex.generation=77", "7\n6\n"),
        ("secex.generation=", "7\n6\n"),
        ("secex.generation=*", "7\n6\n"),
        ("secex.generation=7 secex.generation=5", "7\n6\n"),
        ("quiet", "7\n6\n"),
        ("x.secex.generation=7", "7\n"),
        ("secex.generation=7", ""),
        ("secex.generation=7", None),
    ],
)
def test_at_later_boots_no_other_boot_image_starts(
    later_boot: Path, command_line: str, allowed: str | None
) -> None:
    (later_boot / "proc/cmdline").write_text(f"{command_line}\n")
    file = later_boot / "sysroot/etc/luks/generations"
    file.unlink()
    if allowed is not None:
        file.write_text(allowed)
    refused = check_root(later_boot)
    assert refused.returncode == 1
    assert re.search(r"this boot image has the number \S+, and the root file system is for ", refused.stderr)
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "noted",
    [
        None,
        "",
        "# secex-firstboot root: \n",
        f"# secex-firstboot root: {UUID}2 aes\n",
        f"# secex-firstboot root: {MODE}\n" * 2,
        f"# secex-firstboot root: {MODE}\n# secex-firstboot root: other aes\n",
    ],
)
def test_at_later_boots_a_root_of_which_nothing_was_noted_or_twice_is_refused(
    later_boot: Path, noted: str | None
) -> None:
    (later_boot / "etc/crypttab").unlink()
    if noted is not None:
        (later_boot / "etc/crypttab").write_text(noted)
    assert check_root(later_boot).returncode == 1


def no_login(later_boot: Path) -> str:
    return (later_boot / "etc/secex-no-login/a.service.d/a.conf").read_text()


def test_at_later_boots_what_keeps_logins_off_is_sdboots_or_else_roots(later_boot: Path) -> None:
    """That of libostree has none, where IBM's tool has made it."""
    assert (check_root(later_boot).returncode, no_login(later_boot)) == (0, "of sdboot")
    shutil.rmtree(later_boot / "etc/secex-no-login")
    assert (check_root(later_boot).returncode, no_login(later_boot)) == (0, "of root")


def test_at_later_boots_without_anything_that_keeps_logins_off_nothing_starts(later_boot: Path) -> None:
    shutil.rmtree(later_boot / "etc/secex-no-login")
    shutil.rmtree(later_boot / "sysroot/etc/luks/boot-image/no-login")
    refused = check_root(later_boot)
    assert refused.returncode == 1
    assert "the root file system does not say what keeps logins off the consoles: " in refused.stderr
    (later_boot / "sysroot/etc/luks/boot-image/no-login").mkdir()  # an image that allows them
    assert check_root(later_boot).returncode == 0
