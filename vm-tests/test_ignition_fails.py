"""A stage of Ignition that fails: the screen says which, how and where in the config, and no byte of that.

The kargs stage is not among the guests': all it does here is to call a script that cannot fail.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from harness import console, debian, firstboot, raw_disk, se_ready, site, started
from harness.firstboot import Owner, Served, Site
from harness.guest import SERVICES_ADDRESS, Disk, Guest, Network
from harness.se_ready import MIB, SMALL
from harness.started import Started

from secex_firstboot.ignition import failure
from secex_firstboot.ignition.failure import Message

WORD = "marker"  # in whatever a config here has to hide
TIMEOUT = 900.0
CONFIG_DISK = 256 << 10  # bytes: a guest that was kept knows the size
DATA = "/dev/disk/by-id/virtio-data"
VERSION = {"version": "3.3.0"}
UNSUPPORTED = "0x800002c2"  # features of ext4: those that mke2fs(8) sets, and one that Linux does not know

IMAGE_UNCHANGED = "The image is unchanged. "
BEGIN_ANEW = "This guest has to begin anew from the image, with a mended config."
EITHER = "Put the cause right, and start the guest again. If the config is the cause,"


def no_such_level(where: Site) -> dict[str, Any]:
    raid = {"name": f"{WORD}-raid", "level": f"{WORD}-level", "devices": [f"/dev/{WORD}"]}
    return {"ignition": VERSION, "storage": {"raid": [raid]}}


def nothing_at_the_url(where: Site) -> dict[str, Any]:
    url = f"http://{SERVICES_ADDRESS}/{WORD}.ign?token={WORD}"
    reference = {"source": url, "verification": {"hash": NO_HASH}}  # without, first boot refuses it itself
    return {"ignition": {**VERSION, "config": {"merge": [reference]}}}


def served(owner: Owner) -> Served:
    """A file system that may be in trouble, and a file where none can be."""
    certificates = owner.chain.certificates() | owner.chain.crls()
    proof = {name: content for name, content in certificates.items() if name != "root.crt"}
    return Served(
        {
            "ignition": VERSION,
            "storage": {
                "filesystems": [
                    {"device": DATA, "format": "ext4", "label": f"{WORD}-fs", "path": "/var/data"}
                ],
                "files": [
                    site.host_key_file(owner.hosts["customer-1"]),
                    *site.certificate_files(proof),
                    {"path": f"/etc/fstab/{WORD}", "contents": {"source": f"data:,{WORD}"}},
                ],
            },
        }
    )


def as_served(where: Site) -> dict[str, Any]:
    return where.served.config


def nothing(data: Path) -> None:
    """An empty disk."""


def another_file_system(data: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-L", "other", data], check=True)


def one_that_linux_does_not_mount(data: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-L", f"{WORD}-fs", data], check=True)
    set_feature = f"set_super_value feature_incompat {UNSUPPORTED}"
    subprocess.run(["debugfs", "-w", "-R", set_feature, data], check=True, capture_output=True)


@dataclass(frozen=True)
class Case:
    """``says`` and ``advice`` are regular expressions."""

    stage: str
    says: str
    advice: str
    config: Callable[[Site], dict[str, Any]] = as_served
    data: Callable[[Path], None] = nothing

    def __str__(self) -> str:
        return self.stage


# In the order in which one first boot meets them: each start gets as far as the next.
CASES = [
    Case(
        "fetch-offline",
        r"storage\.raid\[0\]\.level: unrecognized raid level",
        IMAGE_UNCHANGED + "Mend the config",
        no_such_level,
    ),
    Case(
        "fetch",
        r"ignition\.config\.merge\[0\]: the server does not have it",
        IMAGE_UNCHANGED + "Put the cause right",
        nothing_at_the_url,
    ),
    Case(
        "disks",
        r"storage\.filesystems\[0\]: something else is on its device, and the config does not say to wipe",
        EITHER,
        data=another_file_system,
    ),
    Case(
        "mount",
        r"storage\.filesystems\[0\]: mount refuses it \(exit status 32\)",
        EITHER,
        data=one_that_linux_does_not_mount,
    ),
    Case("files", r"storage\.files\[\d+\]: what it is to lie in is no directory", BEGIN_ANEW),
]
BEHIND_THE_COMMIT_POINT = {"disks", "mount", "files"}


@dataclass
class Machine:
    """One disk, which all starts share."""

    where: Site
    network: Network
    kept: list[Started] = field(default_factory=list)

    @property
    def disk(self) -> Path:
        return self.where.directory / "disk.raw"

    @contextmanager
    def start(self, case: Case) -> Iterator[Guest]:
        directory = self.where.directory
        config, data = directory / f"{case}.asc", directory / "data.raw"
        se_ready.encrypt_config(case.config(self.where), self.where.public_key, config)
        os.truncate(config, CONFIG_DISK)
        data.unlink(missing_ok=True)
        data.touch()
        os.truncate(data, 64 * MIB)
        case.data(data)

        def guest(name: str, **saved: Any) -> Guest:
            return Guest(
                disks=[
                    Disk(self.disk, "system", format="raw"),
                    Disk(config, "ignition_crypted", format="raw", read_only=True),
                    Disk(data, "data", format="raw"),
                ],
                host_keys=[self.where.hosts[name].key for name in ("universal", "customer-1")],
                network=self.network,
                console_log=directory / f"{name}.log",
                **saved,
            )

        kept = started.find_or_keep(self.disk, self.kept, guest(f"before-{case}"), directory)
        with guest(str(case), saved=kept) as running:
            yield running


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    directory = tmp_path_factory.mktemp("ignition")
    with firstboot.make_site(directory, SMALL, served) as (where, network):
        raw_disk.make(where.image, directory / "disk.raw", 1 << 30)
        yield Machine(where, network)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, id=str(case), marks=pytest.mark.long if case.stage in BEHIND_THE_COMMIT_POINT else ()
        )
        for case in CASES
    ],
)
def test_a_stage_that_fails_is_explained_without_a_byte_of_the_config(case: Case, machine: Machine) -> None:
    with machine.start(case) as guest:
        guest.wait_for(
            console.what_failed(rf".*ignition-{case.stage}\.service"), firstboot.FIRST_BOOT_TIMEOUT
        )
        guest.wait_for(console.why(f"Ignition's {case.stage} stage: {case.says}"), TIMEOUT)
        guest.wait_for(console.what_to_do(case.advice), TIMEOUT)
        assert guest.wait(TIMEOUT) == "guest-shutdown"
        assert WORD not in guest.console
        assert "Full config" not in guest.console


# --- the same Ignition, outside of a guest ---

NO_HASH = f"sha256-{'0' * 64}"
FAILURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "a config that it does not know": (
        "fetch-offline",
        {"ignition": {"version": "3.99.0"}},
        "the specification is not one that this Ignition knows",
    ),
    "a config that it rejects": (
        "fetch-offline",
        {"ignition": VERSION, "storage": {"files": [{"path": "/a"}, {"path": f"{WORD}"}]}},
        "storage.files[1].path: path not absolute",
    ),
    "a merged config that it rejects": (
        "fetch-offline",
        {
            "ignition": {
                **VERSION,
                "config": {
                    "merge": [
                        {
                            "source": site.data_url(
                                json.dumps(
                                    {"ignition": VERSION, "systemd": {"units": [{"name": WORD}]}}
                                ).encode()
                            )
                        }
                    ]
                },
            }
        },
        "ignition.config.merge[0]: systemd.units[0].name: invalid systemd unit extension",
    ),
    "a wrong hash": (
        "files",
        {
            "ignition": VERSION,
            "storage": {
                "files": [
                    {
                        "path": f"/etc/{WORD}",
                        "contents": {"source": f"data:,{WORD}", "verification": {"hash": NO_HASH}},
                    }
                ]
            },
        },
        "storage.files[0]: its content does not have the hash that the config gives",
    ),
    "a file below a file": (
        "files",
        {"ignition": VERSION, "storage": {"files": [{"path": f"/etc/os-release/{WORD}"}]}},
        "storage.files[0]: what it is to lie in is no directory",
    ),
    "a mount point that is none": (
        "mount",
        {
            "ignition": VERSION,
            "storage": {
                "filesystems": [
                    {"device": f"/dev/{WORD}", "format": "ext4", "path": f"/etc/os-release/{WORD}"}
                ]
            },
        },
        "storage.filesystems[0]: what it is to lie in is no directory",
    ),
    "no program for kernel arguments": (
        "kargs",
        {"ignition": VERSION, "kernelArguments": {"shouldExist": [WORD]}},
        "kernelArguments: the image has no ignition-kargs-helper",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_the_real_ignition_says_is_understood(name: str, tmp_path: Path) -> None:
    stage, config, says = FAILURES[name]
    if not stage.startswith("fetch"):
        ignition("fetch-offline", config, tmp_path)
    log = ignition(stage, config, tmp_path)
    merged = tmp_path / "merged.json"
    found = failure.explain(log, json.loads(merged.read_bytes()) if merged.exists() else {}, config)
    assert str(found) == f"Ignition's {stage} stage: {says}"
    assert any(WORD in message.text for message in log) or stage.startswith("fetch")


def ignition(stage: str, config: dict[str, Any], directory: Path) -> list[Message]:
    """Run one stage, through qemu-user, on a root with little in it; returns its log."""
    system = debian.build()
    debian.register_binfmt()
    root = directory / "root"
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc/os-release").touch()
    selinux = root / "etc/selinux"
    if not selinux.exists():
        subprocess.run(["cp", "-r", system / "etc/selinux", selinux], check=True)
    (directory / "user.ign").write_text(json.dumps(config))
    places = ("SYSTEM_CONFIG_DIR", "SYSTEM_LOCAL_CONFIG_DIR", "SYSTEM_RUNTIME_CONFIG_DIR")
    options = {
        "stage": stage,
        "platform": "file",
        "root": root,
        "config-cache": directory / "merged.json",
        "neednet": directory / "neednet",
        "state-file": directory / "state",
    }
    done = subprocess.run(
        [
            system / "usr/lib/dracut/modules.d/30ignition/ignition",
            "--log-to-stdout",
            *(f"--{option}={value}" for option, value in options.items()),
        ],
        env={"QEMU_LD_PREFIX": str(system)} | {f"IGNITION_{place}": str(directory) for place in places},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.replace(str(root), "/sysroot").splitlines()
    return [message for line in lines if (message := Message.on_stdout(line))]
