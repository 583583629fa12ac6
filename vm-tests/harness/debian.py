"""A small Debian system for s390x, with kernel, dracut, Ignition and secex-firstboot, built on any Linux.

Layers, each built once and kept in the cache under the hash of what it is made from: the distribution
(mmdebstrap, minutes), on it the packages that ``make deb`` builds, and of that the complete system, with the
initramfs that dracut makes, and an ostree repository. Runs as root; s390x programs run under qemu-user
through binfmt_misc.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import requests

from secex_firstboot.roots import identity
from secex_firstboot.roots.kinds import Plain
from secex_firstboot.sdboot.initramfs import File, joined, write_archive

REPOSITORY = Path(__file__).resolve().parents[2]
_KEPT = 4  # trees of each layer: a gigabyte each, for a suite, and for who works in several work trees
CACHE = Path(os.environ.get("SECEX_CACHE", Path.home() / ".cache" / "secex-firstboot"))

# The guest's; what this machine has does not matter.
SUITE = os.environ.get("GUEST_SUITE", "trixie")
_ALIASES = {"trixie": "stable", "forky": "testing"}  # of the suites that were tried
# What made by ostree starts with: libostree of trixie is built without.
COMPOSEFS = SUITE != "trixie"
# Of initramfs: a plain one and a packed one behind it. dracut's lsinitrd finds nothing behind what is packed.
TWO_ARCHIVES = SUITE != "trixie"
# s390-tools of this suite has IBM's boot loaders for Secure Execution, which trixie's does not have yet.
BOOT_LOADER_SUITE = "forky"
PACKAGES = [
    *("linux-image-s390x", "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "openssh-server", "zstd"),
    *("dracut", "dracut-network", "curl", "ca-certificates", "ignition", "policycoreutils"),
    *("cryptsetup-bin", "systemd-cryptsetup", "s390-tools", "gnupg", "e2fsprogs", "xfsprogs", "fdisk"),
    *("ostree", "ostree-boot"),
    *(f"python3-{name}" for name in ("pydantic", "pyudev", "gnupg", "requests", "systemd", "cryptography")),
]
# What no test needs; a smaller root is copied sooner.
EXCLUDED = [f"/usr/share/{name}/*" for name in ("doc", "info", "locale", "man", "lintian", "bash-completion")]
EXCLUDED += ["/usr/share/perl/*", "/usr/lib/s390x-linux-gnu/perl/*", "/usr/lib/s390x-linux-gnu/gconv/*"]
EXCLUDED += ["/usr/lib/udev/hwdb.d/*", "/usr/share/zoneinfo/*"]
# It would put ostree into the initramfs of systems that are not made by it.
EXCLUDED += ["/etc/dracut.conf.d/ostree.conf"]
_KERNEL_MODULES_LEFT_OUT = {
    "drivers": (
        "ata block/aoe block/drbd block/mtip32xx crypto/chelsio firewire gpu hid i2c infiniband input "
        "md/bcache md/dm-vdo media mtd net/bonding net/ethernet net/phy net/usb net/vxlan "
        "net/wireless nvme scsi target ufs usb"
    ),
    "fs": (
        "9p affs afs bcachefs btrfs ceph dlm ecryptfs exfat f2fs fat gfs2 hfs hfsplus hpfs jffs2 jfs "
        "nfs nfsd nilfs2 nls ntfs3 ocfs2 orangefs reiserfs smb ubifs udf ufs"
    ),
    "net": "9p bluetooth bridge ceph mac80211 openvswitch sctp sunrpc tipc wireless",
}
EXCLUDED += ["/usr/lib/modules/*/kernel/sound/*"]
EXCLUDED += [
    f"/usr/lib/modules/*/kernel/{kind}/{name}/*"
    for kind, names in _KERNEL_MODULES_LEFT_OUT.items()
    for name in names.split()
]

_KERNEL_HOOK = "/etc/kernel/postinst.d/dracut"
_MODULES = "ignition systemd-networkd crypt systemd-cryptsetup"
_DRACUT_CONF = """\
hostonly=no
hostonly_cmdline=no
omit_dracutmodules+=" bluetooth btrfs busybox cifs cio_ignore connman convertfs crypt-gpg crypt-loop dasd "
omit_dracutmodules+=" dasd_mod dcssblk dmraid drm ecryptfs fcoe fcoe-uefi hwdb i18n iscsi lunmask lvm "
omit_dracutmodules+=" lvmmerge lvmthinpool-monitor masterkey mdraid memstrack multipath nbd network-legacy "
omit_dracutmodules+=" network-manager nfs nvdimm nvmf overlay-root overlayfs pcmcia pcsc plymouth pollcdrom "
omit_dracutmodules+=" resume rngd ssh-client systemd-battery-check systemd-bsod systemd-coredump "
omit_dracutmodules+=" systemd-creds systemd-hostnamed systemd-pcrphase systemd-portabled "
omit_dracutmodules+=" systemd-pstore systemd-repart systemd-sysext systemd-timedated systemd-timesyncd "
omit_dracutmodules+=" virtfs virtiofs watchdog watchdog-modules zipl "
"""
REF = "debian/s390x"  # the branch of the ostree repository
_LINKS = {  # of a system made by ostree: what is kept lies below /var
    "home": "var/home",
    "root": "var/roothome",
    "opt": "var/opt",
    "srv": "var/srv",
    "mnt": "var/mnt",
    "usr/local": "../var/usrlocal",
    "ostree": "sysroot/ostree",
}
_TMPFILES = "".join(  # tmpfiles.d(5)
    f"d /var/{name} {mode} root root -\n"
    for name, mode in {
        **dict.fromkeys(("home", "opt", "srv", "mnt", "usrlocal", "lib", "log", "cache", "spool"), "0755"),
        "roothome": "0700",
        "tmp": "1777",
    }.items()
)
_FILES = {
    "etc/apt/sources.list": "",
    "etc/fstab": "/dev/mapper/root / auto defaults 0 0\n/dev/mapper/boot /boot ext4 defaults 0 2\n",
    # So that systemd takes the first start for what it is, and enables what Ignition's preset file says.
    "etc/machine-id": "uninitialized\n",
    "etc/systemd/network/50-dhcp.network": "[Match]\nKind=!*\nType=!loopback\n\n[Network]\nDHCP=yes\n",
    # Where Ignition puts a user's keys, and where sshd looks by itself.
    "etc/ssh/sshd_config.d/50-ignition.conf": "AuthorizedKeysFile .ssh/authorized_keys.d/ignition "
    ".ssh/authorized_keys\n",
    # The image has no host key, each guest makes its own: one, as the others take an emulated machine long.
    # Also at a later start, if the power failed at the first; one that the user's config brings is taken.
    "etc/ssh/sshd_config.d/50-host-key.conf": "HostKey /etc/ssh/ssh_host_ed25519_key\n",
    "etc/systemd/system/sshd-keygen.service.d/50-one-key.conf": "[Unit]\nConditionFirstBoot=\n"
    "ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n\n[Service]\nExecStart=\n"
    "ExecStart=ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key\n",
    # Debian's Ignition labels what it writes for SELinux, and insists on a policy; this one has no labels.
    "etc/selinux/config": "SELINUX=disabled\nSELINUXTYPE=none\n",
    "etc/selinux/none/contexts/files/file_contexts": "/.* <<none>>\n",
}


def build() -> Path:
    """The root tree of the complete system (its /boot included), from the cache if it was built before."""
    return _cached("agent", _distribution_key() + _agent_key(), _build_agent)


def _installed() -> Path:
    """The system without an initramfs."""
    return _cached("installed", _distribution_key() + _agent_key(), _install)


def repository() -> Path:
    """An ostree repository that has the same system as a commit."""
    return _cached("ostree", _distribution_key() + _agent_key(), _build_repository)


def newer_repository() -> Path:
    """The same, and its branch has gone on."""
    return _cached("newer-ostree", _distribution_key() + _agent_key(), _build_newer)


def _build_newer(newer: Path) -> None:
    """Another file, and one more in the initramfs."""
    subprocess.run(["cp", "-a", "--reflink=auto", repository(), newer], check=True)
    repo = f"--repo={newer}"
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        changes, archive = Path(scratch, "changes"), Path(scratch, "archive")
        modules = changes / "usr/lib/modules" / kernel_version(_installed())
        modules.mkdir(parents=True)
        (changes / "usr/lib/release").write_text("2\n")
        of_initramfs = f"/{modules.relative_to(changes)}/initramfs.img"
        before = Path(scratch, "before")
        with before.open("wb") as stream:
            subprocess.run(["ostree", repo, "cat", REF, of_initramfs], check=True, stdout=stream)
        write_archive(archive, {"/usr/lib/release": File(b"2\n")})
        with (modules / "initramfs.img").open("wb") as stream:
            stream.writelines(joined([archive, before] if TWO_ARCHIVES else [before, archive]))
        trees = (f"--tree=ref={REF}", f"--tree=dir={changes}")
        subprocess.run(["ostree", repo, "commit", f"--branch={REF}", *trees], check=True)


def _build_repository(repository: Path) -> None:
    installed = _installed()
    say("committing the system to an ostree repository (about 3 minutes)")
    register_binfmt()
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        tree = Path(scratch, "tree")
        subprocess.run(["cp", "-a", "--reflink=auto", installed, tree], check=True)
        composefs = "yes" if COMPOSEFS else "no"
        (tree / "usr/lib/ostree/prepare-root.conf").write_text(
            f"[sysroot]\nreadonly=true\n[composefs]\nenabled={composefs}\n"
        )
        make_initramfs(tree, f"{_MODULES} secex-test ostree")
        make_deployable(tree)
        repo = f"--repo={repository}"
        subprocess.run(["ostree", repo, "init", "--mode=bare"], check=True)
        subprocess.run(["ostree", repo, "commit", f"--branch={REF}", f"--tree=dir={tree}"], check=True)


@contextmanager
def deploying() -> Iterator[None]:
    """While this lasts, the ostree(1) that is found has composefs, if the guest's has."""
    path = os.environ["PATH"]
    with tempfile.TemporaryDirectory() as directory:
        if COMPOSEFS:
            register_binfmt()
            installed = shlex.quote(str(_installed()))
            program = Path(directory, "ostree")
            program.write_text(
                f'#!/bin/sh\nQEMU_LD_PREFIX={installed} exec {installed}/usr/bin/ostree "$@"\n'
            )
            program.chmod(0o755)
            os.environ["PATH"] = f"{directory}:{path}"
        try:
            yield
        finally:
            os.environ["PATH"] = path


