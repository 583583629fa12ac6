"""hostkeys: fetch the host-key documents that the merged config names, and prove each genuine.

The rest of what the config asks of the agent is looked at here, too: Ignition has merged it just before. And
the owner's recovery keys, if it names any.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from secex_firstboot.agent import places
from secex_firstboot.agent.step import Context, Phase, Stage, Status, Step, done, ready, waiting
from secex_firstboot.basic.files import exists, write_private
from secex_firstboot.contract import parameters, paths
from secex_firstboot.hostkeys import document, proof, recovery_keys
from secex_firstboot.ignition import checks, config, ownership
from secex_firstboot.sdboot import contents
from secex_firstboot.storage import disk


class HostKeys(Step):
    name = "hostkeys"
    summary = "fetch the host-key documents and prove them genuine"
    stage = Stage.PROVISION

    def observe(self, context: Context) -> Status:
        if context.phase is Phase.PROVISIONED:
            return done(f"documents in {paths.SYSTEM_HOST_KEYS}")
        if context.phase is Phase.COMMITTED:
            return done(f"{len(list(places.HOST_KEYS.iterdir()))} documents in the plan")
        if not exists(places.IGNITION_MERGED_CONFIG):
            return waiting("Ignition merges the config first")
        parameters.value(context.command_line, parameters.HOSTKEY_VERIFY)
        merged = config.parse(places.IGNITION_MERGED_CONFIG.read_bytes())
        names = [entry.name for entry in proof.named(merged)]
        keys = [entry.name for entry in config.recovery_keys(merged)]
        files = [
            *(places.HOST_KEYS / name for name in names),
            *(places.RECOVERY_KEYS / name for name in keys),
        ]
        told = f"{', '.join(names)}; {recovery_keys.told(keys)}"
        return done(f"{len(names)} documents: {told}") if all(map(exists, files)) else ready(f"fetch {told}")

    def perform(self, context: Context) -> None:
        devices = ownership.device_numbers(disk.find_disk().device)
        merged = checks.merged(places.IGNITION_MERGED_CONFIG.read_bytes(), devices, context.warn)
        how = parameters.value(context.command_line, parameters.HOSTKEY_VERIFY)
        documents = proof.Proof(merged, paths.CERTIFICATES, how, places.RUNTIME, context).documents()
        contents.check_documents(documents)
        document.check_header_version(documents, places.THIS_HOSTS_HEADER_VERSIONS)
        document.check_this_host(documents, document.this_host_key_hashes(places.THIS_HOSTS_KEYS))
        keys = recovery_keys.of_config(merged, context.say, Path(tempfile.gettempdir()))
        for key in keys:
            write_private(places.RECOVERY_KEYS / key.name, key.armored)
        for each in documents:
            write_private(places.HOST_KEYS / each.name, each.pem)
