"""What a root file system must keep to, to become a public image: looked at before anything is made of it.

What can be mended is mended, in the builder's own copy, and said; the rest is refused, all of it at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from configparser import ConfigParser
from configparser import Error as NoSettings
from pathlib import Path, PurePosixPath

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import exists, is_directory, is_regular
from secex_firstboot.builder import initramfs_files, sealing
from secex_firstboot.contract import parameters, paths
from secex_firstboot.contract.command_line import name
from secex_firstboot.contract.command_line import parameters as words
from secex_firstboot.roots import identity, kinds
from secex_firstboot.roots.kinds import Ostree, Root
from secex_firstboot.sdboot import boot_entry, image, options
from secex_firstboot.sdboot.boot_entry import BootEntry

# Beside those that no image can do without: Ignition asks no platform, and has a network for what it fetches.
_OPTIONS = (str(parameters.PLATFORM), "rd.neednet=1", "rw")
_S390X = b"S390EP"  # Linux: arch/s390/boot/head.S
_S390X_AT = 0x10008
_RELEASE = re.compile(r"[\w.+~@:-]{1,200}", re.ASCII)
_CONFIGS = ("boot/config-{}", "usr/lib/modules/{}/config", "lib/modules/{}/config")
# Linux has the option since 5.7, and does without since 6.11: it always can be a guest then.
_NO_GUEST = "# CONFIG_PROTECTED_VIRTUALIZATION_GUEST is not set"
_SINCE = (5, 7)
_PACKAGES = ("lib/python3/dist-packages", "lib/python3*/site-packages")  # below /usr
_VERSION = re.compile(r'^__version__ = "([\w.+-]{1,40})"$', re.M)
_UNITS = ("usr/lib/systemd/system", "etc/systemd/system", "lib/systemd/system")
# They do what the host says.
_HOSTS_AGENTS = (
    *(
        "qemu-guest-agent.service",
        "cloud-init.service",
        "cloud-init-main.service",
        "cloud-init-local.service",
    ),
    *("spice-vdagentd.service", "vmtoolsd.service", "open-vm-tools.service", "walinuxagent.service"),
)
# Programs of an initramfs that take the host's disks for the guest's.
_HOSTS_WAYS = frozenset(
    (
        *("lvm", "mdadm", "mdmon", "dmraid", "multipath", "multipathd", "kpartx", "iscsid", "iscsistart"),
        *("nbd-client", "mount.nfs", "mount.nfs4", "mount.cifs", "fcoemon", "systemd-repart", "btrfs"),
    )
)
# libostree: src/libotcore/otcore-prepare-root.c, src/libotutil/ot-keyfile-utils.c
_COMPOSEFS_IMAGE = PurePosixPath("/.ostree.cfs")
_YES = ("yes", "true", "1")
_NOT_IN_A_GUEST = (
    ("composefs", "enabled", ("signed", "verity")),
    ("etc", "transient", _YES),
)
_LOOKED_AT = (
    *("boot", "boot/loader", "boot/loader/entries", "etc", "etc/fstab", "etc/passwd", "etc/shadow"),
    *("etc/ssh", "usr", "usr/lib", "usr/lib/os-release", "var", "var/lib", "var/lib/dbus"),
    *("var/lib/systemd", "var/lib/NetworkManager", *_UNITS),
    *(str(path.relative_to("/")) for path in Ostree.prepared_by),
    *(f"{place}/{name}" for name, places in sealing.LOADERS_AT.items() for place in places),
)
_FILE_LIMIT = 4 << 20  # bytes
_SHOWN = 5
_VOLUMES = {"/": "/dev/mapper/root", "/boot": "/dev/mapper/boot"}


def check(
    context: Context, tree: Path, *, more_options: str, strict_options: bool, file_system: str
) -> BootEntry:
    """The boot entry of the image. Raises Refusal; if several rules are broken, each is told before."""
    root = kind_of(tree)
    _check_places(root)
    broken: list[FirstbootError] = []
    rules: list[Callable[[], None]] = [
        lambda: _mend_fstab(context, root, file_system),
        lambda: _check_accounts(root),
        lambda: _check_agents(root),
        lambda: _mend_identity(context, root),
        lambda: _check_prepared(root),
    ]
    try:
        entry = _boot_entry(context, root, more_options, strict=strict_options)
    except FirstbootError as error:
        broken.append(error)
    else:
        rules += [
            lambda: options.check(entry.options),
            lambda: _check_kernel(context, root, entry),
            lambda: _check_initramfs(entry),
        ]
    for rule in rules:
        try:
            rule()
        except FirstbootError as error:
            broken.append(error)
        except OSError as error:
            broken.append(
                Refusal("SX-BUILD-58", f"the tree cannot be looked at: {error}", "correct what is there")
            )
    if len(broken) > 1:
        for each in broken:
            context.warn(str(each))
        raise Refusal("SX-BUILD-19", f"the image breaks {len(broken)} rules", "see above, each with its cure")
    if broken:
        raise broken[0]
    return entry


def kind_of(tree: Path) -> Root:
    """Raises FirstbootError if its boot entry names a deployment that is not there."""
    boot = tree / "boot"
    made_by_ostree = is_directory(tree / "ostree/repo")
    return kinds.on(tree, boot_entry.find(boot).options if made_by_ostree else "")


def _in(root: Root, place: str) -> Path:
    """What is on boot lies below the root file system here."""
    if place.startswith("boot"):
        return root.volume / place
    return root.place(PurePosixPath("/", place))


def _check_places(root: Root) -> None:
    """Whatever is looked at or changed here is a file in the tree: a link may lead to this machine's own, and
    a device node is one."""
    for place in _LOOKED_AT:
        path = _in(root, place)
        if not _is_within(root.volume, path):
            raise Refusal(
                "SX-BUILD-29", f"/{place} of the tree is a link to outside of it", "make it a relative link"
            )
        if exists(path) and not (is_regular(path) or is_directory(path)):
            raise Refusal(
                "SX-BUILD-59", f"/{place} of the tree is neither a file nor a directory", "remove it"
            )


def _is_within(tree: Path, path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(tree.resolve())
    except (OSError, RuntimeError):  # a loop of links
        return False


# --- boot entry, kernel, initramfs -------------------------------------------------------------------------


def _boot_entry(context: Context, root: Root, more_options: str, *, strict: bool) -> BootEntry:
    """The one that counts, made if there is none, with the options that an image needs."""
    boot = _in(root, "boot")
    if not any((boot / "loader/entries").glob("*.conf")):
        _make_boot_entry(context, root)
    entry = boot_entry.find(boot)
    added = words(more_options)
    if not strict:
        there = {name(word) for word in (*words(entry.options), *added)}
        needed = (*map(str, parameters.NEEDED), *_OPTIONS)
        missing = [option for option in needed if name(option) not in there]
        if missing:
            context.say(f"added to the boot entry's options: {' '.join(missing)}")
        added += missing
    if added:
        boot_entry.set_options(boot, entry.name, boot_entry.command_line(entry.options, add=added))
    return boot_entry.find(boot)


def _make_boot_entry(context: Context, root: Root) -> None:
    boot = _in(root, "boot")
    kernels = sorted(
        path.name
        for form in boot_entry.KERNELS
        for path in boot.glob(form.format("*"))
        if path.name.isprintable() and is_regular(path)
    )
    if len(kernels) != 1:
        raise Refusal(
            "SX-BUILD-20",
            f"/boot has no boot entry, and {len(kernels)} kernels instead of one",
            "install one kernel, or write /boot/loader/entries/NAME.conf",
        )
    release = kernels[0].partition("-")[2]
    names = (form.format(release) for form in boot_entry.INITRAMFS)
    initramfs = next((name for name in names if is_regular(boot / name)), None)
    if not initramfs:
        raise Refusal(
            "SX-BUILD-21",
            f"/boot has no initramfs for the kernel {release}",
            "make one with dracut, in the tree",
        )
    context.say(f"boot entry for {kernels[0]} and {initramfs}")
    about = _in(root, "usr/lib/os-release")
    said = _read(about) if is_regular(about) else ""
    title = next(iter(re.findall(r'^PRETTY_NAME="?([^"\n]+)"?$', said, re.M)), "Linux")
    boot_entry.add(boot, BootEntry(title, "", Path(), (), "", "system"), release, kernels[0], initramfs)


def _check_kernel(context: Context, root: Root, entry: BootEntry) -> None:
    if not _RELEASE.fullmatch(entry.release):
        raise Refusal(
            "SX-BUILD-64", f"{entry.release!r} is no version of a kernel", "correct the boot entry's version"
        )
    with entry.linux.open("rb") as stream:
        stream.seek(_S390X_AT)
        magic = stream.read(len(_S390X))
    if magic != _S390X:
        raise Refusal("SX-BUILD-22", f"{entry.linux.name} is no kernel for s390x", "use a system for s390x")
    hashes = [f"{row.name}={'0' * 64}" for row in parameters.ROOT_HASHES.values()]
    first_boots = boot_entry.command_line(entry.options, add=[parameters.FIRSTBOOT.name, *hashes])
    image.command_line_component(first_boots, entry.linux)
    places = [_in(root, form.format(entry.release)) for form in _CONFIGS]
    config = next((_read(path) for path in places if is_regular(path)), "")
    if _NO_GUEST in config.splitlines() or _version(entry.release) < _SINCE:
        raise Refusal(
            "SX-BUILD-23",
            f"the kernel {entry.release} cannot be a Secure Execution guest",
            "install one that is built for it (CONFIG_PROTECTED_VIRTUALIZATION_GUEST; newer ones always are)",
        )
    if not config:
        context.warn(f"there is no configuration of the kernel {entry.release} that would tell what it can")


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])


def _check_initramfs(entry: BootEntry) -> None:
    files = set().union(*(initramfs_files.names(path) for path in entry.initrd))
    if paths.CHECK_ROOT not in files:
        raise Refusal(
            "SX-BUILD-24",
            "the initramfs has no secex-firstboot",
            "install secex-firstboot in the tree, then make the initramfs with dracut",
        )
    found = sorted({PurePosixPath(each).name for each in files} & _HOSTS_WAYS)
    if found:
        raise Refusal(
            "SX-BUILD-61",
            f"the initramfs maps, assembles or fetches disks by itself, with {_listed(found)}",
            "leave out the dracut modules that docs/build-an-image names (omit_dracutmodules)",
        )


def agent_version(root: Root) -> str:
    """Of secex-firstboot in the tree. Raises Refusal if there is none."""
    for pattern in _PACKAGES:
        for path in _in(root, "usr").glob(f"{pattern}/secex_firstboot/__init__.py"):
            found = _VERSION.search(_read(path)) if _is_within(root.volume, path) else None
            if found:
                return found[1]
    raise Refusal("SX-BUILD-25", "secex-firstboot is not installed in the tree", "install its package there")


def _check_prepared(root: Root) -> None:
    """What ostree-prepare-root(1) is told to do, it can do here, and what first boot writes is kept."""
    settings = ConfigParser(interpolation=None, strict=False)
    there = [path for each in root.prepared_by if is_regular(path := root.place(each))]
    try:
        settings.read_string(_read(there[-1]) if there else "")
        wrong = [
            f"{section}.{key}"
            for section, key, values in _NOT_IN_A_GUEST
            if settings.get(section, key, fallback="") in values
        ]
    except NoSettings:
        wrong = ["lines that are no settings"]
    if wrong:
        raise Refusal(
            "SX-BUILD-68",
            f"prepare-root.conf has {_listed(wrong)}",
            "leave that out: an image has no fs-verity, and first boot writes to the /etc that stays",
        )
    composefs = settings.get("composefs", "enabled", fallback="") in _YES
    if composefs and not is_regular(root.place(_COMPOSEFS_IMAGE)):
        raise Refusal(
            "SX-BUILD-69",
            f"the system starts by composefs, and its deployment has no {_COMPOSEFS_IMAGE.name}",
            "deploy it by an ostree that has composefs: ostree --version says so",
        )


# --- what a public image must not have ---------------------------------------------------------------------


def _mend_fstab(context: Context, root: Root, file_system: str) -> None:
    """``/`` and ``/boot`` are what first boot makes of them; nothing else may be a disk of the host's."""
    path, types = _in(root, "etc/fstab"), {"/": file_system, "/boot": "ext4"}
    volumes = {where: device for where, device in _VOLUMES.items() if where in root.in_fstab}
    lines = _read(path).splitlines() if is_regular(path) else []
    kept = []
    for line in lines:
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            kept.append(line)
        elif len(fields) < 2 or fields[1] not in _VOLUMES:
            if fields[0].startswith(("/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=")):
                raise Refusal(
                    "SX-BUILD-26",
                    f"/etc/fstab mounts or swaps to {fields[0]}, which would be a disk of the host's",
                    "remove the line; the owner's config can add disks, as LUKS volumes",
                )
            kept.append(line)
        elif fields[0] == volumes.get(fields[1]) and fields[2:3] in (["auto"], [types[fields[1]]]):
            kept.append(line)
    there = {fields[1] for line in kept if len(fields := line.split()) > 1 and not line.startswith("#")}
    made = [
        f"{device} {where} {types[where]} defaults 0 0"
        for where, device in volumes.items()
        if where not in there
    ]
    if made or kept != lines:
        is_ = ", ".join(f"{where} is {device}" for where, device in volumes.items())
        context.say(f"/etc/fstab: {is_}")
        path.unlink(missing_ok=True)
        path.write_text("".join(f"{line}\n" for line in [*made, *kept]))


