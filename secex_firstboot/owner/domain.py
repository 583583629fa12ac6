"""What a host starts a guest with: the domain of libvirt, and the command line of QEMU.

Sources: https://libvirt.org/formatdomain.html, https://libvirt.org/kbase/s390_protected_virt.html and QEMU's
docs/system/s390x/protvirt.rst. With launchSecurity, or confidential-guest-support, virtio devices have their
IOMMU by default: nothing is said of it here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.basic.files import is_regular
from secex_firstboot.contract.paths import CONFIG_DISK_SERIAL
from secex_firstboot.storage import disk_image

# What the tests' guests have, and first boot has been measured with: docs/reliability.md.
LEAST_MEMORY = 1024  # MiB
MEMORY = 2048
CPUS = 2
NETWORK = "default"  # libvirt's own
NO_NETWORK = "none"
SYSTEM_SERIAL = "system"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")


@dataclass(frozen=True)
class Guest:
    """``memory`` in MiB; ``config``: encrypted, None for a start after the first boot; ``console``: where the
    host keeps what the guest prints; ``loadparm``: the operator's choice of a boot image, or empty.
    """

    name: str
    image: Path
    image_format: str
    config: Path | None
    console: Path
    memory: int = MEMORY
    cpus: int = CPUS
    network: str = NETWORK
    loadparm: str = ""

    def __post_init__(self) -> None:
        """Raises Refusal for what libvirt or QEMU would take for something else."""
        for what in (self.name, self.network):
            if not _NAME.fullmatch(what):
                raise Refusal(
                    "SX-DOMAIN-04",
                    f"{what!r} is no name of a domain or network",
                    "letters, digits and _.+- make one: --name, --network",
                )
        for path in filter(None, (self.image, self.config, self.console)):
            if not str(path).isprintable():
                raise Refusal("SX-DOMAIN-05", f"{str(path)!r} has unprintable characters", "rename the file")


def format_of(image: Path) -> str:
    """As libvirt and QEMU call it. Raises Refusal."""
    if not is_regular(image):
        raise Refusal(
            "SX-DOMAIN-33", f"{image} is missing or no regular file", "name the guest's disk, qcow2 or raw"
        )
    return "qcow2" if disk_image.is_qcow2(image) else "raw"


def xml(guest: Guest) -> str:
    top = ElementTree.Element("domain", type="kvm")
    _add(top, "name", guest.name)
    _add(top, "memory", str(guest.memory), unit="MiB")
    _add(top, "vcpu", str(guest.cpus))
    _add(_add(top, "os"), "type", "hvm", arch="s390x", machine="s390-ccw-virtio")
    _add(top, "cpu", mode="host-model")
    _add(top, "on_crash", "preserve")
    devices = _add(top, "devices")
    system = _disk(devices, guest.image, guest.image_format, "vda", SYSTEM_SERIAL)
    _add(system, "boot", order="1", **({"loadparm": guest.loadparm} if guest.loadparm else {}))
    if guest.config:
        devices.append(ElementTree.Comment(" for the first boot alone "))
        config = _disk(devices, guest.config, "raw", "vdb", CONFIG_DISK_SERIAL)
        _add(config, "readonly")
    if guest.network != NO_NETWORK:
        card = _add(devices, "interface", type="network")
        _add(card, "source", network=guest.network)
        _add(card, "model", type="virtio")
    console = _add(devices, "console", type="pty")
    _add(console, "target", type="sclp", port="0")
    _add(console, "log", file=str(guest.console), append="on")
    devices.append(ElementTree.Comment(" a balloon cannot work; without this line libvirt adds one "))
    _add(devices, "memballoon", model="none")
    _add(top, "launchSecurity", type="s390-pv")
    ElementTree.indent(top)
    return ElementTree.tostring(top, encoding="unicode") + "\n"


def _disk(
    devices: ElementTree.Element, file: Path, form: str, device: str, serial: str
) -> ElementTree.Element:
    disk = _add(devices, "disk", type="file", device="disk")
    _add(disk, "driver", name="qemu", type=form)
    _add(disk, "source", file=str(file))
    _add(disk, "target", dev=device, bus="virtio")
    _add(disk, "serial", serial)
    return disk


def _add(
    parent: ElementTree.Element, tag: str, text: str | None = None, **attributes: str
) -> ElementTree.Element:
    made = ElementTree.SubElement(parent, tag, attributes)
    made.text = text
    return made


def command_line(guest: Guest) -> list[tuple[str, ...]]:
    """Of QEMU, an option and its value each; the guest's console is on the terminal, and behind Ctrl-a c the
    monitor of QEMU.
    """
    loadparm = f",loadparm={guest.loadparm}" if guest.loadparm else ""
    console = f"logfile={_quoted(guest.console)},logappend=on"
    config = guest.config and [
        ("-drive", f"if=none,id=config,format=raw,readonly=on,file={_quoted(guest.config)}"),
        ("-device", f"virtio-blk-ccw,drive=config,serial={CONFIG_DISK_SERIAL}"),
    ]
    return [
        ("qemu-system-s390x", "-nodefaults"),
        ("-display", "none"),
        ("-machine", "s390-ccw-virtio,accel=kvm,confidential-guest-support=pv0"),
        ("-object", "s390-pv-guest,id=pv0"),
        ("-cpu", "host"),
        ("-m", f"{guest.memory}M"),
        ("-smp", str(guest.cpus)),
        ("-chardev", f"stdio,id=console,mux=on,signal=off,{console}"),
        ("-device", "sclpconsole,chardev=console"),
        ("-mon", "chardev=console"),
        ("-drive", f"if=none,id=system,format={guest.image_format},file={_quoted(guest.image)}"),
        ("-device", f"virtio-blk-ccw,drive=system,serial={SYSTEM_SERIAL},bootindex=1{loadparm}"),
        *(config or []),
        *([] if guest.network == NO_NETWORK else [("-nic", "user,model=virtio-net-ccw")]),
    ]


def _quoted(path: Path) -> str:
    """A value inside of a QEMU option: commas are doubled."""
    return str(path).replace(",", ",,")
