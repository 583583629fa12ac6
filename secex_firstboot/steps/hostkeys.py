"""hostkeys: fetch the host-key documents that the merged config names, and check each."""

from __future__ import annotations

from pathlib import PurePosixPath

from secex_firstboot import paths
from secex_firstboot.errors import Refusal
from secex_firstboot.files import write_private
from secex_firstboot.hostkeys import document, fetch
from secex_firstboot.hostkeys.download import Network
from secex_firstboot.ignition import config
from secex_firstboot.step import Context, Phase, Stage, Status, Step, done, ready, waiting


class HostKeys(Step):
    name = "hostkeys"
    summary = "fetch and check the host-key documents"
    stage = Stage.PROVISION

    def observe(self, context: Context) -> Status:
        if context.phase is Phase.PROVISIONED:
            return done(f"documents in {paths.SYSTEM_HOST_KEYS}")
        if context.phase is Phase.COMMITTED:
            return done(f"{len(list(paths.HOST_KEYS.iterdir()))} documents in the plan")
        if not paths.IGNITION_MERGED_CONFIG.exists():
            return waiting("Ignition merges the config first")
        entries = config.host_keys(config.parse(paths.IGNITION_MERGED_CONFIG.read_bytes()))
        if not entries:
            raise Refusal(
                "the Ignition config names no host key",
                "add a storage.files entry with a path /etc/se-hostkeys/ibm-z-hostkey-NAME",
            )
        names = [PurePosixPath(entry.path).name for entry in entries]
        if all((paths.HOST_KEYS / name).exists() for name in names):
            return done(f"{len(names)} documents: {', '.join(names)}")
        return ready(f"fetch {', '.join(names)}")

    def perform(self, context: Context) -> None:
        merged = config.parse(paths.IGNITION_MERGED_CONFIG.read_bytes())
        documents = {}
        for entry in config.host_keys(merged):
            name = PurePosixPath(entry.path).name
            content = fetch.fetch(entry, merged, Network(), on_attempt=context.say)
            documents[name] = (content, document.parse(name, content))
        for name, (content, parsed) in documents.items():
            context.say(f"host key {name}: SHA-256 {document.key_hash(parsed).hex()}")
            write_private(paths.HOST_KEYS / name, content)
