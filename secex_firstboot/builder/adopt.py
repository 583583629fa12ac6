"""A published image made one's own, or a build's last part done elsewhere: ``secex adopt``, ``secex seal``.

What an image has on ``boot`` and ``root`` is public and proven by its metadata's root hashes. So a new sdboot
needs no secret of who published it, and of the old one nothing is left.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.builder import boot_files, outputs, sealing, volumes
from secex_firstboot.builder.layout import Layout, Region
from secex_firstboot.builder.outputs import Outputs, Pieces
from secex_firstboot.builder.recipe import Recipe
from secex_firstboot.builder.sealing import Sealing, Unsealed
from secex_firstboot.builder.volumes import Same
from secex_firstboot.contract.metadata import Metadata
from secex_firstboot.contract.partitions import HASH_TREES, VOLUMES
from secex_firstboot.storage import disk_image

_CURE = "get image and metadata again from who published them, and give the image as it was"


def adopt(context: Context, recipe: Recipe, metadata: Metadata, target: Outputs) -> Metadata:
    """Make ``target`` of the disk image ``recipe.source``, for other hosts and with another config key.

    It has to be what its ``metadata`` say. Of the recipe only what concerns sealing counts. Raises Refusal.
    """
    same = Same.of(dict(os.environ), time.time())
    with outputs.working(target) as work:
        wanted = Sealing.of(context, recipe, work)
        unsealed = _unsealed(context, recipe.source, metadata, same, work)
        return sealing.finish(context, unsealed, wanted, target=target, same=same, work=work)


def _unsealed(context: Context, image: Path, metadata: Metadata, same: Same, work: Path) -> Unsealed:
    """Of the image only what is proven."""
    regions = {each.name: Region(each.start, each.size) for each in metadata.partitions}
    boot = work / "boot"
    with disk_image.raw(image, whole=True) as raw:
        if not disk_image.is_laid_out_as(disk_image.read(raw, image), metadata):
            raise Refusal("SX-BUILD-42", f"{image} has other partitions than the metadata say", _CURE)
        pieces = Pieces.of(Layout(regions, metadata.disk_size), work, same)
        for name in VOLUMES:
            volume, data, tree = metadata.volumes[name], work / f"{name}.img", work / f"{name}.tree"
            where = regions[HASH_TREES[name]]
            outputs.take(raw, regions[name].start, volume.size, data)
            outputs.take(raw, where.start, where.size, tree)
            proven = volumes.verify(context, data, tree, name=name, root_hash=volume.root_hash)
            if not proven:
                raise Refusal("SX-BUILD-41", f"{name} of {image} is not what the metadata say", _CURE)
            os.truncate(tree, proven.tree_bytes)  # nothing proves what is behind it
            pieces.partitions.update({name: data, HASH_TREES[name]: tree})
    boot_files.fetch(pieces.partitions["boot"], boot, sealing.LOADERS_ON_BOOT)
    return Unsealed(pieces, boot, metadata)
