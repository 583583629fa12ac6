"""What an image is made of: options of ``secex build``, or a TOML file of the same names."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.validation import first_error

_LIMIT = 1 << 20  # bytes of a recipe
_MOST_MIB = 1 << 24


def _path(value: Any) -> Any:
    if isinstance(value, str):
        if not value or "\0" in value:
            raise ValueError("this is no path")
        return Path(value)
    return value


File = Annotated[Path, BeforeValidator(_path)]
# libostree: src/libostree/ostree-core.c, OSTREE_REF_REGEXP, with room for no option
Ref = Annotated[str, StringConstraints(pattern=r"^([\w][\w.+-]*(/[\w][\w.+-]*)*)?$", max_length=200)]
Name = Annotated[str, StringConstraints(pattern=r"^([\w][\w.+-]{0,63})?$")]
MiB = Annotated[int, Field(strict=True, ge=0, le=_MOST_MIB)]


class Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
    )


class Sizes(Model):
    """In MiB. ``se``: the partition; ``boot`` and ``root``: at least the file systems, with ``…_free`` beyond
    what is in them; ``boot_room``: free space in the partition behind the file system; ``behind``: behind the
    last partition. None: what is needed for first boot and a life of updates."""

    se: MiB | None = None
    boot: MiB = 0
    boot_free: MiB | None = None
    boot_room: MiB | None = None
    root: MiB = 0
    root_free: MiB | None = None
    behind: MiB | None = None


class Trust(Model):
    """By what host-key documents are proven: the builder's own, and with ``roots`` those of the owners.

    ``roots`` are certificates of root CAs, ``certificates`` those between them and the documents.
    """

    roots: tuple[File, ...] = ()
    certificates: tuple[File, ...] = ()
    crls: tuple[File, ...] = ()
    verify: bool = True
    offline: bool = False


class Recipe(Model):
    """``source`` is a root file system with its /boot: a directory, a tar, or a disk image; with ``ref``, an
    ostree repository that has it, and ``stateroot`` is the name of what shares a /var.

    ``options`` are added to the boot entry's. ``config_key``: an OpenPGP private key; None: a fresh one.
    ``config_signers``: public keys of which one must have signed a config, ``config_bound``: for this image.
    ``keep_header`` and ``keep_cck``: see sealing.Sealing.
    """

    source: File
    ref: Ref = ""
    stateroot: Name = ""
    host_keys: tuple[File, ...] = ()
    trust: Trust = Trust()
    config_key: File | None = None
    config_signers: tuple[File, ...] = ()
    config_bound: bool = False
    keep_header: bool = False
    keep_cck: bool = False
    options: str = ""
    strict_options: bool = False
    file_system: Literal["ext4", "xfs"] = "ext4"
    sizes: Sizes = Sizes()


def read(path: Path, changes: dict[str, Any]) -> Recipe:
    """The recipe in a file, with what the command line says in place of its own. Raises Refusal.

    What it names lies beside it, unless a path is absolute.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(_LIMIT + 1)
        if len(text) > _LIMIT:
            raise Refusal("SX-BUILD-01", f"{path} is larger than a recipe may be", "check what it is")
        given = tomllib.loads(text.decode())
    except OSError as error:
        raise Refusal("SX-BUILD-02", f"{path} cannot be read: {error.strerror}", "name the recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refusal("SX-BUILD-03", f"{path} is no TOML: {error}", "correct it") from None
    for name in ("trust", "sizes"):
        if isinstance(given.get(name), dict) and name in changes:
            changes = changes | {name: given[name] | changes[name]}
    return _beside(path.parent, make(path, given | changes))


def make(shown_as: object, values: dict[str, Any]) -> Recipe:
    """Raises Refusal, which names the first wrong field."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise Refusal("SX-BUILD-04", f"{shown_as}: {first_error(error)}", "correct it") from None


def _beside(directory: Path, recipe: Recipe) -> Recipe:
    def moved(value: Any) -> Any:
        if isinstance(value, Path):
            return directory / value
        if isinstance(value, tuple):
            return tuple(map(moved, value))
        if isinstance(value, Model):
            return value.model_copy(
                update={name: moved(getattr(value, name)) for name in type(value).model_fields}
            )
        return value

    return moved(recipe)  # type: ignore[no-any-return]
