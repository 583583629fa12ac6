"""A system made by ostree: its first boot, and its life by ostree(1) alone; the power fails in both."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import subprocess
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from harness import (
    console,
    debian,
    firstboot,
    once,
    powercut,
    raw_disk,
    recorded,
    sample,
    se_ready,
    secrets_scan,
)
from harness.firstboot import Owner, Served
from harness.guest import Disk, Guest, Network
from harness.life import LONG, Life, newest_is_up
from harness.powercut import Loss, Recording
from harness.recorded import Manifest, Marks, Span
from harness.se_ready import Recipe

from secex_firstboot.contract import paths
from secex_firstboot.contract.parameters import GENERATION
from secex_firstboot.contract.partitions import VOLUMES

# With each deployment systemd would bring caches up to date that have not changed, for minutes of emulation.
OPTIONS = f"{se_ready.OPTIONS} systemd.condition_needs_update=0"
RECIPE = Recipe(ref=debian.REF, options=OPTIONS, boot_free=128, headroom=128, se_size=384)
DISK, DISK_SIZE = "disk.raw", 2560  # MiB
USER_DATA = "/var/lib/user/data"
ARGUMENT, OURS, PANICS = "secex-test.by=ostree", "secex-test.by=secex", "rdinit=/nonexistent"
KEYS = [f"/etc/luks/{name}" for name in VOLUMES]
IBMS_TOOL = Path(__file__).with_name("inside") / "genprotimg.py"
SEED = int(os.environ["POWER_CUT_SEED"])  # see conftest.py


def configure(owner: Owner) -> Served:
    """A user with a home below /var/home, and a file in /var, beside what is in every config."""
    served = firstboot.plain_config(owner)
    config: dict[str, Any] = copy.deepcopy(served.config)
    for user in config["passwd"]["users"]:
        if user["name"] == "core":
            user["homeDir"] = "/var/home/core"
    config["storage"]["files"].append({"path": USER_DATA, "contents": {"source": "data:,data"}})
    return Served(config, served.http)


@dataclass(frozen=True)
class Written:
    """What was written to the disk in one part of its life; ``spans``: the events of each step of it."""

    recording: Recording
    spans: dict[str, Span]

    def cut(self, step: str, loss: Loss, disk: Path, random: Random) -> None:
        """The disk that a cut at a moment of this step leaves."""
        begin, end = self.spans[step]
        events = self.recording.events()[: random.randint(begin, end)]
        self.recording.cut(events, disk, loss=loss, seed=random.getrandbits(32))


@dataclass(frozen=True)
class Lived:
    """The life, and how its first boot and its first upgrade were written to the disk."""

    life: Life
    first_boot: Written
    upgrade: Written


@pytest.fixture(scope="session")
def lived(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Lived:
    at_length = pytestconfig.getoption("--long")
    return once.made(tmp_path_factory, "ostree", lambda directory: live(directory, at_length=at_length))


@pytest.fixture(scope="session")
def life(lived: Lived) -> Life:
    return lived.life


def live(directory: Path, *, at_length: bool) -> Lived:
    disk = directory / DISK
    with firstboot.make_site(directory, RECIPE, configure) as (where, network):
        raw_disk.make(where.image, disk, DISK_SIZE << 20)
        life = Life(where, network, system=Disk(disk, "system", format="raw"))
        first = be_born(life, disk)
    life.network = Network()
    return Lived(life, first, upgrade(life, disk, at_length=at_length))


def going_on(life: Life, disk: Path) -> Life:
    """From another state of the disk, with the consoles' logs beside that."""
    return dataclasses.replace(life, system=Disk(disk, "system", format="raw"), logs=disk.parent)


def kept(recording: Recording, name: str) -> Recording:
    """Under other names: the disk's next one has these."""
    files = [
        file.rename(file.with_name(f"{name}{file.suffix}")) for file in (recording.before, recording.log)
    ]
    return Recording(*files)


