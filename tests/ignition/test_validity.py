"""What Ignition could not do is refused by its place in the config; the neighbour case passes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from typing import Any

import pytest

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition import validity
from secex_firstboot.ignition.config import parse

NO_LOCAL_LOGIN = "dracut/no-local-login.ign"


def check(ignition: dict[str, Any] | None = None, **sections: Any) -> None:
    section = {"version": "3.4.0-experimental"} | (ignition or {})
    validity.check(parse(json.dumps({"ignition": section, **sections}).encode()))


def refused(**sections: Any) -> str:
    with pytest.raises(Refusal) as refusal:
        check(**sections)
    assert refusal.value.cure
    return refusal.value.message.removeprefix("the Ignition config's ")


def files(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"files": list(entries), **more}


def unit(name: str, *dropins: str) -> dict[str, Any]:
    return {"units": [{"name": name, "dropins": [{"name": dropin, "contents": ""} for dropin in dropins]}]}


LONG = "n" * 255


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a.service",
            "getty@.service",
            "getty@tty1.service",
            r"etc-my\x2ddir.mount",
            "-.mount",
            "a:b_c.socket",
        ),
        *("a.b.timer", "n" * 247 + ".service"),
    ],
)
def test_names_of_units_are_accepted(name: str) -> None:
    check(systemd=unit(name))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "a",
            ".service",
            "@.service",
            "a.snapshot",
            "a.conf",
            "a service.service",
            "é.service",
        ),
        *("../a.service", "a/b.service", "/a.service", "../../../boot/loader/entries/zz.service"),
        *("a.service\n", "a\n.service", "a\0.service", "n" * 248 + ".service", "a.service/../b.service"),
    ],
)
def test_what_is_no_name_of_a_unit_is_refused(name: str) -> None:
    check(systemd=unit("a.service"))
    assert refused(systemd=unit(name)).startswith("systemd.units[0].name is no name of a unit")


def test_names_of_drop_ins_are_accepted() -> None:
    check(systemd=unit("a.service", "x.conf", "10-é ü.conf", "a..conf", "n" * 250 + ".conf"))


@pytest.mark.parametrize(
    "name",
    [
        *("", ".conf", "x", "x.service", "../../../../boot/loader/entries/zz.conf", "/x.conf", "a/x.conf"),
        *("..conf", "x.conf\n", "x\0.conf", "n" * 251 + ".conf", "é" * 126 + ".conf"),
    ],
)
def test_what_is_no_name_of_a_drop_in_is_refused(name: str) -> None:
    assert refused(systemd=unit("a.service", "x.conf", name)).startswith(
        "systemd.units[0].dropins[1].name is no name of a drop-in"
    )


def test_a_unit_whose_drop_ins_would_have_too_long_a_directory_is_refused() -> None:
    name = "n" * 246 + ".service"
    check(systemd=unit(name))
    check(systemd=unit(name[1:], "x.conf"))
    assert refused(systemd=unit(name, "x.conf")).startswith("systemd.units[0].name is too long")


@pytest.mark.parametrize("path", ["a", "", "/a/", "//a", "/a//b", "/a/./b", "/a/../b", "/."])
def test_paths_are_absolute_and_simple(path: str) -> None:
    assert refused(storage=files({"path": path})).startswith("storage.files[0].path is not an absolute path")
    directories = [{"path": "/a"}, {"path": path}]
    assert refused(storage={"directories": directories}).startswith("storage.directories[1].path")
    assert refused(storage={"links": [{"path": path, "target": "/x"}]}).startswith("storage.links[0].path")
    assert refused(storage={"disks": [{"device": path}]}).startswith("storage.disks[0].device")
    raid = [{"name": "a", "level": "raid1", "devices": ["/dev/a", path]}]
    assert refused(storage={"raid": raid}).startswith("storage.raid[0].devices[1]")
    assert refused(storage={"luks": [{"name": "a", "device": path}]}).startswith("storage.luks[0].device")
    assert refused(storage={"filesystems": [{"device": path}]}).startswith("storage.filesystems[0].device")
    if path:
        given = {"device": "/dev/a", "format": "xfs", "path": path}
        assert refused(storage={"filesystems": [given]}).startswith("storage.filesystems[0].path")


def test_usual_paths_are_accepted() -> None:
    check(
        storage=files(
            {"path": "/etc/my file.é"},
            {"path": f"/srv/{LONG}"},
            directories=[{"path": "/"}],
            links=[{"path": "/etc/localtime", "target": "../usr/share/zoneinfo/UTC"}],
            filesystems=[
                {"device": "/dev/disk/by-label/a", "format": "xfs", "path": "/var"},
                {"device": "/dev/disk/by-label/b", "format": "swap", "path": ""},
            ],
        )
    )


@pytest.mark.parametrize("path", [f"/srv/{LONG}n", "/srv/" + "é" * 128, "/srv/a\0b", "/" + "a/" * 2044 + "b"])
def test_names_that_no_file_can_have_are_refused(path: str) -> None:
    assert refused(storage=files({"path": path})).startswith("storage.files[0].path")
    assert refused(storage={"directories": [{"path": path}]}).startswith("storage.directories[0].path")
    assert refused(passwd={"users": [{"name": "a", "homeDir": path}]}).startswith("passwd.users[0].homeDir")


@pytest.mark.parametrize("target", ["", "a\0b", "é" * 2048])
def test_a_link_leads_to_a_path(target: str) -> None:
    check(storage={"links": [{"path": "/a", "target": "a" * 4095}]})
    assert refused(storage={"links": [{"path": "/a", "target": target}]}).startswith(
        "storage.links[0].target is no path"
    )


def test_modes_are_modes() -> None:
    check(storage=files({"path": "/a", "mode": 0o7777}, directories=[{"path": "/b", "mode": 0}]))
    for mode in (-1, 0o10000):
        assert refused(storage=files({"path": "/a", "mode": mode})).startswith("storage.files[0].mode")
        directories = [{"path": "/a", "mode": mode}]
        assert refused(storage={"directories": directories}).startswith("storage.directories[0].mode")


def test_an_owner_is_named_once() -> None:
    check(storage=files({"path": "/a", "user": {"id": 0}, "group": {"name": "root"}}))
    assert refused(storage=files({"path": "/a", "user": {"id": 0, "name": "a"}})).startswith(
        "storage.files[0].user has both"
    )
    assert refused(storage=files({"path": "/a", "group": {"id": 2**32}})).startswith(
        "storage.files[0].group.id"
    )


def test_overwrite_needs_contents() -> None:
    check(storage=files({"path": "/a", "overwrite": True, "contents": {"source": ""}}))
    assert refused(storage=files({"path": "/a", "overwrite": True})).startswith("storage.files[0].overwrite")


@pytest.mark.parametrize("name", ["core", "_x", "a.b", "a-b", "A$", "a@b", "a" * 256, "é", "1a"])
def test_names_of_accounts_are_accepted(name: str) -> None:
    users = [{"name": name, "groups": [name], "primaryGroup": name}]
    check(passwd={"users": users, "groups": [{"name": name}]})


@pytest.mark.parametrize(
    "name", ["", "a:b", "a b", "a,b", "a/b", "../a", "-a", "+a", "~a", ".", "..", "a\n", "a\0", "a" * 257]
)
def test_what_no_useradd_takes_for_a_name_is_refused(name: str) -> None:
    assert refused(passwd={"users": [{"name": "core"}, {"name": name}]}).startswith("passwd.users[1].name")
    assert refused(passwd={"groups": [{"name": name}]}).startswith("passwd.groups[0].name")
    assert refused(passwd={"users": [{"name": "core", "groups": [name]}]}).startswith(
        "passwd.users[0] has a group"
    )


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("gecos", "A person, of é", "a:b"),
        ("gecos", "", "a\nb"),
        ("shell", "/bin/sh", "sh"),
        ("homeDir", "/srv/a", "srv/a"),
        ("homeDir", "/", "/a:b"),
        ("passwordHash", "$6$x$y/.", "x:y"),
        ("uid", 0, -1),
        ("uid", 2**32 - 2, 2**32 - 1),
        ("primaryGroup", "users", "a:b"),
    ],
)
def test_what_cannot_stand_in_passwd_is_refused(field: str, good: Any, bad: Any) -> None:
    check(passwd={"users": [{"name": "a", field: good}]})
    assert refused(passwd={"users": [{"name": "a", field: bad}]}).startswith("passwd.users[0]")


@pytest.mark.parametrize("name", ["data", "a.b-c_d", "a@b", "n" * 127])
def test_names_of_luks_volumes_are_accepted(name: str) -> None:
    check(storage={"luks": [{"name": name, "device": "/dev/vdb"}]})


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a b", "a\tb", "#a", "control", "é", "a\nb", "n" * 128]
)
def test_names_that_crypttab_or_device_mapper_cannot_have_are_refused(name: str) -> None:
    luks = [{"name": name, "device": "/dev/vdb"}]
    assert refused(storage={"luks": luks}).startswith("storage.luks[0].name is no name of a volume")


def test_what_is_given_twice_is_refused() -> None:
    for sections, place in (
        ({"storage": files({"path": "/a"}, {"path": "/a"})}, "storage.files[1]"),
        ({"storage": files({"path": "/a"}, directories=[{"path": "/a"}])}, "storage."),
        ({"storage": {"disks": [{"device": "/dev/a"}, {"device": "/dev/a"}]}}, "storage.disks[1]"),
        (
            {"storage": {"filesystems": [{"device": "/dev/a"}, {"device": "/dev/a"}]}},
            "storage.filesystems[1]",
        ),
        ({"systemd": {"units": [{"name": "a.service"}, {"name": "a.service"}]}}, "systemd.units[1]"),
        ({"systemd": unit("a.service", "x.conf", "x.conf")}, "systemd.units[0].dropins[1]"),
        ({"passwd": {"users": [{"name": "a"}, {"name": "a"}]}}, "passwd.users[1]"),
        ({"passwd": {"users": [{"name": "a", "sshAuthorizedKeys": ["k", "k"]}]}}, "passwd.users[0].sshAuth"),
        ({"kernelArguments": {"shouldExist": ["a"], "shouldNotExist": ["a"]}}, "kernelArguments.should"),
        (
            {"storage": {"disks": [{"device": "/dev/a", "partitions": [{"number": 1}, {"number": 1}]}]}},
            "storage.disks[0].partitions[1]",
        ),
    ):
        assert refused(**sections).startswith(place)
        assert "is in the config twice" in refused(**sections)


def test_what_only_looks_alike_is_not_given_twice() -> None:
    part = {"source": "data:,x"}
    check(
        storage=files({"path": "/a", "append": [part, part]}, {"path": "/b", "append": [part]})
        | {"disks": [{"device": "/dev/a", "partitions": [{"number": 1}, {"label": "x"}, {"label": "y"}]}]},
        systemd={"units": [{"name": "a.service"}, {"name": "a.socket"}]},
        passwd={"users": [{"name": "a", "primaryGroup": "a"}], "groups": [{"name": "a"}]},
        kernelArguments={"shouldExist": ["a"], "shouldNotExist": ["b"]},
    )


PLAIN = b"from the user\n"
DIGEST = hashlib.sha256(PLAIN).hexdigest()


def data(raw: bytes) -> str:
    return f"data:;base64,{base64.b64encode(raw).decode()}"


@pytest.mark.parametrize(
    "resource",
    [
        {"source": data(PLAIN)},
        {"source": data(PLAIN), "verification": {"hash": f"sha256-{DIGEST}"}},
        {"source": data(gzip.compress(PLAIN)), "compression": "gzip"},
        {"source": "https://a.example/b", "httpHeaders": [{"name": "A", "value": "b"}]},
        {
            "source": "https://a.example/b",
            "verification": {"hash": f"sha256-{'0' * 64}"},
            "compression": "gzip",
        },
        {"source": "s3://bucket/a"},
        {"source": "tftp://a.example/b"},
    ],
)
def test_content_as_it_should_be_is_accepted(resource: dict[str, Any]) -> None:
    check(
        storage=files({"path": "/a", "contents": resource, "append": [resource]})
        | {"luks": [{"name": "a", "device": "/dev/vdb", "keyFile": resource}]},
        ignition={
            "config": {"merge": [resource]},
            "security": {"tls": {"certificateAuthorities": [resource]}},
        },
    )


@pytest.mark.parametrize(
    "resource",
    [
        {"source": data(PLAIN), "verification": {"hash": f"sha256-{'0' * 64}"}},
        {"source": data(PLAIN), "verification": {"hash": f"md5-{'0' * 32}"}},
        {"source": "https://a.example/b", "verification": {"hash": "sha256-00"}},
        {"source": data(gzip.compress(PLAIN)[:-2]), "compression": "gzip"},
        {"source": data(PLAIN), "compression": "gzip"},
        {"source": data(PLAIN), "compression": "xz"},
        {"source": "data:;base64,YQ"},
        {"source": "DATA:,a"},
        {"source": "a"},
        {"source": "/a"},
        {"source": "file:///a"},
        {"source": "ftp://a.example/b"},
        {"source": "https://[a/b"},
        {"source": data(PLAIN), "httpHeaders": [{"name": "A", "value": "b"}]},
    ],
)
def test_content_that_ignition_could_not_write_is_refused_wherever_it_stands(
    resource: dict[str, Any],
) -> None:
    assert refused(storage=files({"path": "/a", "contents": resource})).startswith(
        "storage.files[0].contents "
    )
    appended = {"path": "/a", "append": [{"source": "data:,a"}, resource]}
    assert refused(storage=files(appended)).startswith("storage.files[0].append[1] ")
    luks = [{"name": "a", "device": "/dev/vdb", "keyFile": resource}]
    assert refused(storage={"luks": luks}).startswith("storage.luks[0].keyFile ")
    authorities = {"security": {"tls": {"certificateAuthorities": [resource]}}}
    assert refused(ignition=authorities).startswith("ignition.security.tls.certificateAuthorities[0] ")
    assert refused(ignition={"config": {"merge": [resource]}}).startswith("ignition.config.merge[0] ")
    assert refused(ignition={"config": {"replace": resource}}).startswith("ignition.config.replace ")


def test_a_refusal_does_not_quote_the_content() -> None:
    assert "hunter2" not in refused(storage=files({"path": "/a", "contents": {"source": "hunter2://x"}}))
    assert "hunter2" not in refused(storage=files({"path": "/a", "contents": {"source": "data:hunter2"}}))


def test_a_part_needs_a_source_and_a_hash_does_too() -> None:
    check(storage=files({"path": "/a"}, {"path": "/b", "contents": {"source": ""}}))
    assert refused(storage=files({"path": "/a", "append": [{}]})).startswith(
        "storage.files[0].append[0] has no"
    )
    hashed = {"path": "/a", "contents": {"verification": {"hash": f"sha256-{DIGEST}"}}}
    assert refused(storage=files(hashed)).startswith("storage.files[0].contents has a hash and no source")


def test_all_content_together_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validity, "INLINE_LIMIT", 10)
    two = [{"path": f"/{name}", "contents": {"source": "data:,12345"}} for name in "ab"]
    check(storage=files(*two))
    assert refused(storage=files(*two, {"path": "/c", "contents": {"source": "data:,1"}})).startswith(
        "storage.files[2].contents is larger"
    )


MOUNT = {"device": "/dev/a", "format": "xfs"}


@pytest.mark.parametrize(
    "storage",
    [
        files({"path": "/a"}, {"path": "/b/c"}, directories=[{"path": "/b"}, {"path": "/b/d"}]),
        files({"path": "/ab"}, {"path": "/a/b"}),
        files({"path": "/lib/x"}, {"path": "/usr/lib/y"}),
        {"links": [{"path": "/srv/a", "target": "b"}, {"path": "/srv/b", "target": "/srv/c"}]},
        files({"path": "/var/a"}, filesystems=[MOUNT | {"path": "/var"}], directories=[{"path": "/var"}]),
        files({"path": "/a"}, links=[{"path": "/b", "target": "/a", "hard": True}]),
        files(
            {"path": "/var/a"},
            links=[{"path": "/var/b", "target": "/var/a", "hard": True}],
            filesystems=[MOUNT | {"path": "/var"}],
        ),
        {"links": [{"path": "/b", "target": "/of/the/image", "hard": True}]},
    ],
)
def test_what_goes_together_is_accepted(storage: dict[str, Any]) -> None:
    check(storage=storage)


@pytest.mark.parametrize(
    ("storage", "place"),
    [
        (files({"path": "/a"}, {"path": "/a/b"}), "storage.files[1].path lies below"),
        (files({"path": "/a/b/c/d"}, {"path": "/a"}), "storage.files[0].path lies below"),
        (files({"path": "/a"}, directories=[{"path": "/a/b"}]), "storage.directories[0].path lies below"),
        (
            files({"path": "/a"}, links=[{"path": "/a/b", "target": "c"}]),
            "storage.links[0].path lies below",
        ),
        (
            files({"path": "/a"}, filesystems=[MOUNT | {"path": "/a/b"}]),
            "storage.filesystems[0].path lies below",
        ),
        (files({"path": "/lib/x"}, {"path": "/usr/lib/x"}), "storage.files[1].path cannot be made"),
        (
            files({"path": "/bin/x"}, directories=[{"path": "/usr/bin/x"}]),
            "storage.files[0].path cannot be made",
        ),
        (files({"path": "/usr/lib/x"}, {"path": "/lib/x/y"}), "storage.files[1].path lies below"),
        (
            files({"path": "/var"}, filesystems=[MOUNT | {"path": "/var"}]),
            "storage.files[0].path cannot be made",
        ),
        (
            {
                "links": [{"path": "/var", "target": "/x", "overwrite": True}],
                "filesystems": [MOUNT | {"path": "/var"}],
            },
            "storage.links[0].path cannot be made",
        ),
        ({"filesystems": [MOUNT | {"path": "/lib/x"}]}, "storage.filesystems[0].path leads through a link"),
        (
            files({"path": "/srv/a/b"}, links=[{"path": "/srv/a", "target": "/c"}]),
            "storage.files[0].path leads through a link",
        ),
        (
            {"links": [{"path": "/a", "target": "/c"}, {"path": "/a/b/c", "target": "/d"}]},
            "storage.links[1].path leads through a link",
        ),
        (files({"path": "/etc/.ignition-result.json"}), "storage.files[0].path is where Ignition itself"),
        (
            {"directories": [{"path": "/etc/.ignition-result.json/x"}]},
            "storage.directories[0].path is where Ignition itself",
        ),
        (
            {"directories": [{"path": "/a"}], "links": [{"path": "/b", "target": "/a", "hard": True}]},
            "storage.links[0].target is no file",
        ),
        (
            files({"path": "/a"}, links=[{"path": "/b", "target": "/a/c", "hard": True}]),
            "storage.links[0].target is no file",
        ),
        (
            files(
                {"path": "/a"},
                links=[{"path": "/var/b", "target": "/a", "hard": True}],
                filesystems=[MOUNT | {"path": "/var"}],
            ),
            "storage.links[0].target is no file",
        ),
    ],
)
def test_what_cannot_go_together_is_refused(storage: dict[str, Any], place: str) -> None:
    assert refused(storage=storage).startswith(place)


UNITS = "/etc/systemd/system"


def test_units_take_the_place_of_files_and_not_of_directories() -> None:
    written = {"units": [{"name": "a.service", "contents": "[Unit]"}]}
    masked = {"units": [{"name": "a.service", "mask": True}]}
    for systemd in (written, masked):
        check(storage=files({"path": f"{UNITS}/a.service"}), systemd=systemd)
        check(storage={"links": [{"path": f"{UNITS}/a.service", "target": "b"}]}, systemd=systemd)
    check(storage={"directories": [{"path": f"{UNITS}/a.service"}]}, systemd=masked)
    check(systemd={"units": [{"name": "a.service", "contents": "[Unit]", "mask": True, "enabled": True}]})
    assert refused(storage={"directories": [{"path": f"{UNITS}/a.service"}]}, systemd=written).startswith(
        "systemd.units[0].name cannot be made"
    )
    for path in (UNITS, f"{UNITS}/a.service.d"):
        assert refused(storage=files({"path": path}), systemd=unit("a.service", "x.conf")).startswith(
            "systemd.units[0].dropins[0].name lies below"
        )
    enabled = {"units": [{"name": name, "enabled": True} for name in ("a.service", "b.service")]}
    check(storage=files({"path": "/etc/systemd/system-preset/20-ignition.preset"}), systemd=enabled)
    assert refused(storage=files({"path": "/etc/systemd/system-preset"}), systemd=enabled).startswith(
        "systemd.units[0].enabled lies below"
    )


def test_homes_are_directories() -> None:
    users = {"users": [{"name": "a", "homeDir": "/srv/a", "sshAuthorizedKeys": ["k"]}]}
    check(storage={"directories": [{"path": "/srv/a", "mode": 448}]}, passwd=users)
    check(storage={"filesystems": [MOUNT | {"path": "/srv"}]}, passwd=users)
    check(storage=files({"path": "/srv/a"}), passwd={"users": [users["users"][0] | {"noCreateHome": True}]})
    assert refused(storage=files({"path": "/srv/a"}), passwd=users).startswith("storage.files[0].path cannot")
    assert refused(storage=files({"path": "/srv"}), passwd=users).startswith(
        "passwd.users[0].homeDir lies below"
    )


def test_useradd_makes_homes_before_ignition_makes_files_and_links() -> None:
    users = {"users": [{"name": "root"}, {"name": "a"}, {"name": "b", "homeDir": "/srv/b"}]}
    link = {"path": "/home/a", "target": "/mnt/a"}
    below = [{"path": "/home/a/.profile"}, {"path": "/srv/b/x"}, {"path": "/home/c"}, {"path": "/home/root"}]
    check(storage=files(*below) | {"directories": [{"path": "/home/a"}]}, passwd=users)
    check(storage={"links": [{"path": "/home/a/link", "target": "/mnt"}]}, passwd=users)
    check(storage={"links": [link]}, passwd={"users": [{"name": "a", "noCreateHome": True}]})
    check(storage={"links": [link]}, passwd={"users": [{"name": "a", "shouldExist": False}]})
    check(storage={"links": [link | {"overwrite": True}]}, passwd=users)
    assert refused(storage={"links": [link]}, passwd=users) == (
        "storage.links[0].path is the home of a user of the config"
    )
    assert refused(storage=files({"path": "/home/a"}), passwd=users).startswith(
        "storage.files[0].path is the"
    )
    assert refused(storage={"links": [{"path": "/srv", "target": "/mnt"}]}, passwd=users) == (
        "passwd.users[2].homeDir leads through a link"
    )


def test_a_number_is_one_accounts() -> None:
    gone = {"name": "c", "uid": 1500, "shouldExist": False}
    users = [{"name": "a", "uid": 1500}, {"name": "b", "uid": 1501}, {"name": "n"}, {"name": "m"}, gone]
    check(passwd={"users": users, "groups": [{"name": "x", "gid": 1500}, {"name": "y", "gid": 1501}]})
    assert refused(passwd={"users": [*users, {"name": "d", "uid": 1500}]}).startswith("passwd.users[5].uid ")
    groups = [{"name": "x", "gid": 1500}, {"name": "y", "gid": 1500}]
    assert refused(passwd={"groups": groups}).startswith("passwd.groups[1].gid ")


def test_useradd_makes_a_users_group_itself() -> None:
    """Debian's says: group a exists - if you want to add this user to that group, use -g."""
    groups = [{"name": "a"}]
    assert refused(passwd={"users": [{"name": "b"}, {"name": "a"}], "groups": groups}) == (
        "passwd.users[1] has the name of a group of the config"
    )
    for fields in ({"primaryGroup": "a"}, {"noUserGroup": True}, {"shouldExist": False}):
        check(passwd={"users": [{"name": "a"} | fields], "groups": groups})
    check(passwd={"users": [{"name": "a"}], "groups": [{"name": "a", "shouldExist": False}]})


