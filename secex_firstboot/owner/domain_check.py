"""Does a domain of libvirt have what Secure Execution and a first boot need? Line by line, with cures.

Sources beside those of ``domain``: https://www.ibm.com/docs/en/linux-on-systems, "Configuring for IBM Secure
Execution for Linux". Whoever wrote the domain is not trusted: files that it names are only looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.files import is_regular
from secex_firstboot.contract.partitions import HASH_TREES, LASTING
from secex_firstboot.contract.paths import CONFIG_DISK_SERIAL
from secex_firstboot.ignition import openpgp
from secex_firstboot.owner import xml_lines
from secex_firstboot.owner.check import image
from secex_firstboot.owner.domain import LEAST_MEMORY
from secex_firstboot.owner.finding import Finding
from secex_firstboot.owner.xml_lines import Element
from secex_firstboot.sdboot.boot_record import FALLBACK_ENTRY, IMAGE_ENTRY
from secex_firstboot.storage import disk_image

_BLOCK = 512  # bytes of a virtio disk
# libvirt's units of memory: KiB where none is given; KB, MB… are powers of 1000.
_UNIT = re.compile(r"(?P<power>[kmgt]?)(?:i?b)?|bytes", re.IGNORECASE)
_POWERS = ("", "k", "m", "g", "t")
_BYTES = ("b", "bytes")
_NUMBER = re.compile(r"[0-9]{1,18}")
_ADD_CONFIG = (
    "<disk type='file' device='disk'> with the encrypted config as <source>,"
    " <driver name='qemu' type='raw'/>, <target dev='vdb' bus='virtio'/>, <readonly/>"
    f" and <serial>{CONFIG_DISK_SERIAL}</serial>"
)


@dataclass
class Checked:
    """``first_boot``: whether the disk that starts is still to be provisioned, None if that is not told."""

    first_boot: bool | None = None
    findings: list[Finding] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)

    @property
    def is_wrong(self) -> bool:
        return any(not each.advice for each in self.findings)


def check(path: Path, *, later: bool = False) -> Checked:
    """``later``: the guest has had its first boot. Raises Refusal if the file is no domain."""
    root = xml_lines.read(path)
    if root.tag != "domain":
        raise Refusal(
            "SX-DOMAIN-06",
            f"{path} has no domain of libvirt, its first element is {root.tag[:40]!r}",
            "name the file that virsh dumpxml writes",
        )
    return check_domain(root, later=later)


def check_domain(root: Element, *, later: bool = False) -> Checked:
    found = Checked(False if later else None)
    devices = root.first("devices") or Element("devices", {}, root.line)
    system = _that_starts(root, devices)
    configs = [each for each in devices.all("disk") if each.text_of("serial") == CONFIG_DISK_SERIAL]
    file = system and _file(system)
    if file and not later:
        found.first_boot = _is_to_be_provisioned(file, found)
    found.findings += _machine(root)
    found.findings += _secure_execution(root, devices)
    found.findings += _other_devices(devices)
    found.findings += _memory(root)
    found.findings += _system_disk(root, system, first=found.first_boot is not False)
    if found.first_boot and file and system:
        found.findings += _image(file, system)
    found.findings += _config_disk(devices, configs, found)
    found.findings += _console(devices)
    found.findings.sort(key=lambda each: each.line or 0)
    return found


def _wrong(element: Element, error: FirstbootError) -> Finding:
    return Finding(error, element.line)


def _advice(element: Element, error: FirstbootError) -> Finding:
    return Finding(error, element.line, advice=True)


def _machine(root: Element) -> Iterator[Finding]:
    kind = root.attributes.get("type", "")
    if kind != "kvm":
        error = Refusal(
            "SX-DOMAIN-07", f"the domain is of type {kind!r}", "only KVM has it: <domain type='kvm'>"
        )
        yield _wrong(root, error)
    machine = root.first("os/type")
    if machine and (arch := machine.attributes.get("arch", "s390x")) != "s390x":
        error = Refusal("SX-DOMAIN-08", f"the guest's architecture is {arch!r}", "<type arch='s390x'>")
        yield _wrong(machine, error)
    if machine and not (name := machine.attributes.get("machine", "s390-ccw")).startswith("s390-ccw"):
        error = Refusal("SX-DOMAIN-09", f"the machine is {name!r}", "<type machine='s390-ccw-virtio'>")
        yield _wrong(machine, error)
    if kernel := root.first("os/kernel"):
        error = Refusal(
            "SX-DOMAIN-10",
            "the host gives the kernel, and the boot image on the disk is not started",
            "remove <kernel>, <initrd> and <cmdline>",
        )
        yield _wrong(kernel, error)
    cpu = root.first("cpu")
    unpack = [each.attributes for each in cpu.all("feature")] if cpu else []
    policies = [each.get("policy", "require") for each in unpack if each.get("name") == "unpack"]
    hosts = cpu is not None and cpu.attributes.get("mode") in ("host-model", "host-passthrough", "maximum")
    if not (policies[-1] in ("require", "force") if policies else hosts):
        error = Refusal(
            "SX-DOMAIN-11",
            "the guest's processor does not surely have the facility to unpack a boot image",
            "<cpu mode='host-model'/>",
        )
        yield _wrong(cpu or root, error)


def _secure_execution(root: Element, devices: Element) -> Iterator[Finding]:
    """With launchSecurity, libvirt 7.6 and newer, QEMU gives each virtio device its IOMMU."""
    launch = root.first("launchSecurity")
    asked = launch is not None and launch.attributes.get("type") == "s390-pv"
    drivers = [(each, each.get("driver", "iommu")) for each in devices.children if _is_virtio(each)]
    if not asked and not any(iommu == "on" for _, iommu in drivers):
        error = Refusal(
            "SX-DOMAIN-12",
            "nothing asks for Secure Execution",
            "<launchSecurity type='s390-pv'/> at the end of the domain",
        )
        yield _wrong(launch or root, error)
        return
    for device, iommu in drivers:
        if iommu == "off" or (not asked and iommu != "on"):
            error = Refusal(
                "SX-DOMAIN-13",
                f"the virtio device {device.tag} goes around the memory that guest and host share",
                "<driver iommu='on'/> in it, or nothing of iommu and launchSecurity of type s390-pv",
            )
            yield _wrong(device.first("driver") or device, error)


def _other_devices(devices: Element) -> Iterator[Finding]:
    balloon = devices.first("memballoon")
    if not balloon or balloon.attributes.get("model") != "none":
        error = Refusal(
            "SX-DOMAIN-14",
            "the guest has a balloon, which libvirt adds by itself, and which cannot work",
            "<memballoon model='none'/>",
        )
        yield _wrong(balloon or devices, error)
    for device in devices.all("hostdev"):
        if device.attributes.get("model") != "vfio-ap":
            error = Refusal(
                "SX-DOMAIN-15",
                "a device of the host is passed through, for which QEMU documents no support",
                "give the guest virtio devices",
            )
            yield _advice(device, error)


def _is_virtio(device: Element) -> bool:
    if device.tag == "interface" and not device.first("model"):
        return True  # libvirt's own choice on s390x
    models = (device.attributes.get("model", ""), device.get("model", "type"), device.get("target", "bus"))
    return any(each.startswith("virtio") for each in models) and device.tag != "memballoon"


def _memory(root: Element) -> Iterator[Finding]:
    memory = root.first("memory")
    size = _mib(memory) if memory else None
    if memory is None or size is None:
        error = Refusal(
            "SX-DOMAIN-16", "the domain does not say how much memory", "<memory unit='GiB'>2</memory>"
        )
        yield _wrong(memory or root, error)
    elif size < LEAST_MEMORY:
        error = Refusal(
            "SX-DOMAIN-17",
            f"the guest has {size} MiB of memory, and first boot was not tried with less than {LEAST_MEMORY}",
            "give it as much, and on top what swiotlb= of its kernel adds to 64 MiB",
        )
        yield _advice(memory, error)
    if huge := root.first("memoryBacking/hugepages"):
        error = Refusal(
            "SX-DOMAIN-18",
            "the guest's memory is of huge pages, which cannot be protected",
            "remove <hugepages>",
        )
        yield _wrong(huge, error)


def _mib(memory: Element) -> int | None:
    unit = _UNIT.fullmatch(memory.attributes.get("unit", "KiB"))
    number = memory.text.strip()
    if not unit or not _NUMBER.fullmatch(number):
        return None
    power = _POWERS.index((unit["power"] or "").lower())
    decimal = len(unit[0]) == 2 and power  # KB and its like
    if not power and unit[0].lower() not in _BYTES:
        power = 1
    return int(int(number) * (1000 if decimal else 1024) ** power) >> 20


def _that_starts(root: Element, devices: Element) -> Element | None:
    """The device with the lowest order, which may be no disk; where none has one, the first disk."""
    ordered = [each for each in devices.children if _NUMBER.fullmatch(each.get("boot", "order"))]
    if ordered:
        return min(ordered, key=lambda each: int(each.get("boot", "order")))
    disks = (each for each in devices.all("disk") if each.attributes.get("device", "disk") in ("disk", "lun"))
    return next(disks, None) if root.get("os/boot", "dev") in ("", "hd") else None


def _system_disk(root: Element, system: Element | None, *, first: bool) -> Iterator[Finding]:
    if not system or system.tag != "disk" or system.text_of("serial") == CONFIG_DISK_SERIAL:
        error = Refusal(
            "SX-DOMAIN-19",
            "the guest does not start from the image",
            "<boot order='1'/> in the image's <disk>",
        )
        yield _wrong(system or root, error)
        return
    for tag in ("readonly", "transient"):
        if kept := system.first(tag):
            error = Refusal(
                "SX-DOMAIN-20", f"what the guest writes to its disk is lost, as it is {tag}", "remove that"
            )
            yield _wrong(kept, error)
    if system.get("driver", "cache") == "unsafe":
        error = Refusal(
            "SX-DOMAIN-21",
            "with cache='unsafe' a power cut of the host takes what the guest had safely written",
            "remove it, or cache='none'",
        )
        yield _wrong(system.first("driver") or system, error)
    boot = system.first("boot")
    choices = ["", "0", str(IMAGE_ENTRY), *([] if first else [str(FALLBACK_ENTRY)])]
    if boot and (loadparm := boot.attributes.get("loadparm", "").strip()) not in choices:
        error = Refusal(
            "SX-DOMAIN-22",
            f"loadparm={loadparm!r} chooses a boot image that is not there",
            f"remove it; after an update, {FALLBACK_ENTRY} is the boot image before",
        )
        yield _wrong(boot, error)


def _file(disk: Element) -> Path | None:
    """Of a disk that is a file; what it names is not known to be there."""
    name = disk.get("source", "file")
    return Path(name) if name.startswith("/") else None


def _is_to_be_provisioned(file: Path, found: Checked) -> bool | None:
    """By its partitions; None, with the reason in ``untold``."""
    try:
        if not is_regular(file):
            found.untold.append(f"whether it is a first boot, and its disk large enough: {file} is not here")
            return None
        with disk_image.raw(file) as raw:
            disk = disk_image.read(raw, file)
    except (FirstbootError, OSError) as error:
        found.untold.append(f"whether it is a first boot, and its disk large enough: {error}")
        return None
    if any(name in disk.partitions for name in HASH_TREES.values()):
        return True
    return None if disk.missing(LASTING) else False


def _image(file: Path, system: Element) -> Iterator[Finding]:
    """What first boot says of it, in its words."""
    try:
        image.look(file, None, headroom=0)
    except (FirstbootError, OSError) as error:
        yield _wrong(system, _as_error(error))


def _as_error(error: FirstbootError | OSError) -> FirstbootError:
    if isinstance(error, FirstbootError):
        return error
    return FirstbootError(
        "SX-DOMAIN-23", f"a file of the domain cannot be read: {error.strerror}", "look there"
    )


def _config_disk(devices: Element, configs: list[Element], found: Checked) -> Iterator[Finding]:
    if found.first_boot is False:
        for config in configs:
            error = Refusal(
                "SX-DOMAIN-24", "the config disk is still there, and is for the first boot alone", "remove it"
            )
            yield _advice(config, error)
        return
    if not configs:
        error = Refusal("SX-DOMAIN-25", f"no disk has the serial {CONFIG_DISK_SERIAL}", _ADD_CONFIG)
        yield _wrong(devices, error)
    for config in configs[1:]:
        error = Refusal(
            "SX-DOMAIN-26", f"more than one disk has the serial {CONFIG_DISK_SERIAL}", "remove all but one"
        )
        yield _wrong(config, error)
    for config in configs:
        yield from _config(config, found)


def _config(config: Element, found: Checked) -> Iterator[Finding]:
    if (bus := config.get("target", "bus")) != "virtio":
        error = Refusal(
            "SX-DOMAIN-27", f"the config disk is on the bus {bus!r}", "<target dev='vdb' bus='virtio'/>"
        )
        yield _wrong(config.first("target") or config, error)
    if (form := config.get("driver", "type") or "raw") != "raw":
        error = Refusal(
            "SX-DOMAIN-28",
            f"the config disk is said to be {form!r}, and is the encrypted file itself",
            "<driver name='qemu' type='raw'/>",
        )
        yield _wrong(config.first("driver") or config, error)
    if not config.first("readonly"):
        error = Refusal(
            "SX-DOMAIN-29", "the config disk can be written to, and never is", "<readonly/> in it"
        )
        yield _advice(config, error)
    if not (file := _file(config)):
        return
    try:
        if not is_regular(file):
            found.untold.append(f"whether the config is encrypted: {file} is not here")
            return
        with openpgp.read_message(file):
            pass
    except (FirstbootError, OSError) as error:
        yield _wrong(config, _as_error(error))
        return
    if file.stat().st_size % _BLOCK:
        whole = Refusal(
            "SX-DOMAIN-30",
            f"{file} is not of whole blocks of {_BLOCK} bytes, and not every disk shows the rest",
            f"truncate --size=%{_BLOCK} {file}",
        )
        yield _advice(config, whole)


def _console(devices: Element) -> Iterator[Finding]:
    consoles = [*devices.all("console"), *devices.all("serial")]
    if not any(each.get("target", "type").startswith("sclp") for each in consoles):
        error = Refusal(
            "SX-DOMAIN-31",
            "no console shows what firmware and boot loader say",
            "<console type='pty'><target type='sclp' port='0'/></console>",
        )
        yield _advice(next(iter(consoles), devices), error)
    if not any(each.first("log") for each in consoles):
        error = Refusal(
            "SX-DOMAIN-32",
            "nothing keeps what the guest says on its console",
            "<log file='/var/log/libvirt/qemu/NAME-console.log' append='on'/> in it",
        )
        yield _advice(next(iter(consoles), devices), error)