def be_born(life: Life, disk: Path) -> Written:
    where, marks = life.where, Marks()
    with powercut.recorded(disk) as (served, recording):
        on_line = recorded.marking(recording, marks)
        with start_first(life, served, where.directory / "first.log", on_line) as guest:
            firstboot.wait_for_system(guest, firstboot.FIRST_BOOT_TIMEOUT)
            life.seen["first boot"] = seen_of(life, guest)
            life.seen["keys"] = {
                name: b64decode(life.shell(guest, f"base64 /sysroot{name}")) for name in KEYS
            }
            life.power_off(guest)
    spans = recorded.spans_of(recording, marks)
    return Written(kept(recording, "first-boot"), spans)


def start_first(
    life: Life,
    disk: Disk,
    log: Path,
    on_line: Callable[[str], None] | None = None,
    network: Network | None = None,
) -> Guest:
    keys = [life.where.hosts[name].key for name in ("universal", "customer-1")]
    network = dataclasses.replace(network or life.network, capture=log.with_suffix(".pcap"))
    return firstboot.start(life.where, network, host_keys=keys, log=log, disk=disk, on_line=on_line)


def seen_of(life: Life, guest: Guest) -> dict[str, Any]:
    """What the config wanted, and every file of /etc."""
    return {
        "system": firstboot.look(guest, life.where.identity),
        "user's": life.shell(guest, f"cat {USER_DATA}; echo; stat -c %U ~core; readlink -f ~core"),
        "root": life.shell(guest, "findmnt -no SOURCE,FSTYPE /").split(),
        "etc": firstboot.manifest_in(guest, life.where.identity, "/etc"),
    }


def upgrade(life: Life, disk: Path, *, at_length: bool) -> Written:
    """By ostree admin upgrade, and a restart; how it was written to the disk."""
    seen, shell = life.seen, life.shell
    news = Disk(repository_disk(life.where.directory), "news", format="raw", read_only=True)
    with (
        powercut.recorded(disk) as (served, recording),
        life.start(others=[news], system=served) as guest,
    ):
        seen["second boot"] = life.up(guest)
        seen["later"] = seen_of(life, guest)
        if at_length:
            seen["usr"] = firstboot.manifest_in(guest, life.where.identity, "/usr")
        # Ignition wanted it; libostree would have semodule(8) refresh a policy that is none, by bwrap(1).
        shell(guest, "rm /etc/selinux/config")
        shell(guest, "mount -o ro /dev/disk/by-id/virtio-news /mnt")
        sizes = [recording.log.stat().st_size]
        shell(guest, f"ostree pull-local /mnt {debian.REF} && ostree admin upgrade")
        sizes.append(recording.log.stat().st_size)
        guest.ssh("systemctl --no-block reboot", life.where.identity)
        guest.wait_for(console.LINUX, LONG)
        sizes.append(recording.log.stat().st_size)
        seen["upgraded"] = life.up(guest) | more(life, guest)
        seen["update"] = shell(guest, "secex update")
        life.power_off(guest)
    events = recording.events()
    begin, staged, end = (recording.event_at(events, size) for size in sizes)
    return Written(kept(recording, "upgrade"), {"upgrade": (begin, staged), "restart": (staged, end)})


def more(life: Life, guest: Guest) -> dict[str, Any]:
    return {
        "release": life.shell(guest, "cat /usr/lib/release || echo none"),
        "arguments": life.shell(guest, "cat /proc/cmdline").split(),
    }


