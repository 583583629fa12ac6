"""``make bench``: figures that anyone can take again, measured in guests, compared within one run."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

from harness import console, debian, firstboot, inside, pki, raw_disk, site, ultravisor
from harness.firstboot import Site
from harness.guest import Direct, Disk, Guest, Network
from harness.se_ready import MIB, OPTIONS, SECTOR, Recipe

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.builder import volumes
from secex_firstboot.hostkeys import document, ml_kem
from secex_firstboot.sdboot import image

OUTPUT = debian.REPOSITORY / "build" / "bench"
COPIED = 96 * MIB
ROUNDS = 3  # of what is compared after first boot
DISKS = (4, 256, 4)  # GiB; the first again at the end, for the machine's noise
LARGE_ROOT = replace(Recipe(), root_at_least=2048)


@dataclass(frozen=True)
class Row:
    """``seconds`` from power-on to the end of first boot, ``root_seconds`` of these for volume root; bytes
    written to the disk, and bytes of its file on the host.
    """

    what: str
    seconds: float  # 0 where only root was provisioned
    root_seconds: float
    written: int
    file_size: int
    peak_memory: int  # MiB

    def __str__(self) -> str:
        seconds = f"{self.seconds:.0f}" if self.seconds else ""
        return (
            f"{self.what:<26}{seconds:>9}{self.root_seconds:>9.0f}{self.written / MIB:>13.0f}"
            f"{self.file_size / MIB:>13.0f}{self.peak_memory:>13}"
        )


HEAD = f"{'':<26}{'all, s':>9}{'root, s':>9}{'written, MiB':>13}{'qcow2, MiB':>13}{'memory, MiB':>13}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--later", action="store_true", help="only what comes after first boot")
    parser.add_argument("--build", action="store_true", help="only the making of an image")
    options = parser.parse_args()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {}
    if not options.later:
        build = measure_build()
        print_build(build)
        result = {"build": vars(build)}
        if options.build:
            return save(result)
        speed = measure_speed()
        print_speed(speed)
        added = debian.added_to_initramfs()
        print(f"secex-firstboot adds {added / MIB:.1f} MiB to the initramfs, compressed")
        result |= {**speed, "bytes added to the initramfs": added}
    with tempfile.TemporaryDirectory(dir=OUTPUT) as work, made_site(Path(work)) as (where, network):
        if options.later:
            first_boot(where, network, DISKS[0])
        else:
            rows = measure_disks(where, network)
            print_disks(rows)
            result["first boots"] = [vars(row) for row in rows]
        later = measure_later(where)
    print_later(later)
    return save(result | vars(later))


@contextmanager
def made_site(directory: Path) -> Iterator[tuple[Site, Network]]:
    """With an image into whose guests we can log in."""
    key = site.make_ssh_identity(directory).with_suffix(".pub").read_bytes()
    recipe = Recipe(root_added=(("root/.ssh/authorized_keys", key),))
    with firstboot.make_site(directory, recipe) as made:
        yield made


def save(result: dict[str, Any]) -> int:
    (OUTPUT / "report.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0


# --- making an image ---------------------------------------------------------------------------------------

BUILT_ROOT = 1024 * MIB  # content of the root file system
_SPEED_SECONDS = 3
_HEADERS = 21  # images


@dataclass(frozen=True)
class Build:
    """Seconds, in as many rounds: of ``secex build``, and of the same by hand, part by part.

    ``peak_memory``: bytes of the largest of its processes. ``sdboot``: bytes a second that the builder of
    boot images makes; ``limit``: that AES-256-XTS and SHA-512 alone would, by openssl speed.
    """

    whole: list[float]
    parts: dict[str, list[float]]
    peak_memory: int
    sdboot: list[float]
    limit: float
    header: dict[str, float]
    """Of an image of next to nothing, for four hosts, by the kind of their keys, and by what makes ML-KEM."""

    def ratios(self) -> list[float]:
        return [
            whole / sum(part[number] for part in self.parts.values())
            for number, whole in enumerate(self.whole)
        ]


def measure_build() -> Build:
    debian.say("building an image with a root of 1 GiB")
    result = Build([], {}, 0, [], crypto_limit(), {})
    with tempfile.TemporaryDirectory(dir=OUTPUT) as directory:
        work = Path(directory)
        tree = grown_tree(work / "tree")
        host = site.make_host("a", work, pki.make_chain(datetime.now(UTC)))
        peak = 0
        for _ in range(ROUNDS):
            seconds, memory = run_build(tree, work, host.document)
            result.whole.append(seconds)
            peak = max(peak, memory)
            for name, part in by_hand(tree, work).items():
                result.parts.setdefault(name, []).append(part)
            result.sdboot.append(sdboot_speed(tree, work, host))
        result.header.update(header_seconds(tree, work))
    return replace(result, peak_memory=peak)


def grown_tree(tree: Path) -> Path:
    """The tests' system, and files of random bytes until there are BUILT_ROOT."""
    subprocess.run(["cp", "-a", debian.build(), tree], check=True)
    missing = BUILT_ROOT - volumes.Content.of(tree).size
    (tree / "var/grown").mkdir()
    for number in range(missing // MIB):
        (tree / f"var/grown/{number}").write_bytes(os.urandom(MIB))
    return tree


def run_build(tree: Path, work: Path, document: Path) -> tuple[float, int]:
    """Seconds, and bytes of the largest process."""
    started = time.monotonic()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "secex_firstboot.cli.secex", "build", tree, "--output", work / "built"),
            *("--no-verify", "--hostkey", document),
        ],
        env=os.environ | {"PYTHONPATH": str(debian.REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError("secex build has failed")
    return time.monotonic() - started, usage.ru_maxrss << 10


def by_hand(tree: Path, work: Path) -> dict[str, float]:
    """What has to be done in any case, with the usual programs."""
    made = {name: work / f"hand-{name}" for name in ("tree", "root", "hashes", "sdboot", "disk")}
    seconds = {}

    def timed(name: str, *command: str | Path) -> None:
        started = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds[name] = time.monotonic() - started

    timed("copy", "cp", "-a", tree, made["tree"])
    blocks = str((BUILT_ROOT + 128 * MIB) // 4096)
    timed("file system", "mkfs.ext4", "-q", "-F", "-b", "4096", "-d", made["tree"], made["root"], blocks)
    timed("hash tree", "veritysetup", "format", made["root"], made["hashes"])
    boot = debian.kernel(tree), debian.initramfs(tree)
    made["sdboot"].write_bytes(b"".join(path.read_bytes() for path in boot))
    key = ("-K", "0" * 64, "-iv", "0" * 32)
    timed("AES", "openssl", "enc", "-aes-256-ctr", *key, "-in", made["sdboot"], "-out", "/dev/null")
    timed("SHA-512", "openssl", "dgst", "-sha512", made["sdboot"])
    timed("qcow2", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", made["root"], made["disk"])
    shutil.rmtree(made.pop("tree"))
    for path in made.values():
        path.unlink(missing_ok=True)
    return seconds


def sdboot_speed(tree: Path, work: Path, host: site.Host) -> float:
    seconds, size = build_for([host], debian.kernel(tree), [debian.initramfs(tree)], tree, work)
    return size / seconds


def build_for(
    hosts: Sequence[site.Host], kernel: Path, ramdisk: list[Path], tree: Path, work: Path
) -> tuple[float, int]:
    """Seconds, and bytes of the image."""
    loaders = tree / "usr/share/s390-tools/pvimg"
    keys = [document.parse(host.name, host.document.read_bytes()).key for host in hosts]
    with (work / "sdboot").open("wb") as stream:
        started = time.monotonic()
        image.build(
            stream,
            kernel=kernel,
            ramdisk=ramdisk,
            command_line="quiet",
            host_keys=keys,
            boot_loaders=image.BootLoaders(loaders / "stage3a.bin", loaders / "stage3b_reloc.bin"),
        )
        return time.monotonic() - started, stream.seek(0, os.SEEK_END)


def header_seconds(tree: Path, work: Path) -> dict[str, float]:
    """The median of several. OpenSSL's program counts where it can, and the library does without."""
    ways: dict[str, tuple[bool, Callable[[bytes], tuple[bytes, bytes]]]] = {
        "classical": (False, ml_kem.encapsulate),
        "hybrid": (True, ml_kem.encapsulate),
        "hybrid, by openssl": (True, ml_kem._encapsulate_with_program),
    }
    kernel = work / "kernel"
    kernel.write_bytes(bytes(0x20000))
    chain, seconds = pki.make_chain(datetime.now(UTC)), {}
    for name, (hybrid, encapsulate) in ways.items():
        hosts = [site.make_host(f"{name} {number}", work, chain, hybrid=hybrid) for number in range(4)]
        with mock.patch.object(ml_kem, "encapsulate", encapsulate), suppress(Refusal):
            taken = [build_for(hosts, kernel, [], tree, work)[0] for _ in range(_HEADERS)]
            seconds[name] = statistics.median(taken)
    return seconds


def crypto_limit() -> float:
    """Bytes a second through both, one after the other, in pieces of a page."""
    seconds = 0.0
    for algorithm in ("aes-256-xts", "sha512"):
        done = subprocess.run(
            ["openssl", "speed", "-bytes", "4096", "-seconds", str(_SPEED_SECONDS), "-mr", "-evp", algorithm],
            check=True,
            capture_output=True,
            text=True,
        )
        (speed,) = re.findall(r"^\+F:\d+:[^:]+:([\d.]+)$", done.stdout, re.M)
        seconds += 1 / float(speed)
    return 1 / seconds


def print_build(build: Build) -> None:
    columns = {"secex build": build.whole, **build.parts}
    print(f"\n{'round':<8}", *(f"{name:>12}" for name in columns), "  (seconds)", sep="")
    for number, row in enumerate(zip(*columns.values(), strict=True), start=1):
        print(f"{number:<8}", *(f"{seconds:>12.1f}" for seconds in row), sep="")
    ratios, speed = build.ratios(), statistics.median(build.sdboot)
    print(f"a build takes {statistics.median(ratios):.2f} times as long as its parts by hand")
    print(f"  (median; from {min(ratios):.2f} to {max(ratios):.2f})")
    print(f"its largest process has {build.peak_memory >> 20} MiB")
    share = speed / build.limit
    print(
        f"boot images are made at {speed / 1e6:.0f} MB/s, {share:.2f} of what AES-256-XTS and SHA-512 alone"
    )
    print(f"  make with openssl speed ({build.limit / 1e6:.0f} MB/s)")
    for name, seconds in build.header.items():
        print(f"an image with nothing in it for four hosts, {name}: {seconds * 1000:.0f} ms")


# --- first boot, by the size of the disk -------------------------------------------------------------------


def measure_disks(where: Site, network: Network) -> list[Row]:
    """The guest of the last first boot on one of DISKS is left, to be started again."""
    with (
        tempfile.TemporaryDirectory(dir=OUTPUT) as work,
        firstboot.make_site(Path(work), LARGE_ROOT) as (large, its_network),
    ):
        with_large_root = first_boot(large, its_network, DISKS[0], note=", root of 2 GiB")
    first, usual = first_boot(where, network, DISKS[0]), usual_way(where, DISKS[0])
    return [first, *(first_boot(where, network, gib) for gib in DISKS[1:]), usual, with_large_root]


def first_boot(where: Site, network: Network, gib: int, note: str = "") -> Row:
    debian.say(f"first boot on a disk of {gib} GiB{note}")
    firstboot.enlarge(where.image, where.disk, gib << 10)
    started = time.monotonic()
    with firstboot.start(
        where, network, host_keys=[where.hosts["universal"].key], log=OUTPUT / f"console-{gib}.log"
    ) as guest:
        found = guest.wait_for(rf"{console.PEAK_MEMORY}|{console.GAVE_UP}", firstboot.FIRST_BOOT_TIMEOUT)
        if not found[1]:
            raise guest.error("gave up")
        seconds = time.monotonic() - started
        written = guest.written()[0]
        guest.kill()
    root = re.search(console.step_done("encrypt root"), guest.console)
    assert root
    return said(
        Row(f"{gib} GiB{note}", seconds, float(root[1]), written, real_size(where.disk), int(found[1]))
    )


def usual_way(where: Site, gib: int) -> Row:
    """Root alone, on a disk of its own that is as large as root becomes on one of ``gib`` GiB."""
    debian.say(f"the usual way for root, on a disk of {gib} GiB")
    target, root_hash = where.directory / "target.qcow2", where.directory / "hash"
    raw = where.directory / "image.raw"
    raw_disk.make(where.image, raw, gib << 30)
    size = (gib << 30) - raw_disk.partition_start(raw, "root")
    raw.unlink()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", target, str(size)], check=True)
    sdboot = firstboot.read_sdboot(where.image, where.directory)
    command_line = ultravisor.unpack(sdboot, where.hosts["universal"].key).command_line
    found = re.search(r"rootfs\.roothash=([0-9a-f]{64})", command_line)
    assert found
    root_hash.write_text(found[1].ljust(SECTOR, "\0"))
    disks = [
        Disk(target, "target"),
        Disk(where.image, "system", snapshot=True),
        Disk(root_hash, "hash", format="raw"),
    ]
    script = debian.REPOSITORY / "vm-tests/inside/usual_way.py"
    result = inside.run(script, disks=disks, log=OUTPUT / "console-usual-way.log")
    print("  " + ", ".join(f"{what} {seconds:.0f} s" for what, seconds in result["seconds"].items()))
    seconds = sum(result["seconds"].values())
    return said(
        Row(
            f"{gib} GiB, the usual way",
            0,
            seconds,
            result["written"][0],
            real_size(target),
            result["peak memory"],
        )
    )


def said(row: Row) -> Row:
    print(HEAD, row, sep="\n", flush=True)
    return row


def real_size(file: Path) -> int:
    """Bytes that the file takes on the host."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        return os.fstat(stream.fileno()).st_blocks * SECTOR


def print_disks(rows: list[Row]) -> None:
    first = rows[0]
    print(f"\n{HEAD}", *rows, sep="\n")
    print("seconds and bytes written, as multiples of the first row; the last row is the same disk again:")
    for row in rows[1 : len(DISKS)]:
        print(f"  {row.what:<10}{row.seconds / first.seconds:>6.2f}{row.written / first.written:>6.2f}")


# --- the parts that take long ------------------------------------------------------------------------------


def measure_speed() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=OUTPUT) as work:
        disks = make_disks(Path(work))
        script = debian.REPOSITORY / "vm-tests/inside/bench.py"
        return inside.run(script, disks=disks, log=OUTPUT / "console.log", memory_mib=2048)


def make_disks(work: Path) -> list[Disk]:
    """Random content, and zeros, each with hash tree and root hash; an empty target."""
    names = [("source", "tree", "hash"), ("free", "free-tree", "free-hash")]
    for data, tree, root_hash in names:
        with (work / data).open("wb") as stream:
            if data == "source":
                for _ in range(COPIED // MIB):
                    stream.write(os.urandom(MIB))
            stream.truncate(COPIED)
        with (work / tree).open("wb") as stream:
            stream.truncate(4 * MIB)
        command: list[str | Path] = ["veritysetup", "format", work / data, work / tree]
        made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        (work / root_hash).write_text(made.split("Root hash:")[1].split()[0].ljust(SECTOR, "\0"))
    with (work / "target").open("wb") as stream:
        stream.truncate(COPIED + 64 * MIB)
    return [Disk(work / name, name, format="raw") for name in (*chain.from_iterable(names), "target")]


def print_speed(result: dict[str, Any]) -> None:
    rows = result["rows"]
    print(
        f"\n{'round':<8}", *(f"{name:>8}" for name in rows[0]), f"   (seconds, {result['MiB']} MiB)", sep=""
    )
    for number, row in enumerate(rows, start=1):
        print(f"{number:<8}", *(f"{seconds:>8.1f}" for seconds in row.values()), sep="")
    for what, name in (("a copy through dm-verity into LUKS2", "copy"), ("one of free blocks", "zeros")):
        ratios = [row[name] / row["write"] for row in rows]
        print(f"{what} takes {statistics.median(ratios):.2f} times as long as dd to the same volume")
        print(f"  (median; from {min(ratios):.2f} to {max(ratios):.2f})")
    reading, verified, written = (
        statistics.median(row[name] for row in rows) for name in ("read", "verify", "write")
    )
    whole = verified + written
    print(
        f"one after the other: reading {reading / whole:.0%}, hashing {(verified - reading) / whole:.0%},"
        f" writing {written / whole:.0%}"
    )
    print(f"the built-in builder makes a 100 MiB image in {result['build seconds']:.1f} s")


# --- after first boot --------------------------------------------------------------------------------------

# Without /etc/fstab, which names the encrypted volumes.
PLAIN = "root=PARTLABEL=root fstab=no systemd.mount-extra=PARTLABEL=boot:/boot:ext4"


@dataclass(frozen=True)
class Later:
    """Seconds, each in as many rounds.

    ``encrypted``: from the kernel's first line until the provisioned system is up. ``plain``: the same of the
    same system from the image's partitions, with nothing encrypted. ``updates``: of ``secex update``, after
    one more kernel argument. ``least``: reading what it reads and encrypting as many bytes. ``unchanged``: of
    an update with nothing to do.
    """

    encrypted: list[float]
    plain: list[float]
    updates: list[float]
    least: list[float]
    unchanged: list[float]


def measure_later(where: Site) -> Later:
    """The starts in turn; before they count, each system starts once, and makes what it makes only then."""
    later = Later([], [], [], [], [])
    plain = where.directory / "plain.qcow2"
    firstboot.enlarge(where.image, plain, DISKS[0] << 10)
    for number in range(ROUNDS + 1):
        debian.say(f"later boots, round {number} of {ROUNDS}" if number else "later boots, uncounted")
        for seconds, guest in (
            (later.encrypted, encrypted_guest(where)),
            (later.plain, plain_guest(where, plain)),
        ):
            with guest:
                took = seconds_to_be_up(guest, where)
                print(f"  {took:.1f} s", flush=True)
                if number:
                    seconds.append(took)
                if number == ROUNDS and seconds is later.encrypted:
                    measure_updates(later, guest, where)
                firstboot.power_off(guest, where.identity)
    return later


def encrypted_guest(where: Site) -> Guest:
    keys, log = [where.hosts["customer-1"].key], OUTPUT / "console-encrypted.log"
    return firstboot.start(where, Network(), host_keys=keys, log=log, with_config=False)


def plain_guest(where: Site, disk: Path) -> Guest:
    """QEMU loads its kernel, as no ultravisor has anything to do."""
    options = OPTIONS.replace("root=/dev/mapper/root", PLAIN)
    direct = Direct(debian.kernel(where.tree), debian.initramfs(where.tree), options)
    log = OUTPUT / "console-plain.log"
    return Guest(disks=[Disk(disk, "system")], direct=direct, network=Network(), console_log=log)


def seconds_to_be_up(guest: Guest, where: Site) -> float:
    """As the guest's systemd has it: from the kernel's start until no job is left."""
    firstboot.wait_for_system(guest, firstboot.BOOT_TIMEOUT)
    ask = "systemctl show --property=FinishTimestampMonotonic --value"
    up = f"until [ $({ask}) -gt 0 ]; do sleep 1; done; {ask}"
    return int(guest.ssh(up, where.identity, timeout=firstboot.BOOT_TIMEOUT).stdout) / 1e6


def measure_updates(later: Later, guest: Guest, where: Site) -> None:
    script = (debian.REPOSITORY / "vm-tests/inside/read_and_encrypt.py").read_bytes()
    guest.send(script, "/run/read_and_encrypt.py", where.identity)

    def seconds(command: str, before: str = "true") -> float:
        cold = "sync; echo 3 > /proc/sys/vm/drop_caches"
        line = f"{before}; {cold}; TIMEFORMAT=%R; time {command} > /dev/null 2>&1"
        done = guest.ssh(line, where.identity, timeout=firstboot.BOOT_TIMEOUT)
        assert done.returncode == 0, done.stderr
        return float(done.stderr.split()[-1])

    # Nothing but what is measured makes an update.
    guest.ssh("systemctl stop secex-firstboot-update.path", where.identity)
    read = [f"/boot/{kind}-{debian.kernel_version(where.tree)}" for kind in ("vmlinuz", "initrd.img")]
    change = "sed -i 's|^options .*|& secex-bench.round={}|' /boot/loader/entries/*.conf"
    for number in range(ROUNDS):
        later.updates.append(seconds("secex update", before=change.format(number)))
        later.unchanged.append(seconds("secex update"))
        later.least.append(seconds(f"python3 -I /run/read_and_encrypt.py {' '.join(read)}"))


def print_later(later: Later) -> None:
    columns = vars(later)
    print(f"\n{'round':<8}", *(f"{name:>11}" for name in columns), "  (seconds)", sep="")
    for number, row in enumerate(zip(*columns.values(), strict=True), start=1):
        print(f"{number:<8}", *(f"{seconds:>11.1f}" for seconds in row), sep="")
    for what, those, beside in (
        (
            "a later boot takes {} times as long as that of the same system unencrypted",
            later.encrypted,
            later.plain,
        ),
        ("an update takes {} times as long as reading and encrypting alone", later.updates, later.least),
    ):
        ratios = [one / other for one, other in zip(those, beside, strict=True)]
        print(what.format(f"{statistics.median(ratios):.2f}"))
        print(f"  (median; from {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    sys.exit(main())