def make_deployable(tree: Path) -> None:
    """Lay a system out as libostree wants it: https://ostreedev.github.io/ostree/adapting-existing/"""
    modules = tree / "usr/lib/modules" / kernel_version(tree)
    kernel(tree).rename(modules / "vmlinuz")
    initramfs(tree).rename(modules / "initramfs.img")
    (tree / "var/lib/dpkg").rename(tree / "usr/share/dpkg-db")
    for name in ("boot", "dev", "proc", "run", "sys", "tmp", "var", *_LINKS):
        if (tree / name).is_symlink():
            (tree / name).unlink()
        elif (tree / name).exists():
            shutil.rmtree(tree / name)
    for name in ("boot", "dev", "proc", "run", "sys", "sysroot", "tmp", "var"):
        (tree / name).mkdir()
    for name, target in _LINKS.items():
        (tree / name).symlink_to(target)
    (tree / "usr/lib/tmpfiles.d/50-ostree.conf").write_text(_TMPFILES)
    (tree / "etc/fstab").write_text("/dev/mapper/boot /boot ext4 defaults 0 0\n")
    complete(tree)
    (tree / "etc").rename(tree / "usr/etc")


def _distribution() -> Path:
    return _cached("debian", _distribution_key(), _build_distribution)


def _distribution_key() -> str:
    return "\n".join(
        [SUITE, _KERNEL_HOOK, BOOT_LOADER_SUITE, *PACKAGES, *EXCLUDED, *_FILES, *_FILES.values()]
    )


