"""What the agent reads from an Ignition config, and nothing more of it.

Names and meanings are those of Ignition's configuration specification 3.x
(https://coreos.github.io/ignition/configuration-v3_3/). Whether the whole config is valid is Ignition's to
say; a field that is not here passes.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from secex_firstboot.errors import Refusal
from secex_firstboot.paths import SYSTEM_CERTIFICATES, SYSTEM_HOST_KEYS

_HOST_KEY = re.compile(re.escape(str(SYSTEM_HOST_KEYS)) + r"/ibm-z-hostkey-[^/]*", re.DOTALL)
_CERTIFICATE = re.compile(re.escape(str(SYSTEM_CERTIFICATES)) + r"/[^/]*\.(crt|crl)", re.DOTALL)

# The config that Ignition itself leaves merged has the newest version it knows, an "-experimental" one.
_SPEC_3 = re.compile(r"3\.[0-9]{1,4}\.[0-9]{1,4}(-experimental)?")
_A_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}(-experimental)?")

_DAY = 86_400  # seconds; longer than anybody waits, and short enough for every timer below us
_KERNEL_ARGUMENTS = 256  # of each kind

_Path = Annotated[str, Field(max_length=4095)]  # Linux, limits.h: PATH_MAX, less the NUL


class _Model(BaseModel):
    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def null_means_absent(cls, data: Any) -> Any:
        """As for the JSON reader of Go, in which Ignition is written."""
        return (
            {key: value for key, value in data.items() if value is not None}
            if isinstance(data, dict)
            else data
        )


class Header(_Model):
    name: str
    value: str | None = None


class Verification(_Model):
    hash: str | None = None  # "sha256-HEX" or "sha512-HEX", of the decompressed content


class Resource(_Model):
    """Some content and where it comes from."""

    source: str | None = None
    compression: str | None = None
    http_headers: list[Header] = []
    verification: Verification = Verification()


class Timeouts(_Model):
    """In seconds; 0 means none."""

    http_response_headers: int = Field(default=10, ge=0, le=_DAY)
    http_total: int = Field(default=0, ge=0, le=_DAY)


class Tls(_Model):
    certificate_authorities: list[Resource] = []


class Security(_Model):
    tls: Tls = Tls()


class Proxy(_Model):
    http_proxy: str | None = None
    https_proxy: str | None = None
    no_proxy: list[str] = []


class IgnitionSection(_Model):
    version: str
    timeouts: Timeouts = Timeouts()
    security: Security = Security()
    proxy: Proxy = Proxy()

    @field_validator("version")
    @classmethod
    def is_spec_3(cls, version: str) -> str:
        if not _SPEC_3.fullmatch(version):
            theirs = version if _A_VERSION.fullmatch(version) else "this"
            raise PydanticCustomError(
                "spec", "{theirs} is not a version of Ignition's config specification 3", {"theirs": theirs}
            )
        return version


class Partition(_Model):
    label: str | None = None


class Disk(_Model):
    device: _Path
    partitions: list[Partition] = []


class Raid(_Model):
    devices: list[_Path] = []


class Luks(_Model):
    name: str
    device: _Path | None = None
    label: str | None = None
    key_file: Resource = Resource()
    clevis: dict[str, Any] = {}
    wipe_volume: bool = False

    @property
    def can_be_made_twice(self) -> bool:
        """Ignition (internal/exec/stages/disks/luks.go) takes a volume again only if it has its key."""
        return self.wipe_volume or (self.key_file.source is not None and not _says_something(self.clevis))


def _says_something(value: Any) -> bool:
    """Whether there is more in it than the empty structures that Ignition leaves in a merged config."""
    if isinstance(value, dict):
        return any(map(_says_something, value.values()))
    return bool(value)


class Filesystem(_Model):
    """``path`` is where it is mounted while Ignition writes files."""

    device: _Path
    path: _Path | None = None
    label: str | None = None


class Node(_Model):
    """A file, directory or link. With ``overwrite``, what is in its place is deleted first."""

    path: _Path
    overwrite: bool = False


class Link(Node):
    target: _Path = ""


class FileEntry(Node):
    contents: Resource = Resource()
    append: list[Resource] = []

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


class Storage(_Model):
    disks: list[Disk] = []
    raid: list[Raid] = []
    luks: list[Luks] = []
    filesystems: list[Filesystem] = []
    files: list[FileEntry] = []
    directories: list[Node] = []
    links: list[Link] = []


class Dropin(_Model):
    name: str
    contents: str | None = None


class Unit(_Model):
    """``mask`` is None where the config does not say."""

    name: str
    mask: bool | None = None
    dropins: list[Dropin] = []


class Systemd(_Model):
    units: list[Unit] = []


class KernelArguments(_Model):
    """Each item may hold several arguments."""

    should_exist: list[str] = Field(default=[], max_length=_KERNEL_ARGUMENTS)
    should_not_exist: list[str] = Field(default=[], max_length=_KERNEL_ARGUMENTS)


class Config(_Model):
    ignition: IgnitionSection
    storage: Storage = Storage()
    systemd: Systemd = Systemd()
    kernel_arguments: KernelArguments = KernelArguments()


def parse(text: bytes) -> Config:
    """Raises Refusal naming the place of the first thing wrong, never its value: that may be a secret."""
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where, what = _json_path(first["loc"]), first["msg"]
        cure = "make the config with butane, for specification 3, and encrypt it again"
        raise Refusal(
            f"the Ignition config is not valid: {f'{where}: ' if where else ''}{what}", cure
        ) from None


def _json_path(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).lstrip(".")


def host_keys(config: Config) -> list[FileEntry]:
    """The files that are host-key documents, in the config's order."""
    return _files(config, _HOST_KEY)


def certificates(config: Config) -> list[FileEntry]:
    """The files with the certificates and revocation lists that prove the host-key documents genuine."""
    return _files(config, _CERTIFICATE)


def _files(config: Config, path: re.Pattern[str]) -> list[FileEntry]:
    entries = []
    for index, entry in enumerate(config.storage.files):
        if not path.fullmatch(entry.path):
            continue
        if not entry.path.isprintable():
            raise Refusal(f"storage.files[{index}].path has unprintable characters", "rename the file")
        entries.append(entry)
    return entries
