"""The main job, live: ``make demo``. An SE-ready image is provisioned, restarted and looked at.

Everything ends in build/demo/; the last lines on the screen are the proof, and the same facts
stand in report.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from harness import (
    console,
    debian,
    firstboot,
    null_header,
    owners_volume,
    powercut,
    raw_disk,
    recovery_key,
    remains,
    se_ready,
    ultravisor,
)
from harness.firstboot import Owner, Served, Site, System
from harness.guest import Disk, Guest, Network
from harness.powercut import Recording
from harness.se_ready import MIB, OPTIONS, Recipe

from secex_firstboot.contract import paths

OUTPUT = debian.REPOSITORY / "build" / "demo"
DISK_SIZE = 4096  # MiB
_GROWING = OPTIONS.replace(" secex.grow=off", "")
_GROWING_DISK_SIZE = 1280  # MiB; beyond the headroom a minute's work
_SHOWN = re.compile(r"secex-firstboot\[|ignition|cryptsetup|login:|zipl|FAILED|reboot:", re.IGNORECASE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="directory (default: %(default)s)")
    parser.add_argument("--root", choices=["xfs", "ext4"], default="xfs", help="the root file system")
    options = parser.parse_args()
    report = run(options.output, closely=False, root=options.root)
    print_report(report)
    return 0 if all(report["proof"].values()) else 1


def run(output: Path, *, closely: bool, at_length: bool = False, root: str = "xfs") -> dict[str, Any]:
    """The whole story, below ``output``. ``closely``: for hosts with hybrid (quantum-safe) keys, and with a
    recovery key, restart from an updated boot image, and without the LUKS2 headers on the disk, let root grow
    to the end of a smaller disk, and have a volume that the config asks for. ``at_length``: in the initramfs
    list all files, and try a dry run, too, which takes the guest minutes.
    """
    recipe, size, configure = Recipe(root_file_system=root, signed=True), DISK_SIZE, firstboot.plain_config
    if closely:
        configure = configure_closely
        more = " secex-test.manifest secex-test.dry-run" if at_length else ""
        recipe = Recipe(options=f"{_GROWING}{more}", signed=True)
        size = _GROWING_DISK_SIZE
    with firstboot.make_site(output, recipe, configure, adopted=True, hybrid=closely) as (where, network):
        firstboot.enlarge(where.image, where.disk, size)
        report = provision(where, network, closely=closely, at_length=at_length)
        disk = Disk(where.disk, "system")
        if closely:
            disk = Disk(raw_disk.convert(updated(where), where.directory / "disk.raw"), "system", "raw")
            with powercut.recorded(Path(disk.path)) as (served, recording):
                report |= restart(where, network, served, recording)
            report |= fall_back(where, network, disk)
        else:
            report |= restart(where, network, disk)
        report["proof"] = prove(where, Path(disk.path), report)
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def configure_closely(owner: Owner) -> Served:
    return recovery_key.configure(owner, owners_volume.configure(owner))


def provision(where: Site, network: Network, *, closely: bool, at_length: bool) -> dict[str, Any]:
    """The first boot, on a host that the image was adopted for."""
    debian.say(f"first boot, on host {where.first_host}")
    log = where.directory / "console-1.log"
    started = time.monotonic()
    with firstboot.start(
        where,
        network,
        host_keys=[where.hosts[where.first_host].key],
        log=log,
        cpus=_cpus(closely=closely),
        others=[owners_volume.disk(where.directory)] if closely else [],
        on_line=show,
    ) as guest:
        firstboot.wait_for_system(guest, firstboot.FIRST_BOOT_TIMEOUT)
        seconds = round(time.monotonic() - started, 1)
        system = firstboot.look(guest, where.identity)
        report: dict[str, Any] = {
            "agent": json.loads(guest.ssh("cat /var/lib/secex-firstboot/report.json", where.identity).stdout),
            "first boot": {"seconds to login": seconds, **dataclasses.asdict(system)},
        }
        if at_length:
            report["files"] = look_at_files(guest, where)
            report["dry run half way"] = look_at_dry_run(guest, where, "cat /run/secex-test/dry-run.json")
        if closely:
            report["dry run afterwards"] = look_at_dry_run(guest, where, "secex-firstboot --dry-run --json")
            report["growth"] = look_at_growth(guest, where)
            report["evidence"] = json.loads(guest.ssh("secex evidence --json", where.identity).stdout)
        report["integrity errors, first boot"] = integrity_errors(guest, where)
        if closely:
            guest.ssh("sync", where.identity)
            guest.snapshot(1, updated(where))
            report["update"] = update(guest, where, ADDED_ARGUMENT)
            wipe_headers(guest, where)
            spoil(guest, where)
            leave_traces(guest, where)
        report["first power-off"] = firstboot.power_off(guest, where.identity)
    return report


def updated(where: Site) -> Path:
    """The disk as first boot's system leaves it after an update; the one without is kept."""
    return where.directory / "updated.qcow2"


