"""Wrong ground is refused in one line with the cure; nothing on the disk has changed, the power goes off."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from harness import console, firstboot, se_ready
from harness.firstboot import Site
from harness.guest import Disk, Network
from harness.se_ready import OPTIONS, SMALL, Recipe, Signature

from secex_firstboot.builder import config_key
from secex_firstboot.owner import console_log

MIB = 1 << 20
RECIPE = SMALL
TIMEOUT = 900.0


@dataclass(frozen=True)
class Images:
    """Makes images, each once, and starts guests on changed copies of them."""

    directory: Path
    resources: ExitStack
    made: dict[Recipe, tuple[Site, Network]]

    def site(self, recipe: Recipe) -> tuple[Site, Network]:
        if recipe not in self.made:
            directory = self.directory / f"image-{len(self.made)}"
            self.made[recipe] = self.resources.enter_context(firstboot.make_site(directory, recipe))
        return self.made[recipe]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    with ExitStack() as resources:
        yield Images(tmp_path_factory.mktemp("refusals"), resources, {})


def unchanged(disk: Path) -> None:
    """Leave the image as it is."""


def without_partition_root(disk: Path) -> None:
    subprocess.run(["sfdisk", "--quiet", "--part-label", disk, "4", "other"], check=True)


@dataclass(frozen=True)
class Case:
    name: str
    says: str
    """A regular expression for the agent's line on the console, message and cure."""
    recipe: Recipe = RECIPE
    change: Callable[[Path], None] = unchanged
    with_config: bool = True
    config: dict[str, Any] = field(default_factory=dict)
    """Sections in place of the config's own."""
    sign: Callable[[Signature], Signature | None] = lambda signature: signature
    """What becomes of the signature, of an image that wants one."""
    grow_mib: int = 256


BOOT_ENTRY = {"name": "../../../../boot/loader/entries/zz.conf", "contents": "options init=/bin/sh"}

SIGNED = replace(SMALL, signed=True)
NOT_SIGNED = (
    "the config is damaged or was altered, is not for this image's key or by none of its signers, "
    "or is no valid Ignition config: look at it"
)

CASES = [
    Case(
        "no Secure Execution guest",
        "this machine is not an IBM Secure Execution guest: start the SE-ready image on an IBM z15",
        recipe=replace(SMALL, options=f"{OPTIONS} secex-test.no-uv"),
    ),
    Case(
        "a missing partition",
        r"/dev/vd[ab] has no partition 4 'root': start from an unchanged SE-ready image",
        change=without_partition_root,
    ),
    Case(
        "a disk too small",
        r"/dev/vd[ab] is too small by \d+ MiB: power off and enlarge the image: qemu-img resize IMAGE \+\d+M",
        recipe=replace(SMALL, behind=1),
        grow_mib=0,
    ),
    Case(
        "no config disk",
        "no disk has the serial ignition_crypted: attach",
        with_config=False,
    ),
    Case(
        "a drop-in that is a boot entry",
        r"the Ignition config's systemd\.units\[0\]\.dropins\[0\]\.name is no name of a drop-in: write",
        config={"systemd": {"units": [{"name": "a.service", "dropins": [BOOT_ENTRY]}]}},
    ),
    Case(
        "a file system of another kind",
        "the file system of root is neither ext4 nor xfs: build the image with one of them",
        recipe=replace(SMALL, root_file_system=None),
    ),
    Case(
        "a config of the host's own",
        NOT_SIGNED,
        recipe=SIGNED,
        config={"storage": {}, "passwd": {}},
        sign=lambda signature: None,
    ),
    Case(
        "the owner's config, stripped of its signature",
        NOT_SIGNED,
        recipe=SIGNED,
        sign=lambda signature: None,
    ),
    Case(
        "a config by somebody else",
        NOT_SIGNED,
        recipe=SIGNED,
        sign=lambda signature: replace(signature, by=config_key.key_pair()),
    ),
    Case(
        "the owner's config for another image",
        NOT_SIGNED,
        recipe=SIGNED,
        sign=lambda signature: replace(signature, image=signature.by.fingerprint),
    ),
    Case(
        "a config that has expired",
        NOT_SIGNED,
        recipe=SIGNED,
        sign=lambda signature: replace(signature, expires="seconds=1"),
    ),
]


@pytest.mark.sampled("wrong ground")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_ground_is_refused_with_the_cure_and_nothing_is_touched(
    case: Case, images: Images, tmp_path: Path
) -> None:
    where, network = images.site(case.recipe)
    before, disk = tmp_path / "before.raw", tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "raw", where.image, before], check=True)
    with before.open("r+b") as stream:
        stream.truncate(before.stat().st_size + case.grow_mib * MIB)
    case.change(before)
    if case.config or where.signature:
        other, signature = tmp_path / "config.asc", where.signature and case.sign(where.signature)
        se_ready.encrypt_config(where.served.config | case.config, where.public_key, other, signature)
        where = replace(where, config_disk=other)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", before, disk], check=True)
    with firstboot.start(
        where,
        network,
        disk=Disk(disk, "system"),
        host_keys=[where.hosts["universal"].key],
        log=tmp_path / "console.log",
        with_config=case.with_config,
    ) as guest:
        guest.wait_for(console.agent_says(f".*{case.says}"), TIMEOUT)
        guest.wait_for(console.why(f".*{case.says}"), TIMEOUT)
        guest.wait_for(console.UNCHANGED, TIMEOUT)
        assert guest.wait(TIMEOUT) == "guest-shutdown"
        assert "personalise: done" not in guest.console
    explained = console_log.explain(tmp_path / "console.log")
    assert explained.cause and re.search(case.says, explained.cause.said)
    assert explained.cause.id and explained.cause.cure
    subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", before, disk], check=True)


@pytest.mark.sampled("wrong ground")
def test_a_config_by_the_signer_and_for_the_image_is_taken(images: Images, tmp_path: Path) -> None:
    """The neighbour of what is refused; all else that comes of it is the main job's."""
    where, network = images.site(SIGNED)
    assert where.signature
    with firstboot.start(
        where,
        network,
        disk=Disk(where.image, "system"),
        host_keys=[where.hosts["universal"].key],
        log=tmp_path / "console.log",
    ) as guest:
        signer = where.signature.by.fingerprint
        guest.wait_for(
            f"{console.step_begins('config')}.*; a config is signed, for this image, by one of {signer}",
            TIMEOUT,
        )
        guest.wait_for(console.step_done("config"), TIMEOUT)


def test_the_image_does_not_start_on_a_host_it_was_not_built_for(images: Images, tmp_path: Path) -> None:
    where, _ = images.site(RECIPE)
    keys = [where.hosts["customer-1"].key]
    log = tmp_path / "console.log"
    with firstboot.start(where, None, disk=Disk(where.image, "system"), host_keys=keys, log=log) as guest:
        assert guest.wait(300) == "refused"
        assert guest.refusal is not None
        assert (guest.refusal.rc, guest.refusal.rrc) == (0x0108, 0x0005)
