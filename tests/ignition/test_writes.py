"""Every field of the specification that ends up as a path is asked about; the table of them is complete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition import go_json, ownership
from secex_firstboot.ignition.config import Config, parse, shape

UP = "../../.."  # from /etc/systemd/system


def one(section: str, kind: str, **entry: Any) -> dict[str, Any]:
    return {section: {kind: [entry]}}


def unit(**entry: Any) -> dict[str, Any]:
    return one("systemd", "units", **({"name": "a.service"} | entry))


LUKS = {"name": "data", "device": "/dev/vdb", "wipeVolume": True}

# Field: a config in which it leads to what first boot owns, and the place that the refusal names.
PATHS: dict[str, tuple[dict[str, Any], str]] = {
    "storage.files[].path": (one("storage", "files", path="/boot/x"), "storage.files[0].path"),
    "storage.directories[].path": (
        one("storage", "directories", path="/etc/luks"),
        "storage.directories[0].path",
    ),
    "storage.links[].path": (
        one("storage", "links", path="/.secex-firstboot", target="/srv"),
        "storage.links[0].path",
    ),
    "storage.links[].target": (
        one("storage", "links", path="/srv/x", target="/etc/luks/root", hard=True),
        "storage.links[0].target",
    ),
    "storage.filesystems[].path": (
        one("storage", "filesystems", device="/dev/vdb", format="xfs", path="/boot"),
        "storage.filesystems[0].path",
    ),
    "storage.filesystems[].device": (
        one("storage", "filesystems", device="/dev/mapper/root", format="xfs"),
        "storage.filesystems[0].device",
    ),
    "storage.disks[].device": (
        one("storage", "disks", device="/dev/mapper/root"),
        "storage.disks[0].device",
    ),
    "storage.raid[].devices[]": (
        one("storage", "raid", name="a", level="raid1", devices=["/dev/mapper/root"]),
        "storage.raid[0].devices[0]",
    ),
    "storage.luks[].device": (
        one("storage", "luks", **(LUKS | {"device": "/dev/mapper/root"})),
        "storage.luks[0].device",
    ),
    "storage.luks[].name": (one("storage", "luks", **(LUKS | {"name": "sealed"})), "storage.luks[0].name"),
    # These are names below /dev/disk: by-label, by-partlabel.
    "storage.luks[].label": (one("storage", "luks", **LUKS, label="root"), "storage.luks[0].label"),
    "storage.filesystems[].label": (
        one("storage", "filesystems", device="/dev/vdb", format="xfs", label="boot"),
        "storage.filesystems[0].label",
    ),
    "storage.disks[].partitions[].label": (
        one("storage", "disks", device="/dev/vdb", partitions=[{"label": "se"}]),
        "storage.disks[0].partitions[0].label",
    ),
    "systemd.units[].name": (
        unit(name=f"{UP}/boot/loader/entries/zz.service", contents="[Unit]"),
        "systemd.units[0].name",
    ),
    "systemd.units[].dropins[].name": (
        unit(dropins=[{"name": f"../{UP}/boot/loader/entries/zz.conf", "contents": "options x"}]),
        "systemd.units[0].dropins[0].name",
    ),
    "passwd.users[].name": (one("passwd", "users", name="../etc/luks"), "passwd.users[0].name"),
    "passwd.users[].homeDir": (
        one("passwd", "users", name="a", homeDir="/etc/luks/a"),
        "passwd.users[0].homeDir",
    ),
}

RESOURCES = (
    *("ignition.config.merge[]", "ignition.config.replace", "storage.luks[].keyFile"),
    *(
        "ignition.security.tls.certificateAuthorities[]",
        "storage.files[].contents",
        "storage.files[].append[]",
    ),
)
# What Ignition fetches, hands to programs as they are, or writes as content.
NO_PATHS = {
    *(
        f"{resource}.{field}"
        for resource in RESOURCES
        for field in (
            "source",
            "compression",
            "verification.hash",
            "httpHeaders[].name",
            "httpHeaders[].value",
        )
    ),
    *(
        "ignition.version",
        "ignition.proxy.httpProxy",
        "ignition.proxy.httpsProxy",
        "ignition.proxy.noProxy[]",
    ),
    *("kernelArguments.shouldExist[]", "kernelArguments.shouldNotExist[]"),
    *("storage.disks[].partitions[].guid", "storage.disks[].partitions[].typeGuid"),
    *("storage.raid[].name", "storage.raid[].level", "storage.raid[].options[]"),  # /dev/md/NAME
    *("storage.luks[].uuid", "storage.luks[].options[]", "storage.luks[].openOptions[]"),
    *(f"storage.luks[].clevis.tang[].{field}" for field in ("url", "thumbprint", "advertisement")),
    *("storage.luks[].clevis.custom.pin", "storage.luks[].clevis.custom.config"),
    *(f"storage.filesystems[].{field}" for field in ("format", "uuid", "mountOptions[]", "options[]")),
    *(
        f"storage.{kind}[].{who}.name"
        for kind in ("files", "directories", "links")
        for who in ("user", "group")
    ),
    *("systemd.units[].contents", "systemd.units[].dropins[].contents"),
    *(f"passwd.users[].{field}" for field in ("gecos", "passwordHash", "primaryGroup", "groups[]", "shell")),
    *("passwd.users[].sshAuthorizedKeys[]", "passwd.groups[].name", "passwd.groups[].passwordHash"),
}
NUMBERS_AND_TRUTHS = {
    *("mode", "overwrite", "hard", "id", "uid", "gid", "system", "shouldExist", "noCreateHome", "noLogInit"),
    *("noUserGroup", "enabled", "mask", "wipeTable", "number", "resize", "sizeMiB", "startMiB", "spares"),
    *("wipePartitionEntry", "threshold", "tpm2", "needsNetwork", "wipeVolume", "discard", "wipeFilesystem"),
    *("httpResponseHeaders", "httpTotal"),
}


def leaves(kind: go_json.Shape, place: str = "") -> Iterator[str]:
    for name, field in kind.fields.items():
        where = f"{place}.{name}".lstrip(".") + ("[]" if field.many else "")
        if field.shape:
            yield from leaves(field.shape, where)
        else:
            yield where


def test_each_field_of_the_specification_is_known_as_a_path_or_as_none() -> None:
    fields = set(leaves(shape(Config)))
    texts = {field for field in fields if field.rpartition(".")[2] not in NUMBERS_AND_TRUTHS}
    assert texts == PATHS.keys() | NO_PATHS
    assert not PATHS.keys() & NO_PATHS


@pytest.mark.parametrize("field", PATHS)
def test_a_field_that_ends_up_as_a_path_is_refused_where_it_leads_to_what_is_owned(field: str) -> None:
    sections, place = PATHS[field]
    config = parse(json.dumps({"ignition": {"version": "3.3.0"}} | sections).encode())
    with pytest.raises(Refusal) as refusal:
        ownership.check(config, devices=())
    assert refusal.value.message.removeprefix("the Ignition config's ").split()[0] == place
    assert refusal.value.cure
