"""A root made by ostree: a commit of a repository, deployed, with the /boot that libostree makes for it.

By ostree(1) itself, in the way that ostree-admin(1) describes.
"""

from __future__ import annotations

import re
from pathlib import Path

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import is_directory
from secex_firstboot.basic.process import ToolError, run
from secex_firstboot.builder.programs import run_counted
from secex_firstboot.builder.volumes import Content

_COMMIT = re.compile(r"[0-9a-f]{64}")
_SE = "se"  # libostree mounts partition se there, where it makes boot images


def deploy(context: Context, repository: Path, ref: str, stateroot: str, root: Path) -> None:
    """Make the directory ``root``, a physical root with one deployment of ``ref``, and /boot in it.

    ``stateroot``: empty for the first part of ``ref``. Raises Refusal for what is no repository with it.
    """
    if not is_directory(repository / "objects"):
        raise Refusal("SX-BUILD-65", f"{repository} is no ostree repository", "give one, or leave out --ref")
    stateroot = stateroot or ref.partition("/")[0]
    if _COMMIT.fullmatch(stateroot):
        raise Refusal("SX-BUILD-66", "a commit has no name for its stateroot", "give one: --stateroot NAME")
    sysroot, repo = f"--sysroot={root}", f"--repo={root / 'ostree/repo'}"
    (root / "boot").mkdir(parents=True)
    (root / _SE).mkdir()
    run(["ostree", "admin", "init-fs", root])
    run(["ostree", "admin", "os-init", stateroot, sysroot])
    # On s390x libostree would run zipl for this machine.
    run(["ostree", repo, "config", "set", "sysroot.bootloader", "none"])
    run(["ostree", repo, "config", "set", "sysroot.bootprefix", "true"])
    try:
        pull: list[str | Path] = ["ostree", repo, "pull-local", repository, ref]
        run_counted(context, "copy the commit", pull, Content.of(repository / "objects").size)
        context.say(f"deploying {ref}")
        run(["ostree", "admin", "deploy", sysroot, f"--os={stateroot}", "--no-prune", ref])
    except ToolError as error:
        raise Refusal(
            "SX-BUILD-67", f"{ref} of {repository} cannot be deployed: {error.message}", "see ostree(1)"
        ) from None
    run(["ostree", repo, "config", "unset", "sysroot.bootloader"])
    for deployment in root.glob("ostree/deploy/*/deploy/*.*/"):  # else nothing here removes it again
        run(["chattr", "-i", deployment], ok=(0, 1))  # where a file system has no such flag
