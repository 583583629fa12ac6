"""What an image must keep to: each rule is broken once, and the neighbour passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import deployments, plain, se_tree

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.builder import rules
from secex_firstboot.sdboot.boot_entry import BootEntry


@dataclass
class Said:
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return se_tree.make(tmp_path / "tree")


def check(tree: Path, *, said: Said | None = None, more: str = "", strict: bool = False) -> BootEntry:
    said = said or Said()
    context = Context("", say=said.lines.append, warn=said.warnings.append)
    return rules.check(context, tree, more_options=more, strict_options=strict, file_system="ext4")


def write(tree: Path, name: str, content: str) -> None:
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_text(content)


def entry(tree: Path, options: str) -> None:
    lines = f"linux /vmlinuz-{se_tree.RELEASE}\ninitrd /initrd.img-{se_tree.RELEASE}\noptions {options}\n"
    write(tree, "boot/loader/entries/own.conf", f"title Own\nversion {se_tree.RELEASE}\n{lines}")


def test_without_a_boot_entry_one_is_made_with_what_an_image_needs(tree: Path) -> None:
    found = check(tree)
    assert (found.title, found.release) == ("The Test Linux", se_tree.RELEASE)
    assert found.linux == tree / f"boot/vmlinuz-{se_tree.RELEASE}"
    words = set(found.options.split())
    assert words >= {
        *("root=/dev/mapper/root", "init_on_free=1", "systemd.gpt_auto=0", "fsck.mode=skip"),
        *("ignition.platform.id=metal", "rd.neednet=1", "rw"),
    }


def test_what_a_boot_entry_lacks_is_added_and_what_it_has_stays(tree: Path) -> None:
    entry(tree, "root=/dev/mapper/root console=ttysclp0 rd.neednet=0")
    said = Said()
    words = check(tree, said=said, more="quiet").options.split()
    assert words[:4] == ["root=/dev/mapper/root", "console=ttysclp0", "rd.neednet=0", "quiet"]
    assert "init_on_free=1" in words
    assert "rd.neednet=1" not in words
    assert (
        "added to the boot entry's options: init_on_free=1 systemd.gpt_auto=0 fsck.mode=skip" in said.lines[0]
    )


def test_with_strict_options_nothing_is_added(tree: Path) -> None:
    entry(tree, se_tree.OPTIONS)
    assert check(tree, strict=True).options == se_tree.OPTIONS
    entry(tree, "root=/dev/mapper/root")
    with pytest.raises(Refusal, match=r"has no init_on_free=1"):
        check(tree, strict=True)


def no_kernel(tree: Path) -> None:
    (tree / f"boot/vmlinuz-{se_tree.RELEASE}").unlink()


def foreign_kernel(tree: Path) -> None:
    (tree / f"boot/vmlinuz-{se_tree.RELEASE}").write_bytes(b"MZ".ljust(200 << 10, b"\0"))


def old_kernel(tree: Path) -> None:
    for name in ("vmlinuz", "initrd.img"):
        (tree / f"boot/{name}-{se_tree.RELEASE}").rename(tree / f"boot/{name}-4.18.0-s390x")


def another_kernel(tree: Path) -> None:
    write(tree, "boot/vmlinuz-7.2.0-s390x", "another")


def foreign_initramfs(tree: Path) -> None:
    se_tree.make_initramfs(tree / f"boot/initrd.img-{se_tree.RELEASE}", "/init")


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no kernel": (no_kernel, "/boot has no boot entry, and 0 kernels instead of one"),
    "two kernels": (another_kernel, "/boot has no boot entry, and 2 kernels instead of one"),
    "a kernel of x86": (foreign_kernel, f"vmlinuz-{se_tree.RELEASE} is no kernel for s390x"),
    "a kernel that is too old": (old_kernel, "the kernel 4.18.0-s390x cannot be a Secure Execution guest"),
    "a kernel built without it": (
        lambda tree: write(
            tree,
            f"boot/config-{se_tree.RELEASE}",
            "CONFIG_A=y\n# CONFIG_PROTECTED_VIRTUALIZATION_GUEST is not set\n",
        ),
        "cannot be a Secure Execution guest",
    ),
    "no initramfs": (
        lambda tree: (tree / f"boot/initrd.img-{se_tree.RELEASE}").unlink(),
        "/boot has no initramfs for the kernel",
    ),
    "an initramfs without the agent": (foreign_initramfs, "the initramfs has no secex-firstboot"),
    "no initramfs at all": (
        lambda tree: write(tree, f"boot/initrd.img-{se_tree.RELEASE}", "what is this"),
        "is no initramfs: it is packed in a way that is not known",
    ),
    "a swap partition": (
        lambda tree: write(tree, "etc/fstab", "UUID=1234 none swap defaults 0 0\n"),
        "/etc/fstab mounts or swaps to UUID=1234, which would be a disk of the host's",
    ),
    "a password": (
        lambda tree: write(tree, "etc/shadow", "root:*:1\nuser:$y$j9T$abc:20000::::::\n"),
        "accounts that are not locked: user",
    ),
    "an empty password": (
        lambda tree: write(tree, "etc/shadow", "root::20000::::::\n"),
        "accounts that are not locked: root",
    ),
    "the host's agent": (
        lambda tree: write(tree, "usr/lib/systemd/system/qemu-guest-agent.service", "[Unit]\n"),
        "the image takes commands from the host: qemu-guest-agent.service",
    ),
    "a private key": (
        lambda tree: write(tree, "etc/ssl/private/web.pem", "-----BEGIN PRIVATE KEY-----\n"),
        "the image holds private keys that all its guests would share: /etc/ssl/private/web.pem",
    ),
    "an option of another root": (
        lambda tree: entry(tree, "root=LABEL=root"),
        "root=LABEL=root is not root=/dev/mapper/root",
    ),
    "an option that is none": (lambda tree: entry(tree, "secex.nonsense=1"), "has no kernel parameter"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_tree_that_breaks_a_rule_is_refused(what: str, tree: Path) -> None:
    check(tree)
    for path in (tree / "boot/loader/entries").iterdir():
        path.unlink()
    break_it, says = BROKEN[what]
    break_it(tree)
    with pytest.raises(Refusal) as refused:
        check(tree)
    assert says in refused.value.message
    assert refused.value.cure


def test_all_broken_rules_are_told_at_once(tree: Path) -> None:
    for what in ("a password", "the host's agent", "an initramfs without the agent"):
        BROKEN[what][0](tree)
    said = Said()
    with pytest.raises(Refusal, match="the image breaks 3 rules"):
        check(tree, said=said)
    assert len([line for line in said.warnings if "[SX-BUILD-" in line]) == 3


LINKS = [
    *("etc", "etc/ssh", "boot", "etc/shadow", "var/lib/systemd", "usr/lib/os-release", "usr/lib/s390-tools"),
    "usr/share/s390-tools/pvimg/stage3a.bin",
]


@pytest.mark.parametrize("place", LINKS)
def test_a_link_out_of_the_tree_is_refused_before_anything_is_changed(
    place: str, tree: Path, tmp_path: Path
) -> None:
    """This machine's own /etc could be there."""
    outside = tmp_path / "outside"
    (outside / "ssh").mkdir(parents=True)
    (outside / "ssh/ssh_host_rsa_key").write_text("the build machine's")
    (outside / "machine-id").write_text("0" * 32)
    link = tree / place
    if link.is_dir():
        link.rename(tmp_path / "aside")
    else:
        link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside / "ssh" if place == "etc/ssh" else outside)
    with pytest.raises(Refusal, match=rf"/{place}[\w./]* of the tree is a link to outside of it"):
        check(tree)
    assert (outside / "ssh/ssh_host_rsa_key").read_text() == "the build machine's"
    assert (outside / "machine-id").read_text() == "0" * 32