def look_at_files(guest: Guest, where: Site) -> dict[str, Any]:
    """How those that the tests' dracut module listed in the initramfs differ from the image's."""
    manifest = guest.ssh("cat /run/secex-test/manifest", where.identity).stdout
    built = firstboot.manifest_of(where.tree)
    different = firstboot.differences(built, firstboot.load_manifest(manifest))
    return {"in the built root": len(built), "different": different}


def look_at_dry_run(guest: Guest, where: Site, command: str) -> Any:
    return json.loads(guest.ssh(command, where.identity).stdout)


def update(guest: Guest, where: Site, argument: str) -> dict[str, Any]:
    """What is said to have changed since the newest boot image was made: before one more kernel argument is
    in the boot entry, by the service that sees it there, and after that.
    """

    def shell(command: str) -> str:
        return guest.ssh(command, where.identity, timeout=firstboot.BOOT_TIMEOUT).stdout

    before = json.loads(shell("secex update --json"))["changed"]
    said = "journalctl --boot --output=cat --unit=secex-firstboot-update.service"
    shell(
        f"sed -i 's|^options .*|& {argument}|' /boot/loader/entries/*.conf;"
        f"until {said} | grep -q ^Finished; do sleep 2; done"
    )
    by_itself = [line for line in shell(said).splitlines() if line.startswith("changed: ")]
    return {
        "before": before,
        "by itself": by_itself,
        "after": json.loads(shell("secex update --json"))["changed"],
    }


ADDED_ARGUMENT = "printk.time=1"
BROKEN = "rdinit=/nonexistent"  # the kernel panics


def wipe_headers(guest: Guest, where: Site) -> None:
    """Zero the LUKS2 headers on the disk: the second boot must not need them."""
    for name in ("boot", "root"):
        partition = f"/dev/disk/by-partlabel/{name}"
        done = guest.ssh(
            f"dd if=/dev/zero of={partition} bs=1M count=1 oflag=direct conv=notrunc,fsync", where.identity
        )
        if done.returncode:
            raise AssertionError(f"cannot wipe the header of {name}: {done.stderr}")


def spoil(guest: Guest, where: Site) -> None:
    """What a host reaches by making blocks of root unreadable: systemd goes on as if these were not there.

    That is, it takes the start for a first one, and the presets would enable what is disabled here.
    """
    units = "/etc/systemd/system"
    commands = [
        f"set -e; rm {units}/*getty*.service {units}/debug-shell.service {units}/sshd-*.socket",
        f"rm -r {units}/emergency.service.d {units}/rescue.service.d",
        "rm /usr/lib/systemd/system-generators/systemd-debug-generator",
        f"systemctl disable {PRESET}; echo uninitialized > /etc/machine-id",
    ]
    done = guest.ssh("; ".join(commands), where.identity)
    if done.returncode:
        raise AssertionError(f"cannot spoil what keeps logins out: {done.stderr}")


PRESET = "fstrim.timer"
TRACES = ("/mnt/firstboot-record", "/mnt/previous", "/mnt/sdboot.new", "/.secex-firstboot")


def leave_traces(guest: Guest, where: Site) -> None:
    """As a power cut right behind first boot's last switch does."""
    commands = [
        "set -e; mount /dev/disk/by-partlabel/se /mnt; rm /etc/luks/sealed",
        "mkdir /.secex-firstboot /mnt/previous",
        "touch /mnt/previous/record /mnt/firstboot-record /mnt/sdboot.new",
        "umount /mnt",
    ]
    done = guest.ssh("; ".join(commands), where.identity)
    if done.returncode:
        raise AssertionError(f"cannot leave traces: {done.stderr}")


