"""An Ignition config: its fields, all that the specification has, and how they are read.

Names and meanings are those of Ignition's configuration specification 3.x
(https://coreos.github.io/ignition/configuration-v3_4/; newest fields: 3.7 experimental). What is right and
what is not in a config that has these fields: ``validity``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, get_args, get_origin

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

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.contract.paths import (
    HOST_KEY_PREFIX,
    RECOVERY_KEYS,
    SYSTEM_CERTIFICATES,
    SYSTEM_HOST_KEYS,
)
from secex_firstboot.ignition import go_json

_HOST_KEY = re.compile(re.escape(f"{SYSTEM_HOST_KEYS}/{HOST_KEY_PREFIX}") + r"[^/]*", re.DOTALL)
_CERTIFICATE = re.compile(re.escape(str(SYSTEM_CERTIFICATES)) + r"/[^/]*\.(crt|crl)", re.DOTALL)
_RECOVERY_KEY = re.compile(re.escape(str(RECOVERY_KEYS)) + r"/[^/]+\.asc", re.DOTALL)

# The config that Ignition itself leaves merged has the newest version it knows, an "-experimental" one.
_SPEC_3 = re.compile(r"3\.(0|[1-9][0-9]{0,3})\.0(-experimental)?")
_A_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}(-experimental)?")

_IN_JSON = {"list_type": "Input should be a valid array", "model_type": "Input should be an object"}

_DAY = 86_400  # seconds; longer than anybody waits, and short enough for every timer below us
_KERNEL_ARGUMENTS = 256  # of each kind

_Path = Annotated[str, Field(max_length=4095)]  # Linux, limits.h: PATH_MAX, less the NUL


class Structure(BaseModel):
    """``KEY`` is the field by which Ignition tells whether two of one list are the same (config/merge).

    ``PLAIN`` are those fields with a default here that are no pointers in Ignition (config/v3_4/types).
    """

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,  # for our own code: of a JSON text, the decoder leaves the aliases alone
        hide_input_in_errors=True,
    )
    KEY: ClassVar[str] = ""
    APPENDED: ClassVar[frozenset[str]] = frozenset()
    SHARED: ClassVar[frozenset[str]] = frozenset()
    PLAIN: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def key(cls, value: Mapping[str, Any]) -> str:
        return str(value.get(cls.KEY, ""))

    @model_validator(mode="before")
    @classmethod
    def null_means_absent(cls, data: Any) -> Any:
        return (
            {key: value for key, value in data.items() if value is not None}
            if isinstance(data, dict)
            else data
        )


class Header(Structure):
    KEY: ClassVar[str] = "name"
    name: str
    value: str | None = None


class Verification(Structure):
    hash: str | None = None  # "sha256-HEX" or "sha512-HEX", of the decompressed content


class Resource(Structure):
    """Some content and where it comes from."""

    KEY: ClassVar[str] = "source"
    source: str | None = None
    compression: str | None = None
    http_headers: list[Header] = []
    verification: Verification = Verification()


class Timeouts(Structure):
    """In seconds; 0 means none."""

    http_response_headers: int = Field(default=10, ge=0, le=_DAY)
    http_total: int = Field(default=0, ge=0, le=_DAY)


class Tls(Structure):
    certificate_authorities: list[Resource] = []


class Security(Structure):
    tls: Tls = Tls()


class Proxy(Structure):
    http_proxy: str | None = None
    https_proxy: str | None = None
    no_proxy: list[str] = []


class References(Structure):
    """Other configs: to be merged into this one, or to take its place."""

    merge: list[Resource] = []
    replace: Resource = Resource()


class IgnitionSection(Structure):
    version: str
    config: References = References()
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


class Partition(Structure):
    PLAIN: ClassVar[frozenset[str]] = frozenset({"number"})
    label: str | None = None
    number: int = 0  # 0: the next that is free
    guid: str | None = None
    type_guid: str | None = None
    resize: bool | None = None
    should_exist: bool | None = None
    size_mib: int | None = Field(default=None, alias="sizeMiB")
    start_mib: int | None = Field(default=None, alias="startMiB")
    wipe_partition_entry: bool | None = None

    @classmethod
    def key(cls, value: Mapping[str, Any]) -> str:
        if value.get("number"):
            return f"number:{value['number']}"
        return f"label:{value['label']}" if "label" in value else ""


class Disk(Structure):
    KEY: ClassVar[str] = "device"
    device: _Path
    partitions: list[Partition] = []
    wipe_table: bool | None = None


class Raid(Structure):
    KEY: ClassVar[str] = "name"
    PLAIN: ClassVar[frozenset[str]] = frozenset({"name"})
    APPENDED: ClassVar[frozenset[str]] = frozenset({"options"})
    devices: list[_Path] = []
    level: str | None = None
    name: str = ""
    options: list[str] = []
    spares: int | None = None


class Tang(Structure):
    KEY: ClassVar[str] = "url"
    PLAIN: ClassVar[frozenset[str]] = frozenset({"url"})
    url: str = ""
    thumbprint: str | None = None
    advertisement: str | None = None


class ClevisCustom(Structure):
    pin: str | None = None
    config: str | None = None
    needs_network: bool | None = None


class Clevis(Structure):
    custom: ClevisCustom = ClevisCustom()
    tang: list[Tang] = []
    threshold: int | None = None
    tpm2: bool | None = None

    @property
    def is_present(self) -> bool:
        return bool(self.custom.pin or self.tang or self.tpm2 or self.threshold)


class Cex(Structure):
    enabled: bool | None = None


class Luks(Structure):
    KEY: ClassVar[str] = "name"
    APPENDED: ClassVar[frozenset[str]] = frozenset({"options", "openOptions"})
    name: str
    device: _Path | None = None
    label: str | None = None
    uuid: str | None = None
    key_file: Resource = Resource()
    clevis: Clevis = Clevis()
    cex: Cex = Cex()
    options: list[str] = []
    open_options: list[str] = []
    discard: bool | None = None
    wipe_volume: bool | None = None

    @property
    def can_be_made_twice(self) -> bool:
        """Ignition (internal/exec/stages/disks/luks.go) takes a volume again only if it has its key."""
        return bool(self.wipe_volume or (self.key_file.source and not self.clevis.is_present))


class Filesystem(Structure):
    """``path`` is where it is mounted while Ignition writes files."""

    KEY: ClassVar[str] = "device"
    APPENDED: ClassVar[frozenset[str]] = frozenset({"options", "mountOptions"})
    device: _Path
    path: _Path | None = None
    format: str | None = None
    label: str | None = None
    uuid: str | None = None
    mount_options: list[str] = []
    options: list[str] = []
    wipe_filesystem: bool | None = None


class Owner(Structure):
    id: int | None = None
    name: str | None = None


class Node(Structure):
    """A file, directory or link. With ``overwrite``, what is in its place is deleted first."""

    KEY: ClassVar[str] = "path"
    path: _Path
    overwrite: bool | None = None
    user: Owner = Owner()
    group: Owner = Owner()


class DirectoryEntry(Node):
    mode: int | None = None


class Link(Node):
    target: _Path = ""
    hard: bool | None = None


class FileEntry(Node):
    APPENDED: ClassVar[frozenset[str]] = frozenset({"append"})
    mode: int | None = None
    contents: Resource = Resource()
    append: list[Resource] = []

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


class Storage(Structure):
    SHARED: ClassVar[frozenset[str]] = frozenset({"directories", "files", "links"})
    disks: list[Disk] = []
    raid: list[Raid] = []
    luks: list[Luks] = []
    filesystems: list[Filesystem] = []
    files: list[FileEntry] = []
    directories: list[DirectoryEntry] = []
    links: list[Link] = []


class Dropin(Structure):
    KEY: ClassVar[str] = "name"
    name: str
    contents: str | None = None


class Unit(Structure):
    """``mask`` is None where the config does not say."""

    KEY: ClassVar[str] = "name"
    name: str
    contents: str | None = None
    dropins: list[Dropin] = []
    enabled: bool | None = None
    mask: bool | None = None


class Systemd(Structure):
    units: list[Unit] = []


class User(Structure):
    KEY: ClassVar[str] = "name"
    name: str
    gecos: str | None = None
    groups: list[str] = []
    home_dir: _Path | None = None
    no_create_home: bool | None = None
    no_log_init: bool | None = None
    no_user_group: bool | None = None
    password_hash: str | None = None
    primary_group: str | None = None
    ssh_authorized_keys: list[str] = []
    shell: str | None = None
    should_exist: bool | None = None
    system: bool | None = None
    uid: int | None = None


class Group(Structure):
    KEY: ClassVar[str] = "name"
    name: str
    gid: int | None = None
    password_hash: str | None = None
    should_exist: bool | None = None
    system: bool | None = None


class Passwd(Structure):
    users: list[User] = []
    groups: list[Group] = []


class KernelArguments(Structure):
    """Each item may hold several arguments."""

    SHARED: ClassVar[frozenset[str]] = frozenset({"shouldExist", "shouldNotExist"})
    should_exist: list[str] = Field(default=[], max_length=_KERNEL_ARGUMENTS)
    should_not_exist: list[str] = Field(default=[], max_length=_KERNEL_ARGUMENTS)


class Config(Structure):
    ignition: IgnitionSection
    storage: Storage = Storage()
    systemd: Systemd = Systemd()
    passwd: Passwd = Passwd()
    kernel_arguments: KernelArguments = KernelArguments()


@functools.cache
def shape(model: type[Structure]) -> go_json.Shape:
    """What Ignition's own structure is like, as its JSON reader sees it."""
    fields = {}
    for name, field in model.model_fields.items():
        kinds = [kind for kind in get_args(field.annotation) or [field.annotation] if kind is not type(None)]
        inner = kinds[0] if isinstance(kinds[0], type) and issubclass(kinds[0], Structure) else None
        fields[field.alias or name] = go_json.Field(
            shape(inner) if inner else None,
            many=get_origin(field.annotation) is list,
            optional=inner is None and not field.is_required() and name not in model.PLAIN,
        )
    return go_json.Shape(fields, model.key, model.APPENDED, model.SHARED)


