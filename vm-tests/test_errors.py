"""What fails in mid-course is named, and the power goes off; without the cause, the next start goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from harness import firstboot, raw_disk, site, started
from harness.firstboot import Owner, Served, Site
from harness.guest import SERVICES_ADDRESS, Disk, Guest, Network, Saved
from harness.se_image import MIB, SMALL
from harness.started import Started

from secex_firstboot.storage import volume
from secex_firstboot.storage.cryptsetup import DATA_OFFSET
from secex_firstboot.storage.integrity import Layout

RECIPE = replace(SMALL, options=f"{SMALL.options} secex-test.fail")
PARTS = (*(SMALL.root_content or ()), "./boot")
TIMEOUT = 900.0
SECTOR = 512
HOSTS = ("universal", "customer-1")
NOBODY_LISTENS = Network({80: 9})  # discard(9) on the loopback


def config(owner: Owner) -> Served:
    """One document from a server that the guest does not wait for longer than 20 seconds."""
    served = firstboot.files_config(owner)
    document = site.host_key_file(owner.hosts["customer-2"], url=f"http://{SERVICES_ADDRESS}/customer-2.crt")
    files = served.config["storage"]["files"]
    files[:] = [document if file["path"] == document["path"] else file for file in files]
    served.config["ignition"]["timeouts"] = {"httpTotal": 20}
    return replace(served, http={"/customer-2.crt": owner.hosts["customer-2"].document.read_bytes()})


@dataclass
class Machine:
    """One disk, which all starts share, and what it is attached to."""

    where: Site
    network: Network
    kept: list[Started] = field(default_factory=list)

    @property
    def disk(self) -> Path:
        return self.where.directory / "disk.raw"

    def start(self, trouble: Trouble, log: Path) -> Guest:
        """Without firmware where another guest has started from the same sdboot, and kept the moment."""
        saved = None
        if not trouble.memory_mib:
            starting = self._guest(Trouble("none"), log)
            saved = started.find_or_keep(self.disk, self.kept, starting, self.where.directory)
        return self._guest(trouble, log, saved)

    def _guest(self, trouble: Trouble, log: Path, saved: Saved | None = None) -> Guest:
        note = self.where.directory / "note"
        note.write_bytes(bytes(SECTOR))
        bad = trouble.bad_sector
        path = f"blkdebug:{self._rules(*bad(self.disk))}:{self.disk}" if bad else self.disk
        return Guest(
            disks=[
                Disk(path, "system", format="raw"),
                Disk(self.where.config_disk, "ignition_crypted", format="raw", read_only=True),
                Disk(note, trouble.serial, format="raw"),
            ],
            host_keys=[self.where.hosts[name].key for name in HOSTS],
            network=trouble.network or self.network,
            console_log=log,
            memory_mib=trouble.memory_mib or 1024,
            saved=saved,
        )

    def _rules(self, kind: str, sector: int) -> Path:
        """For QEMU's blkdebug: each read or write of this sector fails with EIO."""
        rules = self.where.directory / "rules"
        rules.write_text(
            f'[inject-error]\nevent = "none"\niotype = "{kind}"\nsector = "{sector}"\nerrno = "5"\n'
        )
        return rules


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    directory = tmp_path_factory.mktemp("errors")
    with firstboot.make_site(directory, RECIPE, configure=config) as (where, network):
        made = Machine(where, network)
        raw_disk.make(where.image, made.disk, 1 << 30)
        yield made


def written_on_boot(disk: Path) -> tuple[str, int]:
    """In the middle of what the encrypted volume has as data."""
    layout = Layout.planned(sector_size=4096, journal_bytes=volume.JOURNAL_SIZE, data_offset=DATA_OFFSET)
    address = raw_disk.partition_start(disk, "boot") + layout.data_address(32 * MIB)
    return "write", address // SECTOR


def read_on_root(disk: Path) -> tuple[str, int]:
    """In the middle of the source."""
    return "read", (raw_disk.partition_start(disk, "root") + 40 * MIB) // SECTOR


@contextmanager
def with_se_full(disk: Path) -> Iterator[None]:
    """A file takes all of ``se`` but 20 MiB."""
    filler = disk.with_name("filler")
    free = int(_debugfs(disk, "stats -h").split("Free blocks:")[1].split()[0]) * 4096
    filler.write_bytes(b"x" * (free - 20 * MIB))  # debugfs(8) leaves out zeros
    _debugfs(disk, f"write {filler} filler")
    try:
        yield
    finally:
        _debugfs(disk, "rm filler")


def _debugfs(disk: Path, command: str) -> str:
    """What was cut off from ``se`` without unmounting is taken over from the journal first."""
    raw_disk.replay_journal(disk, "se")
    return raw_disk.debugfs(disk, "se", command, write=True)


@dataclass(frozen=True)
class Trouble:
    name: str
    says: str = ""
    """A regular expression for the reason that the guest gives."""
    serial: str = "nothing"
    network: Network | None = None
    memory_mib: int | None = None
    bad_sector: Callable[[Path], tuple[str, int]] | None = None
    surroundings: Callable[[Path], AbstractContextManager[None]] = lambda disk: nullcontext()


# In the order in which a first boot meets them: each start gets as far as the next.
TROUBLES = [
    Trouble(
        "the server is gone",
        r"could not be fetched from 10\.0\.2\.100 in \d+ attempts",
        network=NOBODY_LISTENS,
    ),
    Trouble("too little memory", "the guest has too little memory, the kernel ended", memory_mib=256),
    Trouble(
        "/run is full",
        # Whichever write comes first: one of ours, or libcryptsetup's, which does not say why it failed.
        r"personalise failed: No space left on device: give|cannot format \S+: Device wipe error",
        serial="full-personalise",
    ),
    Trouble(
        "boot cannot be written",
        r"cannot write byte \d+ while copying: Input/output",
        bad_sector=written_on_boot,
    ),
    Trouble(
        "root cannot be read", r"cannot read byte \d+ while copying: Input/output", bad_sector=read_on_root
    ),
    Trouble("se is full", "cannot be made: No space left on device: make sure", surroundings=with_se_full),
    Trouble("zipl fails", r"zipl failed with exit code 1 \(the test lets zipl fail\)", serial="no-zipl-seal"),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_trouble_is_named_and_the_power_goes_off(trouble: Trouble, machine: Machine, tmp_path: Path) -> None:
    with trouble.surroundings(machine.disk), machine.start(trouble, tmp_path / "console.log") as guest:
        guest.wait_for(f"why: +.*(?:{trouble.says})", TIMEOUT)
        assert guest.wait(TIMEOUT) == "guest-shutdown"


def test_without_trouble_the_next_start_ends_fully_provisioned(machine: Machine, tmp_path: Path) -> None:
    built = firstboot.manifest_of(machine.where.tree, PARTS)
    with machine.start(Trouble("none"), tmp_path / "console.log") as guest:
        found = firstboot.wait_for_manifest(guest)
        guest.kill()
    assert firstboot.differences(built, found, only=PARTS)["unexplained"] == []
    assert found["./etc/user-file"]["size"] == len("from the user\n")