def restart(where: Site, network: Network, disk: Disk, recording: Recording | None = None) -> dict[str, Any]:
    """The second boot, without the config disk, on a host that has only the customer's key.

    With a ``recording`` of the disk's writes: look for what a power cut has left, too, and at the end restart
    into a boot image that does not come up.
    """
    debian.say("second boot, on host customer-1")
    log = where.directory / "console-2.log"
    started = time.monotonic()
    others = []
    if recording:
        network = dataclasses.replace(network, capture=log.with_suffix(".pcap"))
        others = [owners_volume.disk(where.directory)]
        null_header.give_null_data(Path(others[0].path))
    cpus = _cpus(closely=recording is not None)
    with start_again(where, network, disk, others, log, cpus) as guest:
        firstboot.wait_for_system(guest, firstboot.BOOT_TIMEOUT)
        seconds = round(time.monotonic() - started, 1)
        report: dict[str, Any] = {
            "second boot": {
                "seconds to login": seconds,
                **dataclasses.asdict(firstboot.look(guest, where.identity)),
            }
        }
        report["integrity errors, second boot"] = integrity_errors(guest, where)
        if recording:
            report["traces"] = look_for_traces(guest, where)
            report["status"] = look_at_status(guest, where)
            report["network in the initramfs"] = look_for_network(guest, where)
            begin = recording.log.stat().st_size
            report["broken update"] = update(guest, where, BROKEN)
            report["broken update"]["log"] = begin, recording.log.stat().st_size
            guest.ssh("systemctl --no-block reboot", where.identity)
            report["broken update"]["ends in"] = guest.wait(firstboot.BOOT_TIMEOUT)
        else:
            report["second power-off"] = firstboot.power_off(guest, where.identity)
    return report


def _cpus(*, closely: bool) -> int:
    """The tests have another guest beside this one, and a machine of two processors."""
    return 1 if closely else 2


def start_again(
    where: Site, network: Network | None, disk: Disk, others: Sequence[Disk], log: Path, cpus: int
) -> Guest:
    """On the customer's host."""
    return firstboot.start(
        where,
        network,
        host_keys=[where.hosts["customer-1"].key],
        log=log,
        with_config=False,
        cpus=cpus,
        disk=disk,
        others=others,
        on_line=show,
    )


def fall_back(where: Site, network: Network, disk: Disk) -> dict[str, Any]:
    """The third boot, after power off and on: what it says of the one before it; then a way to log in on the
    console is looked for.
    """
    debian.say("third boot, after one that did not come up")
    others = [owners_volume.disk(where.directory)]
    log, cpus = where.directory / "console-3.log", _cpus(closely=True)
    with start_again(where, network, disk, others, log, cpus) as guest:
        firstboot.wait_for_system(guest, firstboot.BOOT_TIMEOUT)

        def shell(command: str) -> str:
            return guest.ssh(command, where.identity, timeout=firstboot.BOOT_TIMEOUT).stdout.strip()

        shell("systemctl start secex-firstboot-image.service")
        found: dict[str, Any] = {
            "command_line": shell("cat /proc/cmdline"),
            "images": json.loads(shell("secex status --json"))["boot_images"],
            "motd": shell("cat /run/motd.d/*"),
            "up to date": shell("secex update"),
        }
        return {
            "third boot": found,
            "owner's volume": owners_volume.look(guest, where.identity),  # which spoils it
            "console": look_for_logins(guest, where),
        }


def look_for_traces(guest: Guest, where: Site) -> str:
    """Those of TRACES that are there once the service that removes them has ended."""
    look = f"ls -d /etc/luks/sealed {' '.join(TRACES)} 2> /dev/null"
    return guest.ssh(
        "systemctl start secex-firstboot-tidy; "
        f"mount -o ro /dev/disk/by-partlabel/se /mnt && {look}; umount /mnt",
        where.identity,
    ).stdout.strip()