def repository_disk(directory: Path) -> Path:
    """A disk with a repository, in which the branch has gone on: another file, and another initramfs."""
    disk = directory / "news.raw"
    with disk.open("wb") as stream:
        stream.truncate(1 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-d", debian.newer_repository(), disk], check=True)
    return disk


@pytest.mark.early
def test_it_is_provisioned_and_starts_on_the_customers_host(life: Life) -> None:
    first, second = life.seen["first boot"]["system"], life.seen["later"]["system"]
    assert (first.file, first.unit, first.user) == (second.file, second.unit, second.user)
    assert "ostree=" in second.command_line
    assert life.seen["later"]["user's"].splitlines() == ["data", "core", "/var/home/core"]
    assert (life.seen["later"]["root"] == ["composefs", "overlay"]) == debian.COMPOSEFS


def checked_out(directory: Path, *options: str) -> Path:
    """What was committed, or a part of it."""
    tree = directory / "tree"
    repo = f"--repo={debian.repository()}"
    subprocess.run(["ostree", repo, "checkout", *options, debian.REF, tree], check=True)
    return tree


def test_every_file_of_etc_is_as_it_was_committed_or_ignitions_or_ours(life: Life, tmp_path: Path) -> None:
    # As libostree copies it: no links to files of the repository.
    etc = checked_out(tmp_path, "--force-copy", "--subpath=/usr/etc")
    built, found = below_etc(firstboot.manifest_of(etc)), below_etc(life.seen["later"]["etc"])
    differences = firstboot.differences(built, found)
    assert set(differences["unexplained"]) == MADE_AT_FIRST_START
    assert "./etc/user-file" in differences["Ignition"]
    assert "./etc/crypttab" in differences["agent"]


@pytest.mark.long
def test_every_file_of_the_deployment_is_as_it_was_committed(life: Life, tmp_path: Path) -> None:
    built = firstboot.manifest_of(checked_out(tmp_path) / "usr")
    assert one_by_one(built) == one_by_one(life.seen["usr"])


def one_by_one(files: Manifest) -> Manifest:
    """Without what is a link to what: all files of the same content in a checkout, by composefs none."""
    return {
        path: {key: value for key, value in entry.items() if key != "same file as"}
        for path, entry in files.items()
    }


HOST_KEY = "./etc/ssh/ssh_host_ed25519_key"
MADE_AT_FIRST_START = {"./etc/machine-id", HOST_KEY, f"{HOST_KEY}.pub"}


def below_etc(files: Manifest) -> Manifest:
    return {f"./etc{path[1:]}": entry for path, entry in files.items()}


def test_an_upgrade_by_ostree_alone_is_in_a_boot_image_with_a_fallback_and_comes_up(life: Life) -> None:
    before, after = life.seen["second boot"], life.seen["upgraded"]
    assert (before["running"], before["fallback"]) == (1, None)
    assert (after["running"], after["newest"]["state"]) == (2, "up")
    assert after["fallback"]["generation"] == 1
    assert after["release"] == "2"
    assert life.seen["update"] == "the boot image is up to date"


# --- what ostree(1) does then ------------------------------------------------------------------------------


def rolled_back(life: Life, guest: Guest, newest: int) -> None:
    life.shell(guest, "ostree admin set-default 1")
    found = life.restart(guest) | more(life, guest)
    assert found["release"] == "none"
    assert newest_is_up(found)
    assert found["running"] == newest + 1


def with_an_argument(life: Life, guest: Guest, newest: int) -> None:
    life.shell(guest, f"ostree admin deploy --karg-append={ARGUMENT} {debian.REF}")
    found = life.restart(guest) | more(life, guest)
    assert ARGUMENT in found["arguments"]
    assert found["release"] == "2"
    assert newest_is_up(found)
    assert found["running"] == newest + 1


def not_coming_up(life: Life, guest: Guest, newest: int) -> None:
    """The link that the last good image has on its command line is one that libostree has removed."""
    life.shell(guest, f"ostree admin deploy --karg-append={PANICS} {debian.REF}")
    guest.ssh("systemctl --no-block reboot", life.where.identity)
    guest.wait_for(rf"Kernel command line: .*{PANICS}", LONG)
    guest.wait_for("Kernel panic", LONG)
    guest.kill()
    with life.start() as again:
        found = life.up(again) | more(life, again)
        assert (found["newest"]["state"], found["newest"]["generation"]) == ("failed", newest + 1)
        assert (found["running"], found["release"]) == (newest, "2")
        life.shell(again, "ostree admin undeploy 0")
        after = json.loads(life.shell(again, "secex status --json"))["boot_images"]
        assert (after["newest"]["state"], after["newest"]["generation"]) == ("new", newest + 2)
        assert after["fallback"]["generation"] == newest
        life.power_off(again)


OTHER = "other /dev/disk/by-partlabel/se /etc/luks/other luks,headless=yes,nofail"  # nobody can open it


def by_ibms_tool_alone(life: Life, guest: Guest, newest: int) -> None:
    """It is found before ours, and the power fails before we have looked what was made."""
    put = "cat > /var/ibms/genprotimg; chmod +x /var/ibms/genprotimg"
    guest.ssh(f"mkdir /var/ibms; {put}", life.where.identity, stdin=IBMS_TOOL.read_text())
    life.shell(guest, f"mount --bind /var/ibms {paths.INSTEAD_OF_IBMS}")
    logins = "cd /run/systemd/system.control; find . -type f | sort | xargs sha256sum"
    no_logins = life.shell(guest, logins)
    assert no_logins
    life.shell(guest, f"systemctl stop secex-firstboot-update.path; echo '{OTHER}' >> /etc/crypttab")
    life.shell(guest, f"ostree admin deploy --karg-append={ARGUMENT} {debian.REF}")
    life.shell(guest, "systemctl stop ostree-finalize-staged.service; sync")
    assert "/sysroot/se/sdboot" in life.shell(guest, "cat /var/ibms/called")
    guest.kill()
    with life.start() as again:
        found = life.up(again) | more(life, again)
        assert {ARGUMENT, f"{GENERATION.name}={newest}"} <= {*found["arguments"]}
        assert life.shell(again, logins) == no_logins
        assert "Finished" in life.shell(again, "journalctl -b -o cat -u secex-firstboot-root.service")
        assert " skipped, " in life.shell(again, "journalctl -b -o cat -u systemd-cryptsetup@other.service")
        after = life.restart(again) | more(life, again)
        assert ARGUMENT in after["arguments"]
        assert newest_is_up(after)
        assert (after["running"], after["fallback"]["generation"]) == (newest + 1, newest)
        life.power_off(again)


WHAT = [
    pytest.param(each, marks=pytest.mark.sampled("after", 1))
    for each in (rolled_back, with_an_argument, not_coming_up, by_ibms_tool_alone)
]


@pytest.mark.parametrize("what", WHAT)
def test_what_ostree_alone_does_is_in_the_next_start(
    what: Callable[[Life, Guest, int], None], life: Life, tmp_path: Path
) -> None:
    disk = tmp_path / DISK
    subprocess.run(["cp", "--sparse=always", life.where.directory / DISK, disk], check=True)
    life = going_on(life, disk)
    with life.start() as guest:
        what(life, guest, life.up(guest)["newest"]["generation"])
        if guest.end is None:
            life.power_off(guest)
    disk.unlink()


# --- the power fails ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """At a moment that the seed draws, in a step; and what is lost of the writes that were not flushed."""

    step: str
    loss: Loss

    def __str__(self) -> str:
        return f"{self.step}, {self.loss} lost"


def cuts(*steps: str) -> list[Cut]:
    return [Cut(step, loss) for loss in Loss for step in steps]


@pytest.fixture
def random(request: pytest.FixtureRequest) -> Random:
    return Random(f"{SEED} {request.node.name}")  # noqa: S311


@pytest.fixture
def network(life: Life) -> Iterator[Network]:
    with firstboot.services(life.where.served) as network:
        yield network


@pytest.mark.parametrize("cut", sample.kind("cuts of a first boot", cuts("mount", "files", "seal")))
def test_after_a_cut_first_boot_ends_fully_provisioned(
    cut: Cut,
    lived: Lived,
    network: Network,
    random: Random,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("power cut", f"ostree, {cut}")
    life, disk = lived.life, tmp_path / "disk.raw"
    lived.first_boot.cut(cut.step, cut.loss, disk, random)
    system = Disk(disk, "system", format="raw")
    with start_first(life, system, tmp_path / "goes-on.log", network=network) as guest:
        firstboot.wait_for_system(guest, firstboot.FIRST_BOOT_TIMEOUT)
        found = seen_of(life, guest)
        guest.kill()
    uncut = life.seen["first boot"]
    assert (found["system"].file, found["system"].unit, found["user's"]) == (
        uncut["system"].file,
        uncut["system"].unit,
        uncut["user's"],
    )
    differences = firstboot.differences(below_etc(uncut["etc"]), below_etc(found["etc"]))
    assert set(differences["unexplained"]) == MADE_AT_FIRST_START
    disk.unlink()


@pytest.mark.parametrize("cut", sample.kind("cuts of an upgrade", cuts("upgrade", "restart"), 5))
def test_after_a_cut_of_an_upgrade_a_whole_image_finds_its_deployment(
    cut: Cut, lived: Lived, random: Random, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The one before; or, if libostree's own zipl was the last, the new one."""
    record_property("power cut", f"ostree, {cut}")
    disk = tmp_path / "disk.raw"
    lived.upgrade.cut(cut.step, cut.loss, disk, random)
    life = going_on(lived.life, disk)
    with life.start() as guest:
        started = re.search(rf"{GENERATION.name}=(\d+)", guest.wait_for(console.COMMAND_LINE, LONG)[1])
        assert started
        assert started[1] in (("1",) if cut.step == "upgrade" else ("1", "2"))
        found = guest.wait_for(f"Finished .*ostree-prepare-root|{console.GAVE_UP}", LONG)
        assert found[0].startswith("Finished")
        guest.kill()
    disk.unlink()


@pytest.mark.long
def test_after_a_cut_an_upgrade_ends_in_the_same_system(
    lived: Lived, random: Random, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    cut = Cut("restart", Loss.SOME)
    record_property("power cut", f"ostree, {cut}")
    disk = tmp_path / "disk.raw"
    lived.upgrade.cut(cut.step, cut.loss, disk, random)
    life = going_on(lived.life, disk)
    news = Disk(life.where.directory / "news.raw", "news", format="raw", read_only=True)
    with life.start(others=[news]) as guest:
        life.up(guest)
        life.shell(guest, "rm -f /etc/selinux/config; mount -o ro /dev/disk/by-id/virtio-news /mnt")
        life.shell(guest, f"secex kargs --append {OURS}; ostree pull-local /mnt {debian.REF} && ostree fsck")
        life.shell(guest, "ostree admin upgrade")
        found = life.restart(guest) | more(life, guest)
        assert OURS in found["arguments"]
        assert (found["newest"]["state"], found["running"]) == ("up", found["newest"]["generation"])
        assert found["release"] == "2"
        life.power_off(guest)
    disk.unlink()


def test_no_secret_is_let_out(lived: Lived, tmp_path: Path) -> None:
    """Not to the disk, whose every write of first boot and upgrade was noted; not to the console or the
    network."""
    scanner = secrets_scan.Scanner(secrets_scan.of_volumes(lived.life.seen["keys"], tmp_path))
    assert scanner.found(b"".join(lived.life.seen["keys"].values()))  # they would be found
    directory = lived.life.where.directory
    seen = [*directory.glob("*.log"), *directory.glob("*.pcap"), directory / DISK]
    assert lived.upgrade.recording.log in seen
    assert directory / "first.pcap" in seen
    assert [(file.name, found) for file in seen if (found := scanner.found_in_file(file))] == []