def _check_accounts(root: Root) -> None:
    """shadow(5): an account is locked by a ! or * where the hash would be; without any, all may enter.

    passwd(5): an x there says that the hash is in the other file.
    """
    open_ones: dict[str, None] = {}
    for place in ("etc/passwd", "etc/shadow"):
        path = _in(root, place)
        rows = [line.split(":") for line in _read(path).splitlines()] if is_regular(path) else []
        for account, hashed in (row[:2] for row in rows if len(row) > 1):
            if not hashed.startswith(("!", "*")) and not (place == "etc/passwd" and hashed == "x"):
                open_ones[account] = None
    if open_ones:
        raise Refusal(
            "SX-BUILD-27",
            f"accounts that are not locked: {_listed([*open_ones])}",
            "passwd --lock NAME, in the tree; the owner's config lets people in",
        )


def _check_agents(root: Root) -> None:
    found = [unit for unit in _HOSTS_AGENTS if any(exists(_in(root, f"{place}/{unit}")) for place in _UNITS)]
    if found:
        raise Refusal(
            "SX-BUILD-28",
            f"the image takes commands from the host: {_listed(found)}",
            "remove the packages that have them",
        )


def _mend_identity(context: Context, root: Root) -> None:
    """What the system makes anew goes; private keys are refused."""
    identity.check_private_keys(root)
    if found := identity.names(root):
        context.say(f"removed, as each guest makes its own: {found}")
    identity.remove(root)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(ascii(name)[1:-1] for name in names[:_SHOWN]) + (
        " and more" if len(names) > _SHOWN else ""
    )


def _read(path: Path) -> str:
    with path.open("rb") as stream:
        content = stream.read(_FILE_LIMIT + 1)
    if len(content) > _FILE_LIMIT:
        raise Refusal("SX-BUILD-60", f"{path.name} is larger than {_FILE_LIMIT} bytes", "check what it is")
    return content.decode(errors="replace")
