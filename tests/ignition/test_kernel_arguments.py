"""kernelArguments: what comes of them, what is refused, and that the manual page has the same table."""

from __future__ import annotations

import re

import pytest
from support import REPOSITORY

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition.config import KernelArguments
from secex_firstboot.ignition.kernel_arguments import FAMILIES, apply, check

MANUAL = REPOSITORY / "docs" / "secex-firstboot.8"


def arguments(exist: list[str], absent: list[str] | None = None) -> KernelArguments:
    return KernelArguments(should_exist=exist, should_not_exist=absent or [])


@pytest.mark.parametrize(
    ("options", "exist", "absent", "expected"),
    [
        ("quiet rw", ["mitigations=off"], [], "quiet rw mitigations=off"),
        ("quiet rw", ["a b=1", "c"], [], "quiet rw a b=1 c"),
        ("quiet rw", ["quiet", "a", "a rw"], [], "quiet rw a"),
        ("console=ttysclp0", ["console=ttyS0"], [], "console=ttysclp0 console=ttyS0"),
        ("a=1", ["a"], [], "a=1 a"),
        ("zswap.max-pool=1", ["zswap.max_pool=1"], [], "zswap.max-pool=1"),
        ("a=1 a=2 a quiet a=1", [], ["a=1"], "a=2 a quiet"),
        ("a=1 a quiet", [], ["a"], "a=1 quiet"),
        ("a b c", [], ["b c"], "a"),
        ("a-b=1-2 a_b=1_2", [], ["a_b=1-2"], "a_b=1_2"),
        ('dyndbg="file a.c +p"', ['dyndbg="file b.c +p"'], [], 'dyndbg="file a.c +p" dyndbg="file b.c +p"'),
        ('a="1" b', ["a=1"], ["b"], 'a="1"'),
        ("mitigations=auto", ["mitigations=off"], ["mitigations=auto"], "mitigations=off"),
        ("quiet -- x", ["a=1"], [], "quiet a=1 -- x"),
        ("quiet", [], ["missing", "missing=1"], "quiet"),
        ("quiet", [], [], "quiet"),
    ],
)
def test_the_command_line_that_comes_of_a_config(
    options: str, exist: list[str], absent: list[str], expected: str
) -> None:
    result = apply(options, arguments(exist, absent))
    assert result == expected
    assert apply(result, arguments(exist, absent)) == expected


REFUSED = {
    "init": ["init=/bin/sh", '"init"=/bin/sh', 'in"it=/bin/sh"', "quiet init=/bin/sh"],
    "-*": ["--", "-- single", "-b", "--unit=rescue.target"],
    "single": ["single", 'a="x single y"'],
    "s": ["s"],
    "S": ["S"],
    "1": ["1"],
    "emergency": ["emergency"],
    "rescue": ["rescue"],
    "break": ["break=premount"],
    "rd*": [
        "rd.break",
        "rd.break=pre-mount",
        "rdinit=/bin/sh",
        "rd.shell",
        "rd.shell=0",
        "rd.emergency",
        "rd.rescue",
        "rd.debug",
        "rd.cmdline=ask",
        "rd.auto",
        "rd.luks=0",
        "rd.luks.crypttab=no",
        "rd.systemd.unit=rescue.target",
        "rd.systemd.debug-shell",
        "rd.udev.debug",
        "rd.hmc",
        "rd.live.overlay",
        "rdshell",
        "rd_NO_LUKS",
        "rd-break",
        '"rd.break"',
        'a="x rd.break"',
    ],
    "systemd*": [
        "systemd.debug-shell",
        "systemd.debug_shell=1",
        "systemd.unit=emergency.target",
        '"systemd.unit=emergency.target"',
        "systemd.mask=x.service",
        "systemd.wants=debug-shell.service",
        "systemd.run=/bin/sh",
        "systemd.setenv=SYSTEMD_SULOGIN_FORCE=1",
        "systemd.set_credential=x:y",
        "systemd.set-credential-binary=x:y",
        "systemd.import_credentials=yes",
        "systemd.confirm_spawn",
        "systemd.getty_auto",
        "systemd.crash_shell",
        "systemd.log_target=console",
        "systemd.log_level=debug",
        "systemd.journald.forward_to_console",
        "systemd.default_standard_output=tty",
        "systemd.volatile=overlay",
        "systemd.verity_root_data=/dev/vdb",
        "systemd.break=pre-switch-root",
        "systemd.pull=tar:x:https://h.example/x",
    ],
    "SYSTEMD_*": ["SYSTEMD_SULOGIN_FORCE=1"],
    "root*": ["root=/dev/vdb", "rootflags=x", "rootfstype=ext4", "roothash=00", "rootfs.roothash=00"],
    "netroot": ["netroot=iscsi:x"],
    "nfsroot": ["nfsroot=x"],
    "overlayroot": ["overlayroot=tmpfs"],
    "usrhash": ["usrhash=00"],
    "mount.*": ["mount.usr=/dev/vdb"],
    "fstab": ["fstab=no"],
    "resume*": ["resume=/dev/vdb", "resume_offset=1"],
    "fsck.*": ["fsck.mode=force", "fsck.repair=yes"],
    "forcefsck": ["forcefsck"],
    "fastboot": ["fastboot"],
    "luks": ["luks=no"],
    "luks.*": ["luks.crypttab=no", "luks.name=x=root", "luks.options=x", "luks.key=x"],
    "veritytab": ["veritytab=no"],
    "integritytab": ["integritytab=no"],
    "dm-mod.create": ["dm-mod.create=x", 'dm_mod.create="root,,,rw, 0 1 linear /dev/vdb 0"'],
    "secex.*": ["secex.headroom=1"],
    "ignition.*": ["ignition.firstboot", "ignition.platform.id=metal"],
    "bootfs.*": ["bootfs.roothash=00"],
    "ostree*": ["ostree=/ostree/boot.0/a/b/0", "ostree.prepare-root.composefs=0", "ostree-x"],
    "composefs*": ["composefs=abc"],
    "kgdb*": ["kgdboc=ttyS0", "kgdboc.kgdboc=ttyS0", "kgdbwait"],
    "kdb*": ["kdb.cmd_enable=1"],
    "ekgdboc": ["ekgdboc=kbd"],
    "sysrq_always_enabled": ["sysrq_always_enabled", "sysrq-always-enabled=1"],
    "sysctl.kernel.sysrq": ["sysctl.kernel.sysrq=1", "sysctl/kernel/sysrq=1"],
}
ACCEPTED = [
    "console=ttysclp0",
    "crashkernel=256M",
    "mitigations=auto,nosmt",
    "zswap.enabled=1",
    "swiotlb=262144",
    "nokaslr",
    "earlyprintk",
    "selinux=0",
    "enforcing=0",
    "init_on_alloc=1",
    "initcall_blacklist=x",
    "quiet",
    "debug",
    "loglevel=7",
    "ip=dhcp",
    "2",
    "sysctl.vm.swappiness=1",
    "rootwait",
    "rootdelay=2",
    "noresume",
    "rd.neednet=1",
    "rd.net.timeout.dhcp=30",
    "rd.znet=qeth,0.0.0600,0.0.0601,0.0.0602",
    "rd.driver.pre=x",
    "systemd.unified_cgroup_hierarchy=0",
    "systemd.unified-cgroup-hierarchy",
    "systemd.hostname=a",
    "systemd.watchdog_sec=10",
    "singles",
    "x=-b",
    "x=init=y",
    "user.systemd=1",
    "dm_mod.use_blk_mq=1",
    'dyndbg="file a.c +p"',
]