def look_at_status(guest: Guest, where: Site) -> dict[str, Any]:
    """What ``secex status`` prints, for programs and for people, and how a root that is none ends it."""
    page = guest.ssh("secex status", where.identity)
    programs = guest.ssh("secex status --json", where.identity)
    return {
        "json": json.loads(programs.stdout) if programs.returncode == 0 else programs.stderr,
        "page": page.stdout.splitlines(),
        "hosts": {name: ultravisor.host_key_hash(host.key).hex() for name, host in where.hosts.items()},
        "without a first boot": guest.ssh("secex status --root /proc", where.identity).returncode,
    }


def look_at_growth(guest: Guest, where: Site) -> dict[str, str]:
    """Of the service that grows root, once it has nothing left to do."""

    def shell(command: str) -> str:
        return guest.ssh(command, where.identity, timeout=firstboot.BOOT_TIMEOUT).stdout.strip()

    unit = "secex-firstboot-grow.service"
    shell(f"systemctl start {unit}; while systemctl is-active --quiet {unit}; do sleep 1; done")
    return {
        "state": shell(f"systemctl show --property=ActiveState --value {unit}"),
        "journal": shell(f"journalctl --boot --output=cat --unit={unit}"),
        "noted": shell("cat /var/lib/secex-firstboot/grown"),
        "file system": shell("findmnt --noheadings --bytes --output SIZE /"),
        "volume": shell("blockdev --getsize64 /dev/mapper/root"),
    }


def look_for_network(guest: Guest, where: Site) -> str:
    """The units for it that were started before the switch to the root file system.

    network.target alone says nothing: it is reached without anything that would bring a network up.
    """
    started = "^(Starting|Started|Listening on) .*[Nn]etwork|^Reached target .*network-online"
    return guest.ssh(
        f"journalctl --boot --output=cat | sed '/Switching root/q' | grep -E '{started}'", where.identity
    ).stdout.strip()


def look_for_logins(guest: Guest, where: Site) -> dict[str, Any]:
    """The console's units, and how the guest ends when it is told to go into emergency mode."""

    def shell(command: str) -> str:
        return guest.ssh(command, where.identity).stdout.strip()

    units = [
        *("serial-getty@ttysclp0", "getty@tty1", "console-getty", "debug-shell", "autovt@tty2"),
        *("sshd-vsock.socket", "sshd-unix-local.socket"),
    ]
    found = {
        "local sshd": shell("ls /run/ssh-unix-local"),
        "host keys": shell("ls /etc/ssh/ssh_host_*"),
        "enabled by presets": shell(f"systemctl is-enabled {PRESET}"),
        "units": {unit: shell(f"systemctl show --property=LoadState --value {unit}") for unit in units},
        "running": shell("systemctl list-units --no-legend --plain '*getty@*.service'"),
        "sysrq": shell("cat /proc/sys/kernel/sysrq"),
        "console log level": shell("cut -f 1 /proc/sys/kernel/printk"),
        "prompt": console.LOGIN in guest.console,
    }
    guest.ssh("sync; systemctl --no-block isolate emergency.target", where.identity)
    guest.wait_for(console.NO_SHELL, firstboot.BOOT_TIMEOUT)
    return found | {"emergency mode ends in": guest.wait(firstboot.BOOT_TIMEOUT)}


def integrity_errors(guest: Guest, where: Site) -> list[str]:
    """What the kernel has said of sectors that it could not read, since the start of the initramfs."""
    kernel_log = guest.ssh("journalctl --dmesg --boot --output=cat", where.identity).stdout
    assert "Linux version" in kernel_log
    return firstboot.integrity_errors(f"{kernel_log}\n{guest.console}")