def _agent_key() -> str:
    """Of everything that the second layer is made from; where the repository lies does not count."""
    folders = (
        "secex_firstboot",
        "dracut",
        "systemd",
        "packaging/deb",
        "packaging/completions",
        "vm-tests/dracut",
    )
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    files += (REPOSITORY / "docs").glob("*.[1-8]")  # what of them is installed
    digest = hashlib.sha256()
    files += (REPOSITORY / name for name in ("Makefile", "pyproject.toml", "packaging/install.py"))
    files.append(Path(__file__))
    for path in sorted(files):
        if "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(REPOSITORY)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _cached(name: str, key: str, build: Callable[[Path], None]) -> Path:
    path = CACHE / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if path.exists():  # it is there as a whole, and another one may be in the making for minutes
        _note_use(path)
        return path
    with locked(name):
        if not path.exists():
            unfinished = path.with_name(f"{path.name}.unfinished")
            if unfinished.exists():
                shutil.rmtree(unfinished)
            build(unfinished)
            unfinished.rename(path)
            _note_use(path)
            _forget_all_but(_KEPT, name)
    return path


def _note_use(tree: Path) -> None:
    """By its time of access; that of its last change is part of the system."""
    os.utime(tree, (time.time(), tree.stat().st_mtime))


def _forget_all_but(number: int, name: str) -> None:
    """Of a layer's trees those stay that were used last: each change of the code makes another one."""
    trees = [path for path in CACHE.glob(f"{name}-*") if re.fullmatch(r".*-[0-9a-f]{16}", path.name)]
    for tree in sorted(trees, key=lambda tree: tree.stat().st_atime, reverse=True)[number:]:
        shutil.rmtree(tree)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Only one process at a time is inside a ``with`` block of the same name."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_distribution(tree: Path) -> None:
    say(f"building the Debian {SUITE} system for s390x (once; about 6 minutes)")
    register_binfmt()
    source = mirror()
    priority = 500 if SUITE == BOOT_LOADER_SUITE else 1
    pin = f"Package: *\\nPin: release n={BOOT_LOADER_SUITE}\\nPin-Priority: {priority}\\n"
    get_boot_loaders = (  # with this machine's apt: the system's own would be emulated, and take minutes
        'mkdir -p "$1/usr/share/s390-tools" "$1/var/tmp" && cd "$1/var/tmp" && '
        'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --quiet=2 --option APT::Sandbox::User=root '
        f"download s390-tools/{BOOT_LOADER_SUITE} && dpkg-deb -x s390-tools_*.deb boot-loaders && "
        'cp -r boot-loaders/usr/share/s390-tools/pvimg "$1/usr/share/s390-tools/" && '
        "rm -r boot-loaders s390-tools_*.deb"
    )
    keep_kernel_hook = (  # dpkg leaves it out below
        f'cd "$1/var/tmp" && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --quiet=2 '
        "--option APT::Sandbox::User=root download dracut && "
        f"dpkg-deb --fsys-tarfile dracut_*.deb | tar -x .{_KERNEL_HOOK} && rm dracut_*.deb"
    )
    options = [
        *("--quiet", "--arch=s390x", "--mode=root", "--variant=minbase"),
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
        *(f"--aptopt={line}" for line in _apt_options()),
        # The kernel and dracut would have an initramfs made before there is anything to put in it.
        f"--dpkgopt=path-exclude={_KERNEL_HOOK}",
        f'--setup-hook=mkdir -p "$(dirname "$1{_KERNEL_HOOK}")"; ln -s /bin/true "$1{_KERNEL_HOOK}"',
        f"--include={','.join(PACKAGES)}",
        '--setup-hook=mkdir -p "$1/etc/apt/preferences.d"',
        f'--setup-hook=printf "{pin}" > "$1/etc/apt/preferences.d/pin"',
        f"--extract-hook={get_boot_loaders}",
        f"--extract-hook={keep_kernel_hook}",
        f'--customize-hook=mv "$1/var/tmp{_KERNEL_HOOK}" "$1{_KERNEL_HOOK}" && rm -r "$1/var/tmp/etc"',
        '--customize-hook=rm "$1/etc/apt/preferences.d/pin"',
        '--customize-hook=rm -r "$1/etc/hostname" "$1/etc/resolv.conf"',
    ]
    suites = _whole(source, SUITE, _ALIASES[SUITE])
    for suite in suites:
        lists = [f"deb {source} {each} main" for each in dict.fromkeys((suite, BOOT_LOADER_SUITE))]
        done = subprocess.run(["mmdebstrap", *options, "", tree, *lists], check=suite == suites[-1])
        if done.returncode == 0:
            break
        say(f"the mirror does not have all packages of {suite}; trying {' and '.join(suites[1:])}")
        shutil.rmtree(tree)
    for name, content in _FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    subprocess.run(["chroot", tree, "systemctl", "-q", "enable", "systemd-networkd"], check=True)