def test_what_is_of_one_machine_goes_and_is_named(tree: Path) -> None:
    for name in ("etc/ssh/ssh_host_ed25519_key", "etc/machine-id", "var/lib/systemd/random-seed"):
        write(tree, name, "of one machine")
    said = Said()
    check(tree, said=said)
    assert not (tree / "etc/ssh/ssh_host_ed25519_key").exists()
    assert not (tree / "var/lib/systemd/random-seed").exists()
    assert (tree / "etc/machine-id").read_text() == "uninitialized\n"
    assert any("/etc/ssh/ssh_host_ed25519_key" in line and "/etc/machine-id" in line for line in said.lines)


FSTABS = {
    "none": ("", "/dev/mapper/root / ext4 defaults 0 0\n/dev/mapper/boot /boot ext4 defaults 0 0\n"),
    "a cloud image's": (
        "# made\nLABEL=root / ext4 errors=remount-ro 0 1\ntmpfs /tmp tmpfs defaults 0 0\n",
        "/dev/mapper/root / ext4 defaults 0 0\n/dev/mapper/boot /boot ext4 defaults 0 0\n# made\n"
        "tmpfs /tmp tmpfs defaults 0 0\n",
    ),
    "right": (
        "/dev/mapper/root / auto noatime 0 0\n/dev/mapper/boot /boot ext4 ro 0 0\n",
        "/dev/mapper/root / auto noatime 0 0\n/dev/mapper/boot /boot ext4 ro 0 0\n",
    ),
    "of other types": (
        "/dev/mapper/root / xfs noatime 0 0\n/dev/mapper/boot /boot xfs ro 0 0\n",
        "/dev/mapper/root / ext4 defaults 0 0\n/dev/mapper/boot /boot ext4 defaults 0 0\n",
    ),
}


