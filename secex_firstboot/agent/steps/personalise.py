"""personalise, the commit point: a new sdboot for the user's hosts, with keys and plan, becomes bootable.

Before, a crash starts the untouched SE-ready image again. After, whatever happens to boot and root, the
machine starts with what it needs to go on.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from secex_firstboot.agent import boot_image, places, verified
from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done, ready, waiting
from secex_firstboot.agent.volumes import secrets_of
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import exists, is_directory, write_private
from secex_firstboot.contract import parameters, paths
from secex_firstboot.contract.partitions import VOLUMES
from secex_firstboot.ignition import config
from secex_firstboot.roots import growing, identity, kinds
from secex_firstboot.roots.kinds import Plain
from secex_firstboot.sdboot import boot_entry, boot_record, contents, image, options
from secex_firstboot.sdboot.boot_entry import BootEntry
from secex_firstboot.sdboot.initramfs import Directory, Entry, File
from secex_firstboot.storage import disk, encrypted, filesystem, loop, progress_record, verity
from secex_firstboot.storage.plan import MIB, Plan, Source, VolumePlan, lay_out


class Personalise(Step):
    name = "personalise"
    summary = "make a boot image for your hosts that carries the new keys (the commit point)"
    stage = Stage.PROVISION
    destructive = True

    def observe(self, context: Context) -> Status:
        if context.phase in (Phase.COMMITTED, Phase.PROVISIONED):
            return done("the boot record starts an image made here")
        if not all(verified.is_open(context, name) for name in VOLUMES):
            return waiting("boot and root are opened first")
        _plan(context, record_key="0" * 64)
        return ready("make keys and plan, build sdboot for your hosts and make it bootable")

    def perform(self, context: Context) -> None:
        shutil.rmtree(places.STATE / "volumes", ignore_errors=True)
        plan = _plan(context, record_key=secrets.token_hex(32))
        system_disk = disk.find_disk()
        with _mounted(plan.root, places.ROOT_MOUNT) as volume:
            identity.check(context, kinds.on(volume, context.command_line))
        with _mounted(plan.boot, places.BOOT_MOUNT) as boot:
            entry = boot_entry.find(boot)
            _check_options(context, entry.options)
            image.command_line_component(boot_image.system_command_line(entry.options), entry.linux)
            with boot_image.se_mounted(system_disk) as se:
                boot_record.settle(se, system_disk)
                contents.check_room(se, entry, places.IGNITION_MERGED_CONFIG)
                self._commit(context, plan, entry, se, system_disk)
        write_private(places.COMMITTED, b"")
        for name in VOLUMES:
            verified.close(name)

    def _commit(
        self, context: Context, plan: Plan, entry: BootEntry, se: Path, system_disk: disk.Disk
    ) -> None:
        _prepare_volumes(context, plan)
        write_private(places.PLAN, plan.model_dump_json().encode())
        # What a start after a crash goes on with: Ignition merged it once, and does not again.
        merged = places.IGNITION_MERGED_CONFIG.read_bytes()
        write_private(places.IGNITION_USER_CONFIG, config.without_references(merged))
        progress_record.remove(se)
        boot_image.build(
            context,
            entry,
            se,
            command_line=options.first_boot_command_line(entry.options),
            overlay=_state_files(),
        )
        boot_record.install(se, system_disk, places.RUNTIME)


@contextmanager
def _mounted(source: VolumePlan, where: Path) -> Iterator[Path]:
    """The image's volume, read-only, through dm-verity.

    Its device has blocks of 4096 bytes, and no file system with smaller ones can be mounted from that: from a
    loop device over it, it can.
    """
    device = verified.device(source.name)
    small = source.sector_size < 4096
    with (
        loop.attached(device, block_size=disk.SECTOR) if small else nullcontext(device) as blocks,
        filesystem.mounted(blocks, where, type=source.file_system, read_only=True) as mounted,
    ):
        yield mounted


def _plan(context: Context, record_key: str) -> Plan:
    growing.setting(context, Plain(Path("/"), None))  # what makes no sense is refused now
    system_disk = disk.find_disk()
    boot, root = (_source(context, name) for name in VOLUMES)
    headroom = parameters.value(context.command_line, parameters.HEADROOM) * MIB
    plan = lay_out(system_disk, boot, root, headroom, record_key)
    replace = parameters.value(context.command_line, parameters.IDENTITY)
    return plan.model_copy(update={"replace_identity": replace})


def _source(context: Context, name: str) -> Source:
    size = verity.data_size(verified.mapping(name))
    file_system = filesystem.identify(verified.device(name), name)
    if file_system.size > size:
        # The host can shorten what the tree covers without changing the root hash.
        raise Refusal(
            "SX-STEP-10",
            f"the hash tree for {name} does not cover the whole file system",
            "build the image again",
        )
    return Source(root_hash=verified.root_hash(context, name), size=size, file_system=file_system)


def _told_apart(command_line: str) -> tuple[object, ...]:
    return parameters.of_ours(command_line), parameters.value(command_line, parameters.OSTREE)


def _check_options(context: Context, of_entry: str) -> None:
    """What this boot's command line was judged by must be true of the one that first boot goes on with."""
    options.check(options.first_boot_command_line(of_entry))
    if _told_apart(of_entry) != _told_apart(context.command_line):
        raise Refusal(
            "SX-STEP-11",
            "the boot entry of the image has another ostree= or other secex arguments than its boot image",
            "build the image with the same ones in both",
        )


def _prepare_volumes(context: Context, plan: Plan) -> None:
    for each in plan.volumes:
        if each.sector_size == 512:
            context.warn(
                f"{each.name} gets integrity sectors of 512 bytes, as its file system reads less than 4096: "
                "the tags take 6.3 % of the volume instead of 0.8 %"
            )
        context.say(f"making keys and LUKS2 header of {each.name}")
        encrypted.prepare(
            secrets_of(each.name),
            label=each.label,
            device_size=each.partition.size,
            sector_size=each.sector_size,
            scratch=places.RUNTIME,
        )


def _state_files() -> dict[str, Entry]:
    """What a start after a crash needs: keys, plan, documents, the config as Ignition merged it, and ours."""
    files: dict[str, Entry] = {str(places.STATE): Directory(0o700)}
    for path in sorted(places.STATE.rglob("*")):
        files[str(path)] = Directory(0o700) if is_directory(path) else File(path)
    files[str(places.COMMITTED)] = File(b"")
    files[str(places.IGNITION_USER_CONFIG)] = File(places.IGNITION_USER_CONFIG)
    # Not part of the merged config: each of Ignition's stages merges the base configs anew.
    base = places.IGNITION_BASE_CONFIGS / paths.NO_LOCAL_LOGIN.name
    if exists(base):
        files[str(base)] = File(base)
    return files
