"""An SE-ready image, from a root file system to the files that are published: ``secex build``."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.files import sha256
from secex_firstboot.builder import layout, ostree, outputs, rules, sealing, tree, volumes
from secex_firstboot.builder.layout import MIB
from secex_firstboot.builder.outputs import Outputs, Pieces
from secex_firstboot.builder.recipe import Recipe
from secex_firstboot.builder.sealing import Sealing, Unsealed
from secex_firstboot.builder.volumes import Content, Same
from secex_firstboot.contract.metadata import BootEntry, Metadata, Partition, Volume
from secex_firstboot.contract.partitions import HASH_TREES, LAYOUT, VOLUMES
from secex_firstboot.sdboot import boot_entry

_KERNELS = 3  # that /boot has room for, with their initramfs: a life of updates
_ROOT_FREE = 64 * MIB  # the root file system grows at first boot


def build(context: Context, recipe: Recipe, target: Outputs, *, sealed: bool = True) -> Metadata:
    """Make the image of ``recipe``; unless ``sealed``, all but what is encrypted (then: ``secex seal``).

    Raises Refusal for what makes no image. Nothing is there under the names of ``target`` before it is
    complete, and what was there before is replaced only then.
    """
    same = Same.of(dict(os.environ), time.time())
    os.umask(0o022)  # of what is made in the tree, whoever builds
    with outputs.working(target) as work:
        wanted = Sealing.of(context, recipe, work) if sealed else None
        unsealed = Build(context, recipe, same, work).unsealed()
        if not wanted:
            return outputs.write(context, unsealed.pieces, unsealed.metadata, target, work)
        return sealing.finish(context, unsealed, wanted, target=target, same=same, work=work)


@dataclass(frozen=True)
class Build:
    """What comes before sealing. ``work``: a private directory."""

    context: Context
    recipe: Recipe
    same: Same
    work: Path

    def prepare(self, root: Path) -> str:
        """Make the directory ``root`` with what is to be in the image; the version of secex-firstboot in it.

        Raises Refusal.
        """
        if self.recipe.ref:
            ostree.deploy(self.context, self.recipe.source, self.recipe.ref, self.recipe.stateroot, root)
        else:
            tree.unpack(self.context, self.recipe.source, root)
        rules.check(
            self.context,
            root,
            more_options=self.recipe.options,
            strict_options=self.recipe.strict_options,
            file_system=self.recipe.file_system,
        )
        kind = rules.kind_of(root)
        sealing.keep_loaders(kind, root / "boot")
        if self.recipe.sizes.se is not None:
            sealing.check_room(boot_entry.find(root / "boot"), self.recipe.sizes.se * MIB)
        return rules.agent_version(kind)

    def unsealed(self) -> Unsealed:
        root, boot = self.work / "root", self.work / "boot"
        agent = self.prepare(root)
        (root / "boot").rename(boot)
        (root / "boot").mkdir()
        for directory in (root, boot):
            volumes.settle_times(directory, self.same)
        made = {"boot": self._boot(boot), "root": self._root(root)}
        shutil.rmtree(root)
        entry = boot_entry.find(boot)
        where = layout.lay_out(
            {name: each.size for name, each in made.items()},
            sealing.boot_image_size([entry.linux, *entry.initrd]),
            self.recipe.sizes,
        )
        pieces = Pieces.of(where, self.work, self.same)
        for name in VOLUMES:
            pieces.partitions.update({name: self.data(name), HASH_TREES[name]: self._tree(name)})
        metadata = Metadata(
            disk_size=where.disk_size,
            partitions=tuple(
                Partition(
                    number=each.number,
                    name=each.name,
                    start=where.regions[each.name].start,
                    size=where.regions[each.name].size,
                )
                for each in LAYOUT
            ),
            volumes=made,
            boot_entry=BootEntry(
                release=entry.release,
                kernel=sha256(entry.linux),
                initramfs=tuple(map(sha256, entry.initrd)),
                options=entry.options,
            ),
            agent=agent,
        )
        return Unsealed(pieces, boot, metadata)

    def _boot(self, directory: Path) -> Volume:
        sizes = self.recipe.sizes
        content = Content.of(directory)
        entry = boot_entry.find(directory)
        free = (_KERNELS - 1) * sum(path.stat().st_size for path in (entry.linux, *entry.initrd))
        free = free if sizes.boot_free is None else sizes.boot_free * MIB
        size = max(sizes.boot * MIB, volumes.file_system_size("ext4", content, free))
        return self._volume("boot", directory, content, "ext4", size)

    def _root(self, directory: Path) -> Volume:
        sizes, kind = self.recipe.sizes, self.recipe.file_system
        content = Content.of(directory)
        free = _ROOT_FREE if sizes.root_free is None else sizes.root_free * MIB
        size = max(sizes.root * MIB, volumes.file_system_size(kind, content, free))
        return self._volume("root", directory, content, kind, size)

    def _volume(
        self, name: str, directory: Path, content: Content, kind: Literal["ext4", "xfs"], size: int
    ) -> Volume:
        size = layout.in_mib(size) * MIB
        self.make_file_system(name, directory, content, kind, size)
        data, tree = self.data(name), self._tree(name)
        root_hash = volumes.make_tree(self.context, data, tree, name=name, size=size, same=self.same)
        return Volume(file_system=kind, size=size, root_hash=root_hash)

    def make_file_system(self, name: str, directory: Path, content: Content, kind: str, size: int) -> None:
        """Fill ``data(name)`` with ``size`` bytes."""
        make = volumes.make_xfs if kind == "xfs" else volumes.make_ext4
        make(self.context, self.data(name), directory, content, label=name, size=size, same=self.same)

    def data(self, name: str) -> Path:
        return self.work / f"{name}.img"

    def _tree(self, name: str) -> Path:
        return self.work / f"{name}.tree"
