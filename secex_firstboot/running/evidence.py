"""What this guest tells of its boot images: ``secex evidence``."""

from __future__ import annotations

from base64 import b64decode

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.contract.boot_image import Image
from secex_firstboot.contract.evidence import BootImage, Evidence
from secex_firstboot.roots import system_image
from secex_firstboot.roots.kinds import Root
from secex_firstboot.running import system
from secex_firstboot.sdboot import image


def gather(context: Context, root: Root) -> Evidence:
    """Raises FirstbootError if nothing is known of them."""
    images = system_image.images(root)
    if not images:
        raise FirstbootError(
            "SX-EVIDENCE-02", "there is no record of the boot images", "secex update makes one"
        )
    origin = system_image.origin(root)
    return Evidence(
        running=system.generation(context) or None,
        images=tuple(_told(each) for each in images.there),
        root_hashes=origin.root_hashes if origin else {},
    )


def _told(each: Image) -> BootImage:
    keys = image.header_of(b64decode(each.header)).key_slots if each.header else ()
    return BootImage(
        generation=each.generation,
        state=each.state,
        kernel=each.kernel,
        command_line=each.command_line,
        header=each.header,
        host_keys=tuple(key.hex() for key in keys),
        inputs=each.inputs,
    )
