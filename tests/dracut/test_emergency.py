"""The clean-up before a shell of the initramfs, run for real below a root directory of its own.

Its /proc and /sys are plain files, and what talks to kernel or systemd is a stand-in that writes down its
call: nothing of the machine the tests run on can be unmounted or powered off.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import REPOSITORY, needs

from secex_firstboot.contract import parameters
from secex_firstboot.ignition.failure import STAGES
from secex_firstboot.owner import console_log

SCRIPT = REPOSITORY / "dracut/emergency.sh"
TOOLS = ("sh", "cat", "rm", "sed", "timeout")
SHELL = "console=ttysclp0 ignition.firstboot secex.emergency=shell"
SECRETS = (
    "usr/lib/coreos/ignition.asc",
    "usr/lib/ignition/user.ign",
    "usr/lib/ignition/user.ign.new",
    "run/ignition.json",
    "run/ignition/state",
    "run/secex-firstboot/gpg-abc/private-keys-v1.d/key",
    "etc/secex-firstboot/volumes/root/key",
    "etc/secex-firstboot/plan.json",
    "etc/secex-firstboot-overlay.cpio",
    "etc/luks/root",
    "run/log/journal/0/system.journal",
    "tmp/something",
)

pytestmark = needs.root


@dataclass(frozen=True)
class Initramfs:
    root: Path

    def put(self, name: str, content: str = "secret") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def stand_in(self, name: str, script: str = "") -> None:
        self.put(f"bin/{name}", f'#!/bin/sh\necho "{name} $*" >> /calls\n{script}\n').chmod(0o755)

    def run(self, command_line: str) -> subprocess.CompletedProcess[str]:
        self.put("proc/cmdline", f"{command_line}\n")
        return subprocess.run(
            ["/usr/sbin/chroot", self.root, "/bin/sh", "/emergency"],
            capture_output=True,
            text=True,
            env={"PATH": "/bin"},
        )

    @property
    def calls(self) -> list[str]:
        return (self.root / "calls").read_text().splitlines()

    @property
    def powered_off(self) -> bool:
        return "systemctl poweroff --force --force" in self.calls


@pytest.fixture
def initramfs(tmp_path: Path) -> Initramfs:
    """With every secret, two mounts and a stack of two mappings."""
    made = Initramfs(tmp_path / "root")
    for tool in TOOLS:
        install(made.root, shutil.which(tool) or tool)
    made.stand_in("systemctl", '[ "$1" != list-units ] || echo "secex-firstboot.service loaded failed"')
    made.stand_in(
        "journalctl",
        '[ "$1" = --sync ] || printf "%s\\n" "[3/10] hostkeys" "secex-firstboot: it broke: mend it"',
    )
    # As in the kernel, a mapping goes only once no other lies on it; the mapping's name is the last argument.
    made.stand_in(
        "dmsetup",
        "case $4$3 in *root_dif) [ -e /sys/class/block/dm-1 ] || rm -r /sys/class/block/dm-0 ;;"
        " *) rm -r /sys/class/block/dm-1 ;; esac",
    )
    for name in ("mount", "umount", "sleep"):
        made.stand_in(name)
    shutil.copy(SCRIPT, made.root / "emergency")
    for secret in SECRETS:
        made.put(secret)
    (made.root / "dev").mkdir()
    made.put("dev/null", "")
    made.put("etc/initrd-release", "")
    made.put("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
    made.put("proc/mounts", "/dev/dm-1 /sysroot xfs rw 0 0\n/dev/vda1 /run/secex-firstboot/se ext4 rw 0 0\n")
    made.put("proc/sysrq-trigger", "")
    made.put("sys/class/block/dm-0/dm/name", "root_dif\n")
    made.put("sys/class/block/dm-1/dm/name", "root\n")
    return made


def install(root: Path, tool: str) -> None:
    """A program with its libraries, as dracut does it."""
    listed = subprocess.run(["ldd", tool], capture_output=True, text=True, check=True).stdout
    for path in [tool, *(word for word in listed.split() if word.startswith("/"))]:
        target = root / "bin" / Path(tool).name if path == tool else root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def left(initramfs: Initramfs) -> list[str]:
    return [name for name in SECRETS if (initramfs.root / name).exists()]


def test_every_secret_is_removed_and_the_power_goes_off(initramfs: Initramfs) -> None:
    assert left(initramfs) == list(SECRETS)
    done = initramfs.run("console=ttysclp0 ignition.firstboot")
    assert left(initramfs) == []
    assert done.returncode == 1
    assert initramfs.powered_off
    assert (initramfs.root / "proc/sysrq-trigger").read_text() == "o\n"


def test_a_shell_may_follow_if_the_boot_entry_asks_for_it(initramfs: Initramfs) -> None:
    assert initramfs.run(SHELL).returncode == 0
    assert left(initramfs) == []
    assert not initramfs.powered_off


@pytest.mark.parametrize(
    "word", ["secex.emergency=shell-not", "secex.emergency", "rd.shell", "xsecex.emergency=shell"]
)
def test_nothing_else_on_the_command_line_gets_a_shell(initramfs: Initramfs, word: str) -> None:
    assert initramfs.run(f"ignition.firstboot {word}").returncode == 1
    assert initramfs.powered_off


@pytest.mark.parametrize(
    "word", ["", "secex.emergency=shell", "secex.grow=off secex.emergency=shell", "x=secex.emergency=shell"]
)
def test_what_the_agent_takes_for_a_shell_gets_one_here(initramfs: Initramfs, word: str) -> None:
    """This script has a reading of its own; what it would read otherwise, the agent refuses."""
    line = " ".join(["ignition.firstboot", *map(str, parameters.NEEDED), word])
    parameters.check(line, [*parameters.NEEDED, *parameters.OURS])
    asked = parameters.value(line, parameters.EMERGENCY)
    assert initramfs.run(line).returncode == (0 if asked else 1)


def test_what_is_mounted_is_unmounted_before_anything_is_removed_and_mappings_go_afterwards(
    initramfs: Initramfs,
) -> None:
    (initramfs.root / "bin/rm").rename(initramfs.root / "bin/real-rm")
    initramfs.stand_in("rm", 'exec /bin/real-rm "$@"')
    assert initramfs.run(SHELL).returncode == 0
    order = [call.split()[0] for call in initramfs.calls]
    assert [call for call in initramfs.calls if call.startswith("umount")] == [
        "umount /run/secex-firstboot/se",
        "umount /sysroot",
    ]
    last_umount = len(order) - 1 - order[::-1].index("umount")
    assert last_umount < order.index("rm") < order.index("dmsetup")


def test_a_volume_that_does_not_close_keeps_the_shell_closed(initramfs: Initramfs) -> None:
    initramfs.stand_in("dmsetup")
    done = initramfs.run(SHELL)
    assert done.returncode == 1
    assert initramfs.powered_off
    assert "no shell opens. Left:\nroot_dif\nroot\n" in done.stdout


def test_a_journald_that_keeps_the_old_journal_open_keeps_the_shell_closed(initramfs: Initramfs) -> None:
    """Ignition writes the whole config to its log when it fails."""
    initramfs.stand_in("systemctl", '[ "$1" != restart ]')
    done = initramfs.run(SHELL)
    assert done.returncode == 1
    assert initramfs.powered_off
    assert "no shell opens. Left:\n/run/log/journal\n" in done.stdout


def test_a_secret_that_stays_keeps_the_shell_closed(initramfs: Initramfs) -> None:
    initramfs.stand_in("rm")
    done = initramfs.run(SHELL)
    assert done.returncode == 1
    assert initramfs.powered_off
    assert "/etc/luks" in done.stdout


@pytest.mark.parametrize("tool", ["systemctl", "journalctl", "umount", "mount", "timeout"])
def test_a_tool_that_fails_leaves_no_secret_to_a_shell(initramfs: Initramfs, tool: str) -> None:
    initramfs.stand_in(tool, "exit 1")
    initramfs.run(SHELL)
    assert left(initramfs) == []


def test_one_screen_says_what_failed_why_and_what_to_do(initramfs: Initramfs) -> None:
    shown = initramfs.run("ignition.firstboot").stdout
    assert "what failed:  secex-firstboot.service\n" in shown
    assert "why:          it broke: mend it\n" in shown
    assert "what to do:   The image is unchanged." in shown
    assert len(shown.splitlines()) < 24


def test_an_agent_that_the_kernel_ended_is_spoken_for(initramfs: Initramfs) -> None:
    killed = "Out of memory: Killed process 374 (secex-firstboot) total-vm:215376kB"
    initramfs.stand_in("journalctl", f'case "$*" in *--dmesg*) echo "{killed}" ;; esac')
    shown = initramfs.run("ignition.firstboot").stdout
    assert (
        "why:          the guest has too little memory, the kernel ended secex-firstboot: give it more"
        " [SX-BOOT-05]\n" in shown
    )


def test_secex_explain_reads_the_screen(initramfs: Initramfs, tmp_path: Path) -> None:
    said = "secex-firstboot: it broke: mend it [SX-DISK-11]"
    initramfs.stand_in("journalctl", f'case "$*" in *=secex-firstboot*) echo "{said}" ;; esac')
    found = explained(initramfs.run("ignition.firstboot").stdout, tmp_path)
    assert found.cause and (found.cause.id, found.cause.said) == ("SX-DISK-11", "it broke: mend it")
    assert found.failed_unit == "secex-firstboot.service"
    assert found.screen_cure.startswith("The image is unchanged.")
    fails_in_ignition(initramfs, "files")
    initramfs.stand_in("secex-firstboot", "echo Its stage: x; echo Do so.")
    found = explained(initramfs.run("ignition.firstboot").stdout, tmp_path)
    assert found.cause and (found.cause.id, found.cause.said) == ("", "Its stage: x")
    assert (found.failed_unit, found.screen_cure) == ("ignition-files.service", "Do so.")


def explained(shown: str, directory: Path) -> console_log.Explanation:
    log = directory / "console.log"
    log.write_text(f"Linux version 6.12 (x)\n{shown}")
    return console_log.explain(log)


def fails_in_ignition(initramfs: Initramfs, stage: str) -> None:
    initramfs.stand_in(
        "systemctl", f'[ "$1" != list-units ] || echo "ignition-{stage}.service loaded failed"'
    )
    initramfs.stand_in("journalctl")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_of_ignition_that_failed_is_explained_by_the_agent(initramfs: Initramfs, stage: str) -> None:
    """While the config is there, which it looks for the entry in."""
    fails_in_ignition(initramfs, stage)
    initramfs.stand_in(
        "secex-firstboot",
        f'cat /run/ignition.json > /seen; echo "Ignition\'s {stage} stage: x"; echo Do so.',
    )
    shown = initramfs.run("ignition.firstboot").stdout
    assert f"what failed:  ignition-{stage}.service\n" in shown
    assert f"why:          Ignition's {stage} stage: x\n" in shown
    assert "what to do:   Do so.\n" in shown
    assert "secex-firstboot --explain" in initramfs.calls
    assert (initramfs.root / "seen").read_text() == "secret"
    assert left(initramfs) == []


@pytest.mark.parametrize("said", ["", "exit 1", "echo", "echo one line", "echo; echo second"])
def test_if_the_agent_cannot_explain_the_stage_is_named_all_the_same(initramfs: Initramfs, said: str) -> None:
    fails_in_ignition(initramfs, "mount")
    initramfs.stand_in("secex-firstboot", said)
    shown = initramfs.run("ignition.firstboot").stdout
    assert "what failed:  ignition-mount.service\n" in shown
    assert "why:          Ignition failed, and why cannot be told without quoting the config\n" in shown
    assert "what to do:   The image is unchanged." in shown
    assert left(initramfs) == []
    assert initramfs.powered_off


def test_the_explanation_has_a_limit_in_time(initramfs: Initramfs) -> None:
    fails_in_ignition(initramfs, "files")
    initramfs.stand_in("timeout", 'case "$*" in *--explain*) exit 124 ;; esac; shift; exec "$@"')
    initramfs.stand_in("secex-firstboot", "echo one; echo two")
    assert "why cannot be told without" in initramfs.run("ignition.firstboot").stdout
    assert [call for call in initramfs.calls if "--explain" in call] == [
        "timeout --kill-after=5 90 secex-firstboot --explain"
    ]


def test_a_failure_of_another_unit_is_not_ignition_s(initramfs: Initramfs) -> None:
    initramfs.stand_in("secex-firstboot", "echo one; echo two")
    assert "why:          it broke: mend it\n" in initramfs.run("ignition.firstboot").stdout


def test_after_the_commit_point_it_says_that_a_new_start_goes_on(initramfs: Initramfs) -> None:
    initramfs.put("etc/secex-firstboot/committed", "")
    shown = initramfs.run("ignition.firstboot=1").stdout
    assert "what to do:   The disk is half encrypted. Start the guest again" in shown


def test_outside_of_an_initramfs_nothing_is_touched(initramfs: Initramfs) -> None:
    (initramfs.root / "etc/initrd-release").unlink()
    assert initramfs.run(SHELL).returncode == 1
    assert left(initramfs) == list(SECRETS)
    assert not (initramfs.root / "calls").exists()


def opens_a_shell(initramfs: Initramfs, *way: str) -> bool:
    """Whether dracut would, once it has sourced the hook."""
    shutil.copy(SCRIPT.with_name("emergency-hook.sh"), initramfs.root / "hook")
    initramfs.put("dracut", ". /hook\necho shell >> /calls\n")
    subprocess.run([*way, "/usr/sbin/chroot", initramfs.root, "/bin/sh", "/dracut"], env={"PATH": "/bin"})
    return "shell" in initramfs.calls


@pytest.mark.parametrize("action", ["poweroff", "reboot", "halt"])
def test_at_shutdown_dracut_goes_on_with_it_and_asks_nobody(initramfs: Initramfs, action: str) -> None:
    """As process 1, in /run/initramfs: there is no systemd, and a system's volumes are still open."""
    initramfs.stand_in(action)
    initramfs.put("usr/lib/secex-firstboot/emergency", "#!/bin/sh\necho asked >> /calls\n").chmod(0o755)
    assert not opens_a_shell(initramfs, "/usr/bin/unshare", "--pid", "--fork", "env", f"ACTION={action}")
    assert initramfs.calls == [f"{action} -f -n"]


@pytest.mark.parametrize(("code", "opens"), [(0, True), (1, False)])
def test_before_dracut_opens_a_shell_everything_is_cleaned_up(
    initramfs: Initramfs, code: int, opens: bool
) -> None:
    initramfs.stand_in("sleep")
    initramfs.put("usr/lib/secex-firstboot/emergency", f"#!/bin/sh\nexit {code}\n").chmod(0o755)
    assert opens_a_shell(initramfs, "/usr/bin/env") == opens
    assert initramfs.calls == ["shell" if opens else "sleep infinity"]