UUID = "0A1b2c3d-0000-4000-8000-0123456789ab"


@pytest.mark.parametrize(
    ("fields", "good"),
    [
        ({"format": "ext4", "uuid": UUID}, True),
        ({"format": "xfs", "uuid": ""}, True),
        ({"format": "ext4", "uuid": "random"}, True),
        ({"format": "vfat", "uuid": "1234-ABCD"}, True),
        ({"format": "vfat", "uuid": "1234abcd"}, True),
        ({"format": "none", "uuid": "x"}, True),
        ({"format": "ext4", "uuid": "nonsense"}, False),
        ({"format": "xfs", "uuid": UUID[:-1]}, False),
        ({"format": "swap", "uuid": UUID.replace("-", "")}, False),
        ({"format": "vfat", "uuid": UUID}, False),
    ],
)
def test_the_uuid_of_a_file_system_is_one(fields: dict[str, Any], good: bool) -> None:
    filesystems = {"filesystems": [{"device": "/dev/vdb", **fields}]}
    if good:
        check(storage=filesystems)
    else:
        assert refused(storage=filesystems).startswith("storage.filesystems[0].uuid is no ")


def test_the_uuid_of_a_luks_volume_is_one() -> None:
    volume = {"name": "a", "device": "/dev/vdb"}
    check(storage={"luks": [volume | {"uuid": UUID}]})
    assert refused(storage={"luks": [volume | {"uuid": "nonsense"}]}) == "storage.luks[0].uuid is no UUID"


def test_our_own_base_config_is_valid(pytestconfig: pytest.Config) -> None:
    validity.check(parse((pytestconfig.rootpath / NO_LOCAL_LOGIN).read_bytes()))