def test_each_name_of_the_table_is_tried() -> None:
    assert list(REFUSED) == [name for family in FAMILIES for name in family.names]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in REFUSED for text in REFUSED[name]])
def test_an_argument_that_opens_the_guest_or_is_not_the_configs_is_neither_added_nor_removed(
    name: str, text: str
) -> None:
    (family,) = [family for family in FAMILIES if name in family.names]
    with pytest.raises(
        Refusal, match=re.escape(f"kernelArguments.shouldExist[1] is one of {family.names[0]}")
    ):
        check(arguments(["quiet", text]))
    with pytest.raises(Refusal, match=re.escape("kernelArguments.shouldNotExist[0] is one of")) as refused:
        apply("quiet", arguments([], [text]))
    assert family.reason in refused.value.message


@pytest.mark.parametrize("text", ACCEPTED)
def test_other_arguments_are_added_and_removed(text: str) -> None:
    assert apply("rw", arguments([text])) == f"rw {text}"
    assert apply(f"rw {text}", arguments([], [text])) == "rw"


def test_an_exception_in_the_table_is_one_and_is_needed() -> None:
    for family in FAMILIES:
        for name in family.but:
            example = name.removesuffix("*")
            assert not any(each.has(example) for each in FAMILIES)
            assert any(each.has(f"{example}x") for each in FAMILIES) is not name.endswith("*")


@pytest.mark.parametrize("text", ["", " ", 'a="b', "a='b'", "a=\\x", "a\tb", "a\nb", "a\0b", "é", "a=\x7f"])
def test_what_readers_may_understand_differently_is_refused(text: str) -> None:
    with pytest.raises(Refusal, match=r"kernelArguments\.shouldExist\[0\] is no kernel argument"):
        check(arguments([text]))


def test_a_refusal_does_not_quote_the_argument() -> None:
    for text in ("systemd.set_credential=x:hunter2", "hunter2'"):
        with pytest.raises(Refusal) as refused:
            check(arguments([text]))
        assert "hunter2" not in str(refused.value)


def test_the_manual_page_has_the_table() -> None:
    section = MANUAL.read_text().partition(".Sh KERNEL ARGUMENTS")[2].partition(".Sh ")[0]
    text = " ".join(re.sub(r"^\.[A-Z][a-z] ", "", section, flags=re.MULTILINE).replace("\\", "").split())
    for family in FAMILIES:
        row = " , ".join(family.names)
        assert f"{row} {family.reason[0].upper()}{family.reason[1:]}" in text
        assert not family.but or f"but for {' , '.join(family.but)} ." in text
