"""Can a host run guests of Secure Execution, and which host-key documents are its own?

It is asked itself, or what was copied from it is read (``Source``). All of it is somebody else's word: what
is read has a limit, and only what is understood is told.

Sources: Linux, arch/s390/kernel/uv.c (/sys/firmware/uv), arch/s390/kernel/sysinfo.c (/proc/sysinfo) and
arch/s390/include/asm/uv.h (numbers of ultravisor calls); s390-tools, rust/pvinfo (from which end bits count).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from xml.parsers import expat

from secex_firstboot.basic import process
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import is_regular
from secex_firstboot.contract import paths
from secex_firstboot.contract.command_line import loosely
from secex_firstboot.contract.key_kind import KeyKind
from secex_firstboot.hostkeys import certificates, document
from secex_firstboot.owner import xml_lines
from secex_firstboot.owner.domain import LEAST_MEMORY
from secex_firstboot.owner.finding import Finding

VIRSH_VERSION = PurePosixPath("/virsh-version.txt")  # of a copy: what virsh version says
VIRSH_CAPABILITIES = PurePosixPath("/virsh-domcapabilities.xml")

_LIMIT = 1 << 20  # bytes of any file or answer
_LONGEST = 100  # characters of a name
_PATIENCE = 20  # seconds for an answer
_UV = PurePosixPath("/sys/firmware/uv")
_QUERY = _UV / "query"
_BITS = 64
_VERSION = 0x100  # of SE headers, and the step from one version to the next
_ATTESTATION, _ADD_SECRET = 28, 29  # calls of the ultravisor
_WITH_SECURE_EXECUTION = {
    "8561": "z15 or LinuxONE III",
    "8562": "z15 or LinuxONE III",
    "3931": "z16 or LinuxONE 4",
    "3932": "z16 or LinuxONE 4",
    "9175": "z17 or LinuxONE 5",
}
_WITHOUT = {"2964": "z13", "2965": "z13s", "3906": "z14", "3907": "z14 ZR1"}
_FACILITIES = re.compile(r"^facilities +: (.*)$", re.MULTILINE)
_UNPACKER = "158"  # the facility of the ultravisor calls
_LIBVIRT = (7, 6)
_TRUE = r"prot_virt=(?:[1yYtT]|[oO][nN]).*"  # Linux: lib/kstrtox.c, kstrtobool()


@dataclass(frozen=True)
class Ultravisor:
    """``headers``: versions of SE headers that it knows; None is not told."""

    max_guests: int | None
    max_cpus: int | None
    headers: tuple[int, ...]
    attestation: bool | None
    secrets: int | None


@dataclass(frozen=True)
class OfAHost:
    """A host-key document; ``hash`` as SE headers have it. ``this_machine`` is None if the kernel does not
    tell the machine's keys.
    """

    file: str
    kind: KeyKind
    hash: str
    this_machine: bool | None


@dataclass
class Host:
    """``memory`` and ``available`` in MiB. What is None or empty is not told."""

    machine: str = ""
    machine_type: str = ""
    partition: str = ""
    kernel: str = ""
    prot_virt: bool | None = None
    ready: bool | None = None
    ultravisor: Ultravisor | None = None
    keys: tuple[str, ...] = ()
    documents: tuple[OfAHost, ...] = ()
    libvirt: str = ""
    qemu: str = ""
    s390_pv: bool | None = None
    unpack: bool | None = None
    memory: int | None = None
    available: int | None = None
    findings: list[Finding] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """``root``: / on the host itself, else where copies of its files lie: secex(1)."""

    root: Path

    @property
    def live(self) -> bool:
        return self.root == Path("/")

    def read(self, path: PurePosixPath) -> str | None:
        """None if it is not there, or cannot be read."""
        place = paths.below(self.root, path)
        with suppress(OSError, FirstbootError):
            if is_regular(place):
                with place.open("rb") as stream:
                    return stream.read(_LIMIT).decode(errors="replace")
        return None

    def keys(self) -> Collection[bytes]:
        """Hashes, as the machine lists them; none if the kernel does not tell them."""
        directory = paths.below(self.root, paths.THIS_HOSTS_KEYS)
        with suppress(FirstbootError):
            if is_regular(directory / "all"):
                return document.this_host_key_hashes(directory)
        return ()

    def ask(self, copy: PurePosixPath, *program: str) -> str | None:
        """What a program says, or has said; None if there is none, or it fails."""
        if not self.live:
            return self.read(copy)
        with suppress(FirstbootError):
            return process.run_bounded(["timeout", str(_PATIENCE), *program], _LIMIT)
        return None


def look(source: Source, documents: Sequence[Path]) -> Host:
    """Raises Refusal for a document that is none."""
    found = Host()
    processors = source.read(PurePosixPath("/proc/cpuinfo"))
    if processors is None or _FACILITIES.search(processors):
        _look_at_machine(source, processors, found)
        _look_at_kernel(source, found)
        _look_at_libvirt(source, found)
        _look_at_memory(source, found)
    else:
        cure = "ask on the host, or --root with copies of its files"
        _wrong(found, Refusal("SX-HOST-01", "this is no Linux on IBM Z", cure))
    _look_at_keys(source, documents, found)
    return found


def _wrong(found: Host, error: Refusal) -> None:
    found.findings.append(Finding(error))


def _look_at_machine(source: Source, processors: str | None, found: Host) -> None:
    told = _fields(source.read(PurePosixPath("/proc/sysinfo")))
    kind, found.partition = told.get("Type", ""), told.get("LPAR Name", "")[:_LONGEST]
    found.machine_type = kind if re.fullmatch(r"\d{4}", kind) else ""
    found.machine = _WITH_SECURE_EXECUTION.get(kind, _WITHOUT.get(kind, ""))
    if kind in _WITHOUT:
        _wrong(
            found,
            Refusal(
                "SX-HOST-02",
                f"a {_WITHOUT[kind]} has no Secure Execution",
                "use a z15, a LinuxONE III, or newer",
            ),
        )
    elif not found.machine:
        found.untold.append("which machine it is (/proc/sysinfo)")
    if any(name.startswith("VM00") for name in told):
        _wrong(
            found,
            Refusal(
                "SX-HOST-03", "this Linux is a guest itself", "the host has to run in an LPAR of its own"
            ),
        )
    if processors is None:
        found.untold.append("the facilities of the processors (/proc/cpuinfo)")
    elif _UNPACKER not in _FACILITIES.findall(processors)[0].split():
        _wrong(
            found,
            Refusal(
                "SX-HOST-04",
                "the machine does not offer Secure Execution here: no facility 158",
                "have the feature enabled on the machine",
            ),
        )


def _fields(text: str | None) -> dict[str, str]:
    """Lines of ``name: value``."""
    pairs = (line.partition(":") for line in (text or "").splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _look_at_kernel(source: Source, found: Host) -> None:
    found.kernel = (source.read(PurePosixPath(paths.KERNEL_RELEASE)) or "").strip()[:_LONGEST]
    options = source.read(PurePosixPath("/proc/cmdline"))
    if options is not None:
        found.prot_virt = any(re.fullmatch(_TRUE, word) for word in loosely(options))
    host = source.read(_UV / "prot_virt_host")
    if host is not None:
        found.ready = host.strip() == "1"
    if found.ready:
        found.ultravisor = _ultravisor(source)
        found.findings += _headers(found.ultravisor)
    elif found.prot_virt is False:
        _wrong(
            found,
            Refusal(
                "SX-HOST-05",
                "the kernel was started without prot_virt=1",
                "add it in /etc/zipl.conf or the boot entry, zipl, start the host again",
            ),
        )
    elif found.ready is False and found.prot_virt:
        _wrong(
            found,
            Refusal(
                "SX-HOST-06",
                "the kernel hosts no guests of Secure Execution though it has prot_virt=1",
                "dmesg says why, in lines of prot_virt:",
            ),
        )
    else:
        found.untold.append("whether the kernel hosts guests of Secure Execution (/sys/firmware/uv)")


def _ultravisor(source: Source) -> Ultravisor:
    def value(name: str, digits: str) -> str | None:
        text = (source.read(_QUERY / name) or "").split("\n")[0].strip()
        return text if re.fullmatch(rf"{digits}{{1,16}}", text) else None

    def number(name: str) -> int | None:
        text = value(name, "[0-9]")
        return int(text) if text else None

    def mask(name: str) -> int | None:
        text = value(name, "[0-9a-f]")
        return int(text, 16) if text else None

    calls, headers = mask("facilities"), mask("supp_se_hdr_ver") or 0
    return Ultravisor(
        number("max_guests"),
        number("max_cpus"),
        tuple(_VERSION * (bit + 1) for bit in range(_BITS) if _is_set(headers, bit)),
        None if calls is None else _is_set(calls, _ATTESTATION),
        0 if calls is not None and not _is_set(calls, _ADD_SECRET) else number("max_secrets"),
    )


def _is_set(mask: int, bit: int) -> bool:
    """The first bit, 0, is the highest."""
    return bool(mask >> (_BITS - 1 - bit) & 1)


def _headers(told: Ultravisor) -> Iterator[Finding]:
    if told.headers and _VERSION not in told.headers:
        error = Refusal(
            "SX-HOST-07",
            "the ultravisor takes no boot image of version 0x100, which classical host keys need",
            "use a newer version",
        )
        yield Finding(error)


def _look_at_keys(source: Source, files: Sequence[Path], found: Host) -> None:
    hashes = source.keys()
    found.keys = tuple(sorted(each.hex() for each in hashes))
    if not hashes:
        found.untold.append("the machine's keys (/sys/firmware/uv/keys/, since Linux 6.13)")
    documents = [document.parse(each.name, _read_document(each)) for each in files]
    found.documents = tuple(
        OfAHost(
            str(file),
            each.key.kind,
            document.key_hash(each).hex(),
            document.is_of(each, hashes) if hashes else None,
        )
        for file, each in zip(files, documents, strict=True)
    )
    if hashes and documents and not any(each.this_machine for each in found.documents):
        _wrong(
            found,
            Refusal(
                "SX-HOST-08",
                "no host-key document that is given is for this machine",
                "get that of this machine, by its type and serial number",
            ),
        )


def _read_document(path: Path) -> bytes:
    if not is_regular(path):
        raise Refusal("SX-HOST-09", f"{path} is missing or no regular file", "name a host-key document")
    with path.open("rb") as stream:
        return stream.read(certificates.FILE_LIMIT + 1)


def _look_at_libvirt(source: Source, found: Host) -> None:
    said = source.ask(VIRSH_VERSION, "virsh", "--readonly", "version") or ""
    found.libvirt = _version(r"library: *libvirt", said)
    found.qemu = _version(r"hypervisor: *QEMU", said)
    if not found.qemu and source.live:
        answer = source.ask(VIRSH_VERSION, "qemu-system-s390x", "--version") or ""
        found.qemu = _version("QEMU emulator version", answer)
    if not found.libvirt:
        found.untold.append("libvirt's version (virsh version)")
    elif _numbers(found.libvirt) < _LIBVIRT:
        _wrong(
            found,
            Refusal("SX-HOST-10", f"libvirt {found.libvirt} knows no s390-pv", "use libvirt 7.6 or newer"),
        )
    _look_at_capabilities(source, found)


def _look_at_capabilities(source: Source, found: Host) -> None:
    said = source.ask(VIRSH_CAPABILITIES, "virsh", "--readonly", "domcapabilities")
    try:
        told = xml_lines.parse(said.encode()) if said else None
    except (expat.ExpatError, ValueError):
        told = None
    if not told or told.text_of("arch") != "s390x":
        found.untold.append("what libvirt and QEMU can do here (virsh domcapabilities)")
        return
    found.s390_pv = told.get("features/s390-pv", "supported") == "yes"
    models = [each for each in told.all("cpu/mode") if each.attributes.get("name") == "host-model"]
    policies = {
        each.attributes.get("policy")
        for model in models
        for each in model.all("feature")
        if each.attributes.get("name") == "unpack"
    }
    found.unpack = "require" in policies
    if not found.s390_pv or not found.unpack:
        _wrong(
            found,
            Refusal(
                "SX-HOST-11",
                "libvirt says that QEMU cannot start guests of Secure Execution here",
                "if the kernel can: stop libvirt, remove its /var/cache/libvirt/qemu/capabilities, start it",
            ),
        )


def _version(before: str, said: str) -> str:
    told = re.search(rf"{before} +(\d{{1,4}}(?:\.\d{{1,4}}){{1,3}})", said)
    return told[1] if told else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in version.split("."))


def _look_at_memory(source: Source, found: Host) -> None:
    told = _fields(source.read(PurePosixPath("/proc/meminfo")))
    found.memory, found.available = (_kib(told.get(name, "")) for name in ("MemTotal", "MemAvailable"))
    if found.available is not None and found.available < LEAST_MEMORY:
        error = Refusal(
            "SX-HOST-12",
            f"{found.available} MiB of memory are available,"
            f" and first boot was not tried with less than {LEAST_MEMORY}",
            "free some",
        )
        found.findings.append(Finding(error, advice=True))


def _kib(text: str) -> int | None:
    """MiB of what /proc/meminfo says."""
    told = re.fullmatch(r"(\d{1,15}) kB", text)
    return int(told[1]) >> 10 if told else None
