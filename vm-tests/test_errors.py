"""What fails in mid-course is named, and leaves no secret where a shell opens; without the cause, the next
start goes on, and what a user's config may say about host keys holds all the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import console, firstboot, pki, raw_disk, sample, site, started, ultravisor
from harness.firstboot import Owner, Served, Site
from harness.guest import SERVICES_ADDRESS, Disk, Guest, Network, Saved
from harness.se_ready import HOST_KEY, MIB, ONE_MACHINES, SMALL
from harness.started import Started

from secex_firstboot.agent.steps import STEPS
from secex_firstboot.basic.files import sha256
from secex_firstboot.storage import encrypted
from secex_firstboot.storage.cryptsetup import DATA_OFFSET
from secex_firstboot.storage.integrity import Layout

# Also the one whose boot fills its partition, as that of CoreOS does; whose root has blocks smaller than
# dm-integrity's usual sectors; and that would be the same machine in each guest, but for its option.
RECIPE = replace(
    SMALL,
    boot_room=0,
    root_block_size=1024,
    root_added=ONE_MACHINES,
    options=f"{SMALL.options} secex.emergency=shell secex.identity=replace secex-test.fail",
)
ROOT = SMALL.root_content or ()
TIMEOUT = 900.0
SECTOR = 512
HOSTS = ("universal", "customer-1")
URL = f"http://{SERVICES_ADDRESS}"
SECURE_URL = f"https://{SERVICES_ADDRESS}"
CRL_URLS = {name: [f"{URL}/{name}.crl"] for name in ("root", "intermediate", "signing-key")}


def pointer_config(owner: Owner, tls: site.Tls) -> Served:
    """As OpenShift does it: a small config that names the large one, and whom to trust for it.

    The CRLs are where the certificates say; nothing is waited for longer than 20 seconds.
    """
    hosts = owner.hosts
    proof = {name: owner.chain.certificates()[name] for name in ("intermediate.crt", "signing-key.crt")}
    config: dict[str, Any] = {
        "ignition": {"version": "3.3.0", "timeouts": {"httpTotal": 20}},
        "kernelArguments": {"shouldExist": ["audit=0"], "shouldNotExist": ["rd.neednet=1"]},
        "storage": {
            "files": [
                site.host_key_file(hosts["customer-1"]),
                site.host_key_file(hosts["customer-2"], url=f"{URL}/customer-2.crt"),
                *site.certificate_files(proof),
            ]
        },
    }
    pointer = {
        "ignition": {
            "version": "3.3.0",
            "config": {"merge": [{"source": f"{SECURE_URL}/config.ign"}]},
            "security": {"tls": {"certificateAuthorities": [{"source": site.data_url(tls.authority)}]}},
        },
        # vm-tests/dracut/leftovers.py looks for its words.
        "storage": {
            "files": [{"path": "/etc/user-file", "contents": {"source": "data:,from%20the%20user%0A"}}]
        },
    }
    crls = {f"/{name}": crl for name, crl in owner.chain.crls().items()}
    document = hosts["customer-2"].document.read_bytes()
    return Served(
        pointer,
        http=crls | {"/customer-2.crt": document},
        https={"/config.ign": json.dumps(config).encode()},
        tls=tls,
    )


@dataclass
class Machine:
    """One disk, which all starts share, and what it is attached to."""

    where: Site
    untouched: str
    """A digest of the disk as it was made."""
    kept: list[Started] = field(default_factory=list)

    @property
    def disk(self) -> Path:
        return self.where.directory / "disk.raw"

    def consoles(self) -> str:
        """Of all starts."""
        return "".join(path.read_text(errors="replace") for path in self.where.directory.glob("*.log"))

    @contextmanager
    def start(self, trouble: Trouble) -> Iterator[Guest]:
        """Without firmware where another guest has started first boot from the same sdboot, and was kept."""
        log = self.where.directory / f"{trouble}.log".replace("/", "")
        with trouble.surroundings(self.disk), firstboot.services(trouble.serves(self.where)) as network:
            network = trouble.network(network)
            saved = None
            if trouble.step and not trouble.memory_mib:
                starting = self._guest(Trouble("none"), network, log)
                saved = started.find_or_keep(self.disk, self.kept, starting, self.where.directory)
            with self._guest(trouble, network, log, saved) as guest:
                yield guest

    def _guest(self, trouble: Trouble, network: Network, log: Path, saved: Saved | None = None) -> Guest:
        note = self.where.directory / "note"
        hashes = [ultravisor.host_key_hash(self.where.hosts[name].key).hex() for name in trouble.keys_shown]
        note.write_bytes(" ".join([trouble.note, *hashes]).encode().ljust(SECTOR, b"\0"))
        bad = trouble.bad_sector
        path = f"blkdebug:{self._rules(*bad(self.disk))}:{self.disk}" if bad else self.disk
        return Guest(
            disks=[
                Disk(path, "system", format="raw"),
                Disk(self.where.config_disk, "ignition_crypted", format="raw", read_only=True),
                Disk(note, "trouble", format="raw", read_only=True),
            ],
            host_keys=[self.where.hosts[name].key for name in HOSTS],
            network=network,
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
    chain = pki.make_chain(
        datetime.now(UTC),
        intermediate={"crl_urls": CRL_URLS["root"]},
        signing_key={"crl_urls": CRL_URLS["intermediate"]},
    )
    tls = site.make_tls(SERVICES_ADDRESS)
    directory = tmp_path_factory.mktemp("errors")
    document = {"crl_urls": CRL_URLS["signing-key"]}
    with firstboot.make_site(directory, RECIPE, partial(pointer_config, tls=tls), chain, document) as (
        where,
        _,
    ):
        raw_disk.make(where.image, directory / "disk.raw", 1 << 30)
        yield Machine(where, sha256(directory / "disk.raw"))


def as_configured(where: Site) -> Served:
    return where.served


def with_a_document_revoked(where: Site) -> Served:
    """One among good ones."""
    crl = where.chain.signing_key.crl(revoked=[where.hosts["customer-2"].certificate])
    return replace(where.served, http=where.served.http | {"/signing-key.crl": crl})


def server_gone(network: Network) -> Network:
    """Nobody listens any more for http: discard(9) on the loopback."""
    return replace(network, services={**network.services, 80: 9})


def written_on_boot(disk: Path) -> tuple[str, int]:
    """In the middle of what the encrypted volume has as data."""
    layout = Layout.planned(sector_size=4096, journal_bytes=encrypted.JOURNAL_SIZE, data_offset=DATA_OFFSET)
    address = raw_disk.partition_start(disk, "boot") + layout.data_address(32 * MIB)
    return "write", address // SECTOR


def read_on_root(disk: Path) -> tuple[str, int]:
    """In the middle of the source."""
    return "read", (raw_disk.partition_start(disk, "root") + 64 * MIB) // SECTOR


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
    step: str = ""
    """The step that it meets; none if there is no trouble."""
    note: str = "nothing"
    """For vm-tests/dracut/failing.py."""
    keys_shown: tuple[str, ...] = HOSTS
    """Whose keys the kernel says that this machine has."""
    serves: Callable[[Site], Served] = as_configured
    network: Callable[[Network], Network] = lambda network: network
    memory_mib: int | None = None
    bad_sector: Callable[[Path], tuple[str, int]] | None = None
    surroundings: Callable[[Path], AbstractContextManager[None]] = lambda disk: nullcontext()

    def __str__(self) -> str:
        return f"{self.step}: {self.name}"


def lets_fail(step: str) -> Trouble:
    note = f"fail-{step.replace(' ', '-')}"
    return Trouble("the test lets it fail", f"the test lets {step} fail", step, note)


# In the order in which a first boot meets them: each start gets as far as the next.
TROUBLES = [
    lets_fail("platform"),
    lets_fail("config"),
    Trouble(
        "a document is revoked",
        "the host-key document ibm-z-hostkey-customer-2 is revoked: get the current",
        "hostkeys",
        serves=with_a_document_revoked,
    ),
    Trouble(
        "the server is gone",
        r"could not be fetched from 10\.0\.2\.100 in \d+ attempts",
        "hostkeys",
        network=server_gone,
    ),
    Trouble(
        "no document is for this machine",
        r"no host-key document is for this machine, whose keys have the hash [0-9a-f]{64} \(classical\): add",
        "hostkeys",
        keys_shown=("universal",),
    ),
    lets_fail("verity"),
    Trouble(
        "too little memory",
        "the guest has too little memory, the kernel ended",
        "personalise",
        memory_mib=256,
    ),
    Trouble(
        "/run is full",
        # Whichever write comes first: one of ours, or libcryptsetup's, which does not say why it failed.
        r"personalise failed: No space left on device: give|cannot format \S+: Device wipe error",
        "personalise",
        "full-personalise",
    ),
    lets_fail("partition"),
    Trouble(
        "it cannot be written",
        r"cannot write byte \d+ while copying: Input/output",
        "encrypt boot",
        bad_sector=written_on_boot,
    ),
    Trouble(
        "it cannot be read",
        r"cannot read byte \d+ while copying: Input/output",
        "encrypt root",
        bad_sector=read_on_root,
    ),
    lets_fail("mount"),
    lets_fail("volumes"),
    lets_fail("files"),
    Trouble(
        "se is full", "cannot be made: No space left on device: make sure", "seal", surroundings=with_se_full
    ),
    Trouble(
        "zipl fails",
        r"zipl failed with exit code 1 \(the test lets zipl fail\)",
        "seal",
        "no-zipl-seal",
    ),
    lets_fail("seal"),
]
WRITING_NOTHING = {"platform", "config", "hostkeys", "verity"}
CASES = [  # in their order: one disk meets them all
    case
    for trouble in TROUBLES
    for case in (
        # Alone it would be personalise's trouble: se has to be full behind the commit point.
        [pytest.param(trouble, id=str(trouble), marks=pytest.mark.long)]
        if trouble.surroundings is with_se_full
        else sample.kind("let fail", [trouble])
        if trouble.note.startswith("fail-")
        else sample.kind("befalls it", [trouble])
    )
]


def test_every_step_meets_trouble() -> None:
    assert list(dict.fromkeys(trouble.step for trouble in TROUBLES)) == [step.name for step in STEPS]


@pytest.mark.parametrize("trouble", CASES)
def test_trouble_is_named_and_leaves_no_secret(trouble: Trouble, machine: Machine) -> None:
    with machine.start(trouble) as guest:
        guest.wait_for(console.why(f".*(?:{trouble.says})"), TIMEOUT)
        found = guest.wait_for(console.secrets_left(), TIMEOUT)
        assert found[1] == "0"
        assert int(found[2]) > 0
        guest.wait_for(console.SHELL_OPENS, TIMEOUT)
    if trouble.step in WRITING_NOTHING:
        assert sha256(machine.disk) == machine.untouched


def test_without_trouble_the_next_start_finds_everything_provisioned(
    machine: Machine, tmp_path: Path
) -> None:
    built = firstboot.manifest_of(machine.where.tree, ROOT)
    with machine.start(Trouble("none")) as guest:
        found = firstboot.wait_for_manifest(guest)
        guest.kill()
    assert firstboot.differences(built, found, only=ROOT)["unexplained"] == []
    assert found["./etc/user-file"]["size"] == len("from the user\n")
    assert f"./{HOST_KEY}" not in found  # and the machine-id is the tree's again
    sdboot = firstboot.read_sdboot(machine.disk, tmp_path)
    for host in ("customer-1", "customer-2"):
        key = machine.where.hosts[host].key
        command_line = ultravisor.unpack(sdboot, key).command_line.split()
        assert "audit=0" in command_line
        assert "rd.neednet=1" not in command_line
    consoles = machine.consoles()
    assert "classical host key ibm-z-hostkey-customer-2: " in consoles
    assert "WARNING: root gets integrity sectors of 512 bytes" in consoles
    assert "WARNING: boot gets" not in consoles