def parse(text: bytes) -> Config:
    """Raises Refusal naming the place of the first thing wrong, never its value: that may be a secret."""
    return of_fields(fields_of(text))


def parse_merged(text: bytes) -> Config:
    """As ``parse``, of what Ignition has merged: a field unknown here is one of a newer Ignition's."""
    decoder = go_json.Decoder()
    config = of_fields(fields_of(text, decoder))
    if decoder.unknown:
        raise Refusal(
            "SX-CONFIG-02",
            f"Ignition's merged config has {decoder.unknown[0]}, and first boot does not know what that does",
            "build the image with a newer secex-firstboot, or an older Ignition",
        )
    return config


def fields_of(text: bytes, decoder: go_json.Decoder | None = None) -> Any:
    """What Ignition reads in a config: dicts with the fields' exact names. Raises Refusal."""
    try:
        return (decoder or go_json.Decoder()).decode(text, shape(Config))
    except ValueError:
        raise _invalid("Invalid JSON") from None


def of_fields(fields: Any) -> Config:
    try:
        return Config.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where, what = _json_path(first["loc"]), _IN_JSON.get(first["type"], first["msg"])
        raise _invalid(f"{where}: {what}" if where else what) from None


def without_references(merged: bytes) -> bytes:
    """The merged config without the references that are merged into it: they are not fetched again."""
    config = json.loads(merged)
    config["ignition"].pop("config", None)
    return json.dumps(config, ensure_ascii=False, separators=(",", ":")).encode()


