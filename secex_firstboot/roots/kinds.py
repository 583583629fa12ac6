"""A root file system: where on its volume that is what the system has as /, for each kind that there is.

Plain: the volume's file system is the system. Made by ostree: the system is a deployment on it, with an /etc
of its own and a /var that all deployments share (https://ostreedev.github.io/ostree/deployment/).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import ClassVar

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.basic.files import is_directory
from secex_firstboot.basic.process import run
from secex_firstboot.contract import parameters, paths

_OSTREE = "ostree/deploy"
_SYSROOT = PurePosixPath("/sysroot")  # where a system made by ostree sees its volume
_LINES_LEFT_OUT = (0, 65, 73)  # systemd-tmpfiles-setup.service, SuccessExitStatus=


@dataclass(frozen=True)
class Written:
    """A directory of the volume that Ignition writes to, and where the system has it."""

    name: str
    directory: Path
    where: PurePosixPath


@dataclass(frozen=True)
class Root(ABC):
    """``volume``: where its file system is mounted. ``system``: where the system has its /, if that is
    mounted as well."""

    volume: Path
    system: Path | None

    @abstractmethod
    def place(self, path: PurePath) -> Path:
        """Where the system's absolute ``path`` is, below /etc, /usr or /var: it may not be there."""

    def state(self, path: PurePath) -> Path:
        """Where it is of what stays when an update replaces the system as a whole."""
        return paths.below(self.volume, path)

    @property
    @abstractmethod
    def written(self) -> tuple[Written, ...]: ...

    @abstractmethod
    def for_initramfs(self, options: str) -> dict[str, bytes]:
        """Path and content of what a boot image with these options has to have of this kind."""

    @abstractmethod
    def deployment_of(self, options: str) -> str:
        """What a boot image with these options starts, see boot_image.Image."""

    def has(self, deployment: str) -> bool:
        """Whether it is still there."""
        return is_directory(self.volume / deployment)

    in_fstab: ClassVar[tuple[str, ...]]
    """What is mounted by /etc/fstab, of / and /boot."""
    has_packages: ClassVar[bool]
    """Whether packages come and go one by one, and kernels with them."""
    others_make_images: ClassVar[bool]
    """Whether somebody else makes boot images of the boot entries, and entries of entries: libostree does."""
    prepared_by: ClassVar[tuple[PurePosixPath, ...]]
    """Files of settings for who makes / of it in the initramfs: the last one that is there counts."""

    @abstractmethod
    def populate(self, system: Path) -> None:
        """Make in the system on ``system`` what Ignition expects, and it makes itself only when it runs."""


@dataclass(frozen=True)
class Plain(Root):
    in_fstab = ("/", "/boot")
    has_packages = True
    others_make_images = False
    prepared_by = ()

    def place(self, path: PurePath) -> Path:
        return paths.below(self.volume, path)

    @property
    def written(self) -> tuple[Written, ...]:
        return (Written("root", self.volume, PurePosixPath("/")),)

    def populate(self, system: Path) -> None:
        pass

    def for_initramfs(self, options: str) -> dict[str, bytes]:
        return {}

    def deployment_of(self, options: str) -> str:
        return ""


@dataclass(frozen=True)
class Ostree(Root):
    """``link``: the deployment's, from the kernel command line. In a system that runs it may be gone:
    libostree makes it anew under another name."""

    in_fstab = ("/boot",)
    has_packages = False
    others_make_images = True
    prepared_by = tuple(  # ostree-prepare-root(1)
        PurePosixPath(top, "ostree/prepare-root.conf") for top in ("/usr/lib", "/etc")
    )
    link: str

    def place(self, path: PurePath) -> Path:
        if self.system:
            return paths.below(self.system, path)
        return paths.below(self._stateroot if path.parts[1:2] == ("var",) else self.deployment, path)

    @property
    def deployment(self) -> Path:
        """The directory, below ``volume``. Raises FirstbootError if it has none, or another place."""
        top = self.volume / _OSTREE
        try:
            found = paths.below(self.volume, PurePath(self.link)).resolve(strict=True)
            inside = found.relative_to(top.resolve()).parts
        except (OSError, RuntimeError, ValueError):  # missing, a loop of links, elsewhere
            inside = ()
        if len(inside) != 3 or inside[1] != "deploy" or not is_directory(top.joinpath(*inside)):
            raise FirstbootError(
                "SX-ROOT-10",
                f"the root file system has no deployment {self.link}",
                "start one that ostree admin status shows, or build the image again",
            )
        return top.joinpath(*inside)

    @property
    def written(self) -> tuple[Written, ...]:
        return tuple(
            Written(name, top / name, PurePosixPath("/", name))
            for name, top in (("etc", self.deployment), ("var", self._stateroot))
        )

    def populate(self, system: Path) -> None:
        """What /home and its like lead to."""
        command = ["systemd-tmpfiles", f"--root={system}", "--create", "--boot", "--prefix=/var"]
        run(command, ok=_LINES_LEFT_OUT)

    def for_initramfs(self, options: str) -> dict[str, bytes]:
        """The link, and what it leads to: see dracut/keep-deployment.sh."""
        wanted = self._with(options)
        link = paths.below(self.volume, PurePath(wanted.link))
        target = os.path.relpath(wanted.deployment, link.parent)
        return {str(paths.DEPLOYMENT): f"{wanted.link} {target}\n".encode()}

    def deployment_of(self, options: str) -> str:
        return str(self._with(options).deployment.relative_to(self.volume))

    def _with(self, options: str) -> Ostree:
        return Ostree(self.volume, None, parameters.value(options, parameters.OSTREE))

    @property
    def _stateroot(self) -> Path:
        return self.deployment.parent.parent


def volume_of(system: Path, command_line: str) -> Path:
    """Where the system with its / on ``system`` sees the file system of its volume."""
    return paths.below(system, _SYSROOT) if parameters.value(command_line, parameters.OSTREE) else system


def on(volume: Path, command_line: str) -> Root:
    """The one that the boot image with this command line starts, on the file system mounted on ``volume``.

    Raises FirstbootError if there is no such deployment.
    """
    if link := parameters.value(command_line, parameters.OSTREE):
        found = Ostree(volume, None, link)
        found.deployment  # noqa: B018  # is there
        return found
    return Plain(volume, None)


def of(system: Path, command_line: str) -> Root:
    """The one that runs with this command line and has its / on ``system``."""
    link = parameters.value(command_line, parameters.OSTREE)
    volume = volume_of(system, command_line)
    return Ostree(volume, system, link) if link else Plain(volume, system)
