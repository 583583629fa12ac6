"""The kernel arguments of the system's boot entry: ``secex kargs``."""

from __future__ import annotations

from collections.abc import Sequence

from secex_firstboot.contract import paths
from secex_firstboot.contract.command_line import parameters
from secex_firstboot.ignition import kernel_arguments
from secex_firstboot.ignition.config import KernelArguments
from secex_firstboot.roots.kinds import Root
from secex_firstboot.sdboot import boot_entry

_OPTIONS = {"shouldExist": "--append", "shouldNotExist": "--delete"}


def change(root: Root, add: Sequence[str], remove: Sequence[str]) -> list[str]:
    """Those of the boot entry that counts, once these were added and removed; a value belongs to its name.

    Raises Refusal for one that is not for a config to set either: what opens and mounts is first boot's.
    """
    entry = boot_entry.find(root.place(paths.BOOT))
    wanted = KernelArguments(should_exist=list(add), should_not_exist=list(remove))
    kernel_arguments.check(wanted, lambda kind, index: f"argument {index + 1} of {_OPTIONS[kind]}")
    options = kernel_arguments.apply(entry.options, wanted)
    if options != entry.options:
        boot_entry.set_options(root.place(paths.BOOT), entry.name, options)
    return parameters(options)