@pytest.mark.parametrize("which", FSTABS)
def test_fstab_names_the_volumes_of_first_boot(which: str, tree: Path) -> None:
    before, after = FSTABS[which]
    if before:
        write(tree, "etc/fstab", before)
    check(tree)
    assert (tree / "etc/fstab").read_text() == after
    check(tree)
    assert (tree / "etc/fstab").read_text() == after


def test_a_kernel_whose_configuration_is_missing_is_taken_with_a_warning(tree: Path) -> None:
    said = Said()
    check(tree, said=said)
    assert "there is no configuration of the kernel" in said.warnings[0]
    write(tree, f"boot/config-{se_tree.RELEASE}", "CONFIG_PROTECTED_VIRTUALIZATION_GUEST=y\n")
    said = Said()
    check(tree, said=said)
    assert not said.warnings


def test_without_the_agent_in_the_tree_it_is_refused(tree: Path) -> None:
    assert rules.agent_version(plain(tree)) == "0.1.0"
    (tree / "usr/lib/python3/dist-packages/secex_firstboot/__init__.py").unlink()
    with pytest.raises(Refusal, match="secex-firstboot is not installed in the tree"):
        rules.agent_version(plain(tree))


# --- a system made by ostree -------------------------------------------------------------------------------

COMPOSEFS = "[sysroot]\nreadonly=true\n[composefs]\nenabled = yes\n"
PREPARE_ROOT, IMAGE = "usr/lib/ostree/prepare-root.conf", ".ostree.cfs"


@pytest.fixture
def deployment(tree: Path) -> Path:
    entry(tree, f"{se_tree.OPTIONS} {deployments.ARGUMENT}")
    return deployments.of(tree)


def test_a_deployment_that_starts_by_composefs_has_an_image_for_that(tree: Path, deployment: Path) -> None:
    write(deployment, PREPARE_ROOT, COMPOSEFS)
    with pytest.raises(
        Refusal, match=r"its deployment has no \.ostree\.cfs: deploy it by an ostree that has"
    ):
        check(tree)
    write(deployment, IMAGE, "erofs")
    check(tree)


@pytest.mark.parametrize(
    "settings", ["", "[composefs]\nenabled=no\n", "[composefs]\nenabled=maybe\n", "[etc]\ntransient=false\n"]
)
def test_a_deployment_that_can_start_without_needs_none(settings: str, tree: Path, deployment: Path) -> None:
    write(deployment, PREPARE_ROOT, settings)
    check(tree)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("[composefs]\nenabled=signed\n", "composefs.enabled"),
        ("[composefs]\nenabled=verity\n", "composefs.enabled"),
        (f"{COMPOSEFS}[etc]\ntransient=true\n", "etc.transient"),
        ("enabled=yes\n", "lines that are no settings"),
    ],
)
def test_a_deployment_is_to_start_with_nothing_that_a_guest_has_not(
    settings: str, says: str, tree: Path, deployment: Path
) -> None:
    write(deployment, PREPARE_ROOT, settings)
    write(deployment, IMAGE, "erofs")
    with pytest.raises(Refusal, match=f"prepare-root.conf has {says}: leave that out"):
        check(tree)


def test_of_two_files_for_ostree_prepare_root_the_one_below_etc_counts(tree: Path, deployment: Path) -> None:
    write(deployment, PREPARE_ROOT, COMPOSEFS)
    write(deployment, "etc/ostree/prepare-root.conf", "[composefs]\nenabled=no\n")
    check(tree)


def test_in_a_plain_tree_they_are_nobodys(tree: Path) -> None:
    write(tree, PREPARE_ROOT, COMPOSEFS)
    check(tree)
