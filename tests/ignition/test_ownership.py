"""What a config may not touch, and its neighbours that it may."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition import ownership
from secex_firstboot.ignition.config import parse

# What /dev leads to on the machine of these tests: a system disk with a mapping on it, and another disk.
SYSTEM = {
    "/dev/vda": 1,
    "/dev/vda4": 2,
    "/dev/disk/by-id/virtio-system": 1,
    "/dev/disk/by-path/ccw-0.0.0001": 1,
    "/dev/disk/by-partlabel/boot": 2,
    "/dev/disk/by-uuid/11-22": 2,
    "/dev/mapper/root_verity": 3,
}
NUMBERS = SYSTEM | {"/dev/vdb": 9, "/dev/disk/by-id/virtio-data": 9}


def check(**storage: Any) -> None:
    text = json.dumps({"ignition": {"version": "3.4.0-experimental"}, "storage": storage})
    ownership.check(parse(text.encode()), set(SYSTEM.values()), NUMBERS.get)


def luks(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "device": "/dev/vdb", "wipeVolume": True} | more


def refused(**storage: Any) -> str:
    with pytest.raises(Refusal) as refusal:
        check(**storage)
    assert refusal.value.cure
    return refusal.value.message.removeprefix("the Ignition config's ").split()[0]


@pytest.mark.parametrize("device", [*SYSTEM, "/dev/dm-0", "/dev/mapper/root", "/dev/mapper/boot_dif"])
def test_the_system_disk_is_refused_wherever_a_device_is_named(device: str) -> None:
    assert refused(disks=[{"device": "/dev/vdb"}, {"device": device}]) == "storage.disks[1].device"
    raid = [{"name": "data", "level": "raid1", "devices": ["/dev/vdb", device]}]
    assert refused(raid=raid) == "storage.raid[0].devices[1]"
    assert refused(luks=[{"name": "data", "device": device}]) == "storage.luks[0].device"
    assert refused(filesystems=[{"device": device, "format": "xfs"}]) == "storage.filesystems[0].device"


@pytest.mark.parametrize(
    "device",
    [
        "/dev/disk/by-label/crypt_rootfs",
        "/dev/disk/by-label/se",
        "/dev/disk/by-partlabel/roothash",
        "/dev/disk/by-id/dm-name-root",
        "/dev/disk/by-id/dm-uuid-CRYPT-LUKS2-00-boot",
        "/dev/disk/by-id/dm-uuid-CRYPT-VERITY-8c9d0e-root_verity",
        "/dev/disk/by-id/dm-uuid-CRYPT-INTEGRITY-root_dif",
        "/dev/disk/by-id/dm-name-boot_dif",
        "//dev/./mapper/../mapper/root/",
    ],
)
def test_a_name_that_will_lead_to_the_system_disk_is_refused_before_it_does(device: str) -> None:
    assert refused(filesystems=[{"device": device, "format": "xfs"}]) == "storage.filesystems[0].device"


def test_other_disks_are_the_configs() -> None:
    check(
        disks=[{"device": "/dev/disk/by-id/virtio-data", "partitions": [{"number": 1, "label": "data"}]}],
        raid=[{"name": "md", "level": "raid1", "devices": ["/dev/vdb", "/dev/vdc"]}],
        luks=[luks("data", label="data", device="/dev/disk/by-partlabel/data")],
        filesystems=[
            {"device": "/dev/mapper/data", "format": "xfs", "path": "/var", "label": "var"},
            {"device": "/dev/disk/by-id/dm-name-data", "format": "swap"},
            {"device": "/dev/disk/by-id/dm-name-my-root", "format": "swap"},
            {"device": "/dev/disk/by-id/dm-name-data-boot", "format": "swap"},
            {"device": "/dev/disk/by-id/dm-name-luks-root", "format": "swap", "path": ""},
            {"device": "/dev/disk/by-id/dm-uuid-CRYPT-LUKS2-00-my-root", "format": "xfs"},
            {"device": "/dev/disk/by-id/dm-uuid-CRYPT-INTEGRITY-my-root", "format": "xfs"},
            {"device": "/dev/disk/by-id/dm-uuid-LVM-00-root", "format": "xfs"},
            {"device": "/dev/md/md", "format": "ext4", "path": "/srv/boot"},
            {"device": "/dev/disk/by-label/data", "format": "ext4", "path": "/etc/containers"},
        ],
    )


@pytest.mark.parametrize("label", ["se", "boot", "root", "boothash", "roothash"])
def test_the_labels_of_our_partitions_are_refused_on_other_disks(label: str) -> None:
    partitions = [{"label": "data"}, {"number": 2}, {"label": label}]
    place = refused(disks=[{"device": "/dev/vdb", "partitions": partitions}])
    assert place == "storage.disks[0].partitions[2].label"


@pytest.mark.parametrize("label", ["se", "boot", "root", "crypt_bootfs", "crypt_rootfs"])
def test_the_labels_of_our_file_systems_and_volumes_are_refused(label: str) -> None:
    filesystem = {"device": "/dev/vdb", "format": "xfs", "label": label}
    assert refused(filesystems=[filesystem]) == "storage.filesystems[0].label"
    assert refused(luks=[luks("data", label=label)]) == "storage.luks[0].label"


@pytest.mark.parametrize(
    "name",
    [
        *("boot", "root", "boot_dif", "root_dif", "root_verity", "root.header", "boot.header"),
        *("sealed", "sealed.new", "generations", "boot-image", "data.new", "data.header"),
    ],
)
def test_the_names_of_our_volumes_are_refused(name: str) -> None:
    assert refused(luks=[luks(name)]) == "storage.luks[0].name"


@pytest.mark.parametrize(
    "name", ["data", "rootless", "bootstrap", "data_root", "unsealed", "header", "a.b", "data.mode"]
)
def test_other_names_of_volumes_are_accepted(name: str) -> None:
    check(luks=[luks(name)])


# As Ignition leaves them in a merged config: structures that say nothing are there, too.
EMPTY = {"keyFile": {"verification": {}}, "clevis": {"custom": {}, "tang": []}}
KEY_FILE = {"keyFile": {"source": "data:,secret"}}


@pytest.mark.parametrize(
    "made_again", [{"wipeVolume": True} | EMPTY, EMPTY | KEY_FILE, {"wipeVolume": False} | KEY_FILE]
)
def test_a_volume_that_a_second_try_can_make_again_is_accepted(made_again: dict[str, object]) -> None:
    check(luks=[{"name": "data", "device": "/dev/vdb"} | made_again])


@pytest.mark.parametrize(
    "made_once",
    [{}, EMPTY, {"wipeVolume": False}, KEY_FILE | {"clevis": {"tang": [{"url": "http://x"}]}}],
)
def test_a_volume_that_a_second_try_could_not_make_is_refused(made_once: dict[str, object]) -> None:
    assert refused(luks=[luks("a"), {"name": "data", "device": "/dev/vdb"} | made_once]) == (
        "storage.luks[1].wipeVolume"
    )


OURS = [
    "/etc/luks",
    "/etc/luks/root",
    "/etc/luks/data.key",
    "/etc//luks/../luks/x",
    "/etc/luks/",
    "//etc/luks/x",
    "/etc/crypttab",
    "/etc/crypttab/",
    "/etc/secex-firstboot/plan.json",
    "/usr/lib/secex-firstboot/x",
    "/lib/secex-firstboot/x",
    "/var/lib/secex-firstboot/report.json",
    "/boot",
    "/boot/extra",
    "/etc/../boot",
    "/boot/loader/entries/mine.conf",
    "/.secex-firstboot",
    "/.secex-firstboot/finished/etc/crypttab",
    "/etc/crypttab.new",
]
ABOVE_OURS = ["/", "/etc", "/usr", "/usr/lib", "/usr/../etc"]


@pytest.mark.parametrize("path", OURS)
def test_what_lies_in_our_directories_is_refused(path: str) -> None:
    assert refused(files=[{"path": "/a"}, {"path": path}]) == "storage.files[1].path"
    assert refused(files=[{"path": path, "append": [{"source": "data:,x"}]}]) == "storage.files[0].path"
    assert refused(directories=[{"path": path}]) == "storage.directories[0].path"
    assert refused(links=[{"path": path, "target": "/a"}]) == "storage.links[0].path"
    assert refused(filesystems=[{"device": "/dev/vdb", "path": path}]) == "storage.filesystems[0].path"


@pytest.mark.parametrize("path", ABOVE_OURS)
def test_what_replaces_or_hides_our_directories_is_refused(path: str) -> None:
    assert refused(links=[{"path": path, "target": "/a"}]) == "storage.links[0].path"
    assert refused(files=[{"path": path, "overwrite": True}]) == "storage.files[0].path"
    assert refused(directories=[{"path": path, "overwrite": True}]) == "storage.directories[0].path"
    assert refused(filesystems=[{"device": "/dev/vdb", "path": path}]) == "storage.filesystems[0].path"


def test_var_may_be_a_volume_but_not_a_link() -> None:
    check(filesystems=[{"device": "/dev/vdb", "path": "/var"}])
    check(filesystems=[{"device": "/dev/vdb", "path": "/var/lib"}])
    assert refused(links=[{"path": "/var/lib", "target": "/srv"}]) == "storage.links[0].path"


def test_the_mode_of_a_directory_above_ours_is_the_configs() -> None:
    check(directories=[{"path": "/etc", "mode": 493}])


@pytest.mark.parametrize(
    "path",
    [
        "/etc/luksd",
        "/etc/luks.conf",
        "/etc/crypttab.d/x",
        "/etc/secex-firstboot.config",
        "/etc/se-hostkeys/ibm-z-hostkey-a",
        "/boots",
        "/var/lib/luks",
        "/srv/etc/luks/x",
        "/etc/luks/../hosts",
    ],
)
def test_what_lies_beside_our_directories_is_accepted(path: str) -> None:
    check(files=[{"path": path}])
    check(directories=[{"path": path, "overwrite": True}])
    check(links=[{"path": path, "target": "/etc/luks/x"}])
    check(filesystems=[{"device": "/dev/vdb", "path": path}])


@pytest.mark.parametrize(
    ("links", "path"),
    [
        ({"/srv/keys": "/etc/luks"}, "/srv/keys/root"),
        ({"/srv/keys": "../etc/luks/"}, "/srv/keys/root"),
        ({"/srv/all": "/"}, "/srv/all/etc/crypttab"),
        ({"/srv/a": "/etc", "/srv/b": "a"}, "/srv/b/luks/x"),
        ({"/srv/a": "/etc/systemd"}, "/srv/a/../luks/x"),
    ],
)
def test_a_path_through_links_of_the_config_is_refused_for_where_it_leads(
    links: dict[str, str], path: str
) -> None:
    given = [{"path": link, "target": target} for link, target in links.items()]
    check(files=[{"path": "/srv/other"}], links=given)
    assert refused(files=[{"path": path}], links=given) == "storage.files[0].path"


def test_links_in_a_circle_end() -> None:
    check(files=[{"path": "/a/b/c"}], links=[{"path": "/a", "target": "b"}, {"path": "/b", "target": "a"}])


def test_the_cure_for_crypttab_is_luks() -> None:
    with pytest.raises(Refusal, match=r"storage\.luks"):
        check(files=[{"path": "/etc/crypttab"}])


def test_a_config_without_storage_is_accepted() -> None:
    check()


def test_the_numbers_of_a_disk_are_those_of_its_partitions_and_mappings_too(tmp_path: Path) -> None:
    """As sysfs has it: Documentation/ABI/stable/sysfs-block; holders are what lies on a device."""

    def device(path: Path, number: str, *holders: str, partition: bool = False) -> None:
        (path / "holders").mkdir(parents=True)
        (path / "dev").write_text(number + "\n")
        if partition:
            (path / "partition").write_text("1\n")
        for holder in holders:
            (path / "holders" / holder).mkdir()
        if path.parent != tmp_path:
            (tmp_path / path.name).symlink_to(path)

    device(tmp_path / "vda", "252:0")
    device(tmp_path / "vda/vda1", "252:1", partition=True)
    device(tmp_path / "vda/vda4", "252:4", "dm-0", "dm-1", partition=True)
    device(tmp_path / "dm-0", "253:0", "dm-1")
    device(tmp_path / "dm-1", "253:1")
    device(tmp_path / "vdb", "252:16", "dm-2")
    device(tmp_path / "dm-2", "253:2")
    (tmp_path / "vda/queue").mkdir()
    assert ownership.device_numbers(Path("/dev/vda"), tmp_path) == {
        os.makedev(252, 0),
        os.makedev(252, 1),
        os.makedev(252, 4),
        os.makedev(253, 0),
        os.makedev(253, 1),
    }


def test_only_a_block_device_has_a_number(tmp_path: Path) -> None:
    for path in ("/dev/null", str(tmp_path), str(tmp_path / "missing"), "/dev/\0", ""):
        assert ownership.device_number(path) is None


def test_a_link_has_the_number_of_its_device(tmp_path: Path) -> None:
    device = tmp_path / "device"
    try:
        os.mknod(device, 0o600 | 0o060000, os.makedev(252, 4))
    except PermissionError:
        pytest.skip("making a device node takes root")
    (tmp_path / "link").symlink_to("device")
    assert ownership.device_number(str(tmp_path / "link")) == os.makedev(252, 4)


def config_with(**sections: Any) -> None:
    text = json.dumps({"ignition": {"version": "3.4.0-experimental"}, **sections})
    ownership.check(parse(text.encode()), set(SYSTEM.values()), NUMBERS.get)


def refused_with(**sections: Any) -> str:
    with pytest.raises(Refusal) as refusal:
        config_with(**sections)
    return refusal.value.message.removeprefix("the Ignition config's ").split()[0]


def test_the_settings_are_a_regular_file_and_nothing_else() -> None:
    settings = "/etc/secex-firstboot.conf"
    check(files=[{"path": settings, "overwrite": True, "contents": {"source": "data:,x"}}])
    assert refused(files=[{"path": f"{settings}/x"}]) == "storage.files[0].path"
    assert refused(directories=[{"path": settings}]) == "storage.directories[0].path"
    assert refused(links=[{"path": settings, "target": "/srv/x"}]) == "storage.links[0].path"
    assert refused(filesystems=[{"device": "/dev/vdb", "path": settings}]) == "storage.filesystems[0].path"


SAID_OF_A_UNIT: list[dict[str, Any]] = [
    {"contents": "[Unit]\n"},
    {"mask": True},
    {"mask": False},
    {"enabled": True},
    {"enabled": False},
    {"dropins": [{"name": "x.conf", "contents": "[Service]\n"}]},
]


@pytest.mark.parametrize("said", SAID_OF_A_UNIT)
@pytest.mark.parametrize(
    "name",
    [
        "systemd-cryptsetup@root.service",
        "secex-firstboot-grow.service",
        "boot.mount",
        "dev-mapper-root.device",
    ],
)
def test_units_that_first_boot_needs_are_left_alone(name: str, said: dict[str, Any]) -> None:
    config_with(systemd={"units": [{"name": "a.service"} | said]})
    place = refused_with(systemd={"units": [{"name": "a.service"}, {"name": name} | said]})
    assert place.startswith("systemd.units[1].")


def test_files_that_are_units_are_looked_at_as_such() -> None:
    units = "/etc/systemd/system"
    for path in (
        f"{units}/secex-firstboot-grow.service",
        f"{units}/systemd-cryptsetup@boot.service.d/x.conf",
        "/lib/systemd/system/boot.mount",
        f"{units}/multi-user.target.wants/secex-firstboot-grow.service",
    ):
        assert refused(files=[{"path": path}]) == "storage.files[0].path"
        assert refused(links=[{"path": path, "target": "/dev/null"}]) == "storage.links[0].path"
    check(
        files=[{"path": f"{units}/a.service"}, {"path": f"{units}/systemd-cryptsetup@data.service.d/x.conf"}]
    )
    check(links=[{"path": f"{units}/multi-user.target.wants/a.service", "target": "/dev/null"}])


def test_homes_and_what_is_written_to_them_stay_out_of_what_is_owned() -> None:
    config_with(passwd={"users": [{"name": "core", "homeDir": "/var/home/core", "sshAuthorizedKeys": ["k"]}]})
    config_with(passwd={"users": [{"name": "svc", "homeDir": "/", "noCreateHome": True}]})
    config_with(passwd={"users": [{"name": "gone", "homeDir": "/boot", "shouldExist": False}]})
    for home in ("/boot/core", "/etc/luks", "/etc/secex-firstboot.conf", "/usr/../etc/luks/x"):
        users = [{"name": "core"}, {"name": "a", "homeDir": home, "noCreateHome": True}]
        assert refused_with(passwd={"users": users}).startswith("passwd.users[1].homeDir")
    linked = {"links": [{"path": "/srv/keys", "target": "/etc/luks"}]}
    assert refused_with(storage=linked, passwd={"users": [{"name": "a", "homeDir": "/srv/keys/a"}]})


def test_a_hard_link_to_what_is_owned_is_refused_and_a_soft_one_is_only_text() -> None:
    check(links=[{"path": "/srv/x", "target": "/etc/luks/root"}])
    check(links=[{"path": "/srv/x", "target": "/srv/y", "hard": True}])
    for target in ("/etc/luks/root", "/boot/x", "etc/crypttab", "/srv/../etc/luks/x"):
        link = {"path": "/srv/x", "target": target, "hard": True}
        assert refused(links=[link]) == "storage.links[0].target"


def test_units_through_a_link_of_the_config_are_refused_for_where_they_lead() -> None:
    unit = {"units": [{"name": "zz.service", "contents": "options x"}]}
    config_with(storage={"links": [{"path": "/etc/systemd", "target": "/srv"}]}, systemd=unit)
    linked = {"links": [{"path": "/etc/systemd/system", "target": "/boot/loader/entries"}]}
    assert refused_with(storage=linked, systemd=unit) == "systemd.units[0].name"


def test_what_opens_the_configs_own_volumes_is_left_alone() -> None:
    storage = {"luks": [luks("my-data")]}
    opens = r"systemd-cryptsetup@my\x2ddata.service"
    for name in (opens, r"dev-mapper-my\x2ddata.device"):
        config_with(systemd={"units": [{"name": name, "mask": True}]})
        assert refused_with(storage=storage, systemd={"units": [{"name": name, "mask": True}]})
    drop_in = {"path": f"/etc/systemd/system/{opens}.d/x.conf"}
    check(files=[drop_in])
    assert refused(files=[drop_in], **storage) == "storage.files[0].path"
    other = r"systemd-cryptsetup@my\x2ddat.service"
    config_with(storage=storage, systemd={"units": [{"name": other, "mask": True}]})