def prove(where: Site, disk: Path, report: dict[str, Any]) -> dict[str, bool]:
    """What must be true at the end, each line looked at in the guest or on the ``disk`` it left."""
    with tempfile.TemporaryDirectory(dir=where.directory) as work:
        sdboot = firstboot.read_sdboot(disk, Path(work))
        opens = {name: opens_with(sdboot, where, name) for name in where.hosts}
        ramdisk = ultravisor.unpack(sdboot, where.hosts["customer-1"].key).ramdisk
        added = firstboot.overlay_files(ramdisk, debian.initramfs(where.tree), Path(work))
        publishers = adoption(where, Path(work))
        plain = {file: remains.of_image(file, where.image, Path(work)) for file in (where.image, disk)}
    systems = [System(**without(report[boot], "seconds to login")) for boot in ("first boot", "second boot")]
    after = ["se", "boot", "root"]
    return publishers | {
        "sdboot opens with customer-1": opens["customer-1"],
        "sdboot opens with customer-2": opens["customer-2"],
        "sdboot does not open with universal": not opens["universal"],
        "sdboot holds keys and detached headers, and no GPG key": holds_keys_only(added),
        "disk layout is se, boot, root": all(firstboot.partitions(s.lsblk) == after for s in systems),
        "boot and root are dm-crypt on dm-integrity": all(
            firstboot.chain(s.lsblk, "root") == ["root", "root_dif (crypt)", "root (crypt)", "/"]
            and firstboot.chain(s.lsblk, "boot") == ["boot", "boot_dif (crypt)", "boot (crypt)", "/boot"]
            for s in systems
        ),
        "user, file and unit of the config are there": all(
            (s.user, s.file, s.unit) == ("core", "640\nfrom the user", "active\nit runs\nmore")
            for s in systems
        ),
        "no ignition.firstboot and no root hash on the second command line": not re.search(
            "ignition.firstboot|roothash", systems[1].command_line
        ),
        "the second boot used the detached headers": systems[1].headers
        == {name: f"header=/etc/luks/{name}" for name in ("boot", "root")},
        "the guest powers off in order": all(
            end == "guest-shutdown" for name, end in report.items() if name.endswith("power-off")
        ),
        "root has grown": all(s.root_size > where.root_size for s in systems),
        "nothing of the image is left on the disk, outside of se": len(plain[where.image]) > 1000
        and plain[disk] == [],
        "no integrity error in the kernel's log": not report["integrity errors, first boot"]
        and not report["integrity errors, second boot"],
    }


def adoption(where: Site, work: Path) -> dict[str, bool]:
    """What its publisher could still do with the image that first boot has started from."""
    assert where.published
    theirs, ours = (firstboot.read_sdboot(file, work) for file in (where.published, where.image))
    keys = [
        se_ready.config_key_of(ultravisor.unpack(sdboot, where.hosts[host].key).ramdisk)
        for sdboot, host in ((theirs, "universal"), (ours, where.first_host))
    ]
    raw = raw_disk.convert(where.image, work / "adopted.raw")
    with raw.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as content:
        probes = [theirs[at : at + 64] for at in range(len(theirs) // 2, len(theirs) - 64, MIB)]
        left = [probe for probe in probes if content.find(probe) >= 0]
    raw.unlink()
    return {
        "universal opens the published image, and not the adopted one": opens_with(theirs, where, "universal")
        and not opens_with(ours, where, "universal"),
        "the owner's config key opens the config, the publisher's does not": [
            se_ready.opens(key, where.config_disk) for key in keys
        ]
        == [False, True],
        "nothing that the publisher has encrypted is left in the adopted image": not left,
    }


def opens_with(sdboot: bytes, where: Site, host: str) -> bool:
    try:
        ultravisor.unpack(sdboot, where.hosts[host].key)
    except ultravisor.Refused:
        return False
    return True


def holds_keys_only(added: dict[str, bytes]) -> bool:
    names = {"/etc/crypttab", "/etc/luks/boot", "/etc/luks/root"}
    others = {name for name in added if not name.startswith(f"{paths.NO_LOGIN_UNITS}/")}
    return others == names and not any(b"PGP PRIVATE KEY" in content for content in added.values())


def without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def show(line: str) -> None:
    if _SHOWN.search(line):
        print(line, flush=True)


def print_report(report: dict[str, Any]) -> None:
    print("\nstep            seconds")
    for step in report["agent"]["steps"]:
        print(f"{step['name']:<14}  {step['seconds']:>7.1f}")
    for boot in ("first boot", "second boot"):
        print(f"{boot:<14}  {report[boot]['seconds to login']:>7.1f}  (power-on to login)")
    agent = report["agent"]
    print(f"\npeak memory: {agent['peak_memory_mib']} of {agent['total_memory_mib']} MiB\n")
    for line, holds in report["proof"].items():
        print(f"{'yes' if holds else 'NO '}  {line}")


if __name__ == "__main__":
    sys.exit(main())