def _install(tree: Path) -> None:
    distribution = _distribution()
    say("installing secex-firstboot (about 2 minutes)")
    register_binfmt()
    subprocess.run(["cp", "-a", "--reflink=auto", distribution, tree], check=True)
    install(tree)


def _build_agent(tree: Path) -> None:
    installed = _installed()
    say("making the initramfs (about 2 minutes)")
    register_binfmt()
    subprocess.run(["cp", "-a", "--reflink=auto", installed, tree], check=True)
    make_initramfs(tree, f"{_MODULES} secex-test")


def install(tree: Path) -> None:
    """Install the packages, as the builder of an image does, and beside them the tests' dracut module.

    All that they depend on has to be there: the system has no mirror to get it from. What identifies one
    machine goes, above all the SSH host keys that installing sshd has made.
    """
    with tempfile.TemporaryDirectory() as directory:
        packages = Path(directory)
        subprocess.run(["make", "--silent", "-C", REPOSITORY, "deb", f"DEB={packages}"], check=True)
        names = [f"/mnt/{path.name}" for path in packages.glob("*.deb")]
        options = ("--quiet=2", "--yes", "--option=Dpkg::Use-Pty=false")
        command = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", *options, *names]
        done = subprocess.run(
            in_chroot(tree, *command, mounts={packages: "mnt"}), capture_output=True, text=True
        )
    if done.returncode:
        raise RuntimeError(f"the packages cannot be installed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    for pattern in ("cache/apt/*.bin", "log/apt/*", "log/dpkg.log"):  # mmdebstrap has removed its own, too
        for path in (tree / "var").glob(pattern):
            path.unlink()
    shutil.copytree(
        REPOSITORY / "vm-tests/dracut", tree / "usr/lib/dracut/modules.d/99secex-test", dirs_exist_ok=True
    )
    identity.remove(Plain(tree, None))
    complete(tree)


def complete(tree: Path) -> None:
    """Say that what systemd updates in /etc and /var when /usr is new is done: at the first start of an
    emulated machine ldconfig and its like take minutes (systemd-update-done.service(8)).
    """
    usr = (tree / "usr").stat()
    for name in ("etc/.updated", "var/.updated"):
        (tree / name).touch()
        os.utime(tree / name, ns=(usr.st_atime_ns, usr.st_mtime_ns))


def kernel_version(tree: Path) -> str:
    (version,) = (path.name for path in (tree / "usr/lib/modules").iterdir())
    return version


def make_initramfs(tree: Path, modules: str) -> None:
    version = kernel_version(tree)
    configuration = f'{_DRACUT_CONF}add_dracutmodules+=" {modules} "\n'
    (tree / "etc/dracut.conf.d/50-image.conf").write_text(configuration)
    packing = "--zstd" if TWO_ARCHIVES else "--no-compress"
    command = ["dracut", "--quiet", "--force", packing, f"/boot/initrd.img-{version}", version]
    done = subprocess.run(in_chroot(tree, *command), capture_output=True, text=True)
    if done.returncode or "secex-firstboot: " in done.stderr:
        raise RuntimeError(f"dracut failed: {done.stderr[-2000:]}")
    if not TWO_ARCHIVES:  # here, not by dracut: emulated, that took a minute
        plain, packed = initramfs(tree), initramfs(tree).with_name("packed")
        subprocess.run(["zstd", "--quiet", "-9", "-T0", plain, "-o", packed], check=True)
        packed.replace(plain)


def kernel(tree: Path) -> Path:
    return tree / f"boot/vmlinuz-{kernel_version(tree)}"


def initramfs(tree: Path) -> Path:
    return tree / f"boot/initrd.img-{kernel_version(tree)}"


def added_to_initramfs() -> int:
    """Compressed bytes that secex-firstboot adds to an initramfs with Ignition, cryptsetup and network."""
    without = _cached("plain", _distribution_key() + _DRACUT_CONF, _build_plain)
    return initramfs(build()).stat().st_size - initramfs(without).stat().st_size


def _build_plain(tree: Path) -> None:
    distribution = _distribution()
    say("making an initramfs without secex-firstboot, to compare (about 2 minutes)")
    register_binfmt()
    subprocess.run(["cp", "-a", "--reflink=auto", distribution, tree], check=True)
    make_initramfs(tree, _MODULES)


def in_chroot(tree: Path, *command: str | Path, mounts: Mapping[Path, str] | None = None) -> list[str | Path]:
    """The command that runs ``command`` with ``tree`` as its root, and /proc, /sys and /dev below it.

    ``mounts`` are further directories, and where it sees them. All these mounts end with the command, even if
    it is killed: removing the tree must not remove what is mounted there.
    """
    shown = {Path("/proc"): "proc", Path("/sys"): "sys", Path("/dev"): "dev", **(mounts or {})}
    pairs = [word for path, name in shown.items() for word in (path, name)]
    script = """
        tree=$1; shift
        while [ "$1" != -- ]; do mount --bind "$1" "$tree/$2" || exit; shift 2; done
        shift; exec chroot "$tree" "$@"
    """
    return ["unshare", "--mount", "sh", "-c", script, "sh", tree, *pairs, "--", *command]


def register_binfmt() -> None:
    """Let the kernel run s390x programs through qemu-user, as systemd-binfmt does at boot."""
    binfmt = Path("/proc/sys/fs/binfmt_misc")
    if not (binfmt / "status").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", binfmt], check=True)
    if not (binfmt / "qemu-s390x").exists():
        (binfmt / "register").write_text(Path("/usr/lib/binfmt.d/qemu-s390x.conf").read_text().strip())


def mirror() -> str:
    """The Debian mirror that this machine itself uses, so that no other is asked."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(ORIGIN)", "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for line in targets.splitlines():
        uri, codename, origin = [*line.split(maxsplit=2), "", ""][:3]
        if origin == "Debian" and "-" not in codename:
            return uri
    raise RuntimeError("apt has no Debian mirror; run apt-get update, or set up one in /etc/apt/sources.list")


def _whole(mirror: str, codename: str, alias: str) -> list[str]:
    """Under which of its two names the mirror has the suite: in mid-update it may be only one of them.

    Whether a Packages file has the size that InRelease says (https://wiki.debian.org/DebianRepository/Format)
    tells; apt checks everything. The packages themselves may still be missing, and be there for the other.
    """
    index = "main/binary-s390x/Packages.xz"
    names = []
    for name in (codename, alias):
        suite = f"{mirror.rstrip('/')}/dists/{name}"
        try:
            release = requests.get(f"{suite}/InRelease", timeout=60).text
            answer = requests.head(f"{suite}/{index}", timeout=60, allow_redirects=True)
        except requests.RequestException:
            continue
        found = re.search(rf"^ [0-9a-f]{{64}} +(\d+) {index}$", release, re.MULTILINE)
        if (
            found
            and found[1] == answer.headers.get("Content-Length")
            and f"\nCodename: {codename}\n" in release
        ):
            names.append(name)
    return names or [codename]


def _apt_options() -> list[str]:
    """How this machine's apt takes a mirror that is a snapshot: its Release files may be past their date.

    And a package that does not come is asked for again: one in a few hundred is enough to end the build.
    """
    dump = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout
    dates = [line for line in dump.splitlines() if line.startswith("Acquire::Check-")]
    return [*dates, 'Acquire::Retries "5";']


def say(line: str) -> None:
    print(f"== {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    with ThreadPoolExecutor() as both:
        for made in [both.submit(build), both.submit(newer_repository)]:
            made.result()
