"""config: decrypt the user's Ignition config and hand it to Ignition, before Ignition's fetch stage."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done, ready
from secex_firstboot.basic import memory
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import exists, write_private
from secex_firstboot.contract import paths
from secex_firstboot.contract.parameters import LOGIN, value
from secex_firstboot.ignition import checks, config, merge, openpgp, ownership, specification, transport
from secex_firstboot.ignition.signers import Signers
from secex_firstboot.storage import disk


class DecryptConfig(Step):
    name = "config"
    summary = "decrypt the Ignition config and hand it to Ignition"
    stage = Stage.CONFIG

    def observe(self, context: Context) -> Status:
        if context.phase is Phase.PROVISIONED:
            return done("provisioned before; Ignition does not run again")
        if exists(places.IGNITION_USER_CONFIG) and not exists(paths.PRIVATE_KEY):
            if context.phase is Phase.COMMITTED:
                devices = ownership.device_numbers(disk.find_disk().device)
                checks.stored(places.IGNITION_USER_CONFIG.read_bytes(), devices)
            return done("Ignition has the config; the private key is gone")
        if exists(places.CONFIG_REFUSED):
            raise Refusal(*json.loads(places.CONFIG_REFUSED.read_bytes()))
        if not exists(paths.PRIVATE_KEY):
            raise Refusal(
                "SX-STEP-05",
                f"the initramfs has no private key {paths.PRIVATE_KEY}",
                "build the SE-ready image with the key that configs are encrypted to",
            )
        value(context.command_line, LOGIN)
        config_disk = disk.find_by_serial(paths.CONFIG_DISK_SERIAL)
        return ready(f"decrypt the Ignition config on {config_disk}; {_whose(_signers())}")

    def perform(self, context: Context) -> None:
        try:
            message = openpgp.read_message(disk.find_by_serial(paths.CONFIG_DISK_SERIAL))
            signers = _signers()
            plain = openpgp.decrypt(message, paths.PRIVATE_KEY, Path(tempfile.gettempdir()), signers)
            memory.stir(paths.PRIVATE_KEY.read_bytes(), plain)
            _check(plain)
            if signers is None:
                context.warn(_whose(signers))
            _forbid_local_login(context)
            write_private(places.IGNITION_USER_CONFIG, plain)
        except FirstbootError as error:
            write_private(places.CONFIG_REFUSED, json.dumps([error.id, error.message, error.cure]).encode())
            raise
        finally:
            paths.PRIVATE_KEY.unlink(missing_ok=True)


def _signers() -> Signers | None:
    return Signers.of_image(paths.CONFIG_SIGNERS)


def _whose(signers: Signers | None) -> str:
    if signers is None:
        return "the image names no signers, so anybody can send it a config"
    for_it = ", for this image," if signers.bound else ""
    return f"a config is signed{for_it} by one of {', '.join(signers.keys) or 'nobody'}"


def _check(plain: bytes) -> None:
    """Raises the one Refusal of a config that decrypted: the console, which is the host's, shows why.

    And another for a reference of it, or of a config in it, that the host can change: once Ignition has
    merged them, such a replacement is not named any more, and of two references to one source one counts.
    """
    try:
        version = config.parse(plain).ignition.version
        specification.check(version, specification.newest_known())
        _, elsewhere = merge.read(plain)
    except Refusal:
        raise openpgp.refused() from None
    transport.check_references(elsewhere)


def _forbid_local_login(context: Context) -> None:
    """Give Ignition a base config that masks the logins on consoles; the user's config is merged into it."""
    if value(context.command_line, LOGIN):
        context.say(f"WARNING: {LOGIN}: a login on the console, which is the host's, is not masked")
    else:
        write_private(
            places.IGNITION_BASE_CONFIGS / paths.NO_LOCAL_LOGIN.name, paths.NO_LOCAL_LOGIN.read_bytes()
        )