def _invalid(what: str) -> Refusal:
    cure = "make the config with butane, for specification 3, and encrypt it again"
    return Refusal("SX-CONFIG-03", f"the Ignition config is not valid: {what}", cure)


def _json_path(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).lstrip(".")


def host_keys(config: Config) -> list[FileEntry]:
    """The files that are host-key documents, in the config's order."""
    return _files(config, _HOST_KEY)


def certificates(config: Config) -> list[FileEntry]:
    """The files with the certificates and revocation lists that prove the host-key documents genuine."""
    return _files(config, _CERTIFICATE)


def recovery_keys(config: Config) -> list[FileEntry]:
    """The files that are the owner's recovery keys."""
    return _files(config, _RECOVERY_KEY)


def is_host_key(entry: FileEntry) -> bool:
    return bool(_HOST_KEY.fullmatch(entry.path))


def is_certificate(entry: FileEntry) -> bool:
    return bool(_CERTIFICATE.fullmatch(entry.path))


def is_recovery_key(entry: FileEntry) -> bool:
    return bool(_RECOVERY_KEY.fullmatch(entry.path))


def _files(config: Config, path: re.Pattern[str]) -> list[FileEntry]:
    entries = []
    for index, entry in enumerate(config.storage.files):
        if not path.fullmatch(entry.path):
            continue
        if not entry.path.isprintable():
            raise Refusal(
                "SX-CONFIG-04", f"storage.files[{index}].path has unprintable characters", "rename the file"
            )
        entries.append(entry)
    return entries
