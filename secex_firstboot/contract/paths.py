"""Where things are in an image and in a provisioned system: names that users and other programs rely on.

They are names, not places: who looks there puts them below the root that it works on.
"""

from __future__ import annotations

from pathlib import Path, PurePath, PurePosixPath

# Fixed by the SE-ready image's format.
PRIVATE_KEY = Path("/usr/lib/coreos/ignition.asc")
CONFIG_DISK_SERIAL = "ignition_crypted"

# Whose configs an image takes, FINGERPRINT.asc each; not there if it takes anybody's. A file beside them says
# that a config has to be for this image.
CONFIG_SIGNERS = Path("/usr/lib/secex-firstboot/config-signers")
BOUND = "bound"

# Root certificates, and what else the image's builder knows of IBM's certificates and revocation lists.
CERTIFICATES = Path("/usr/lib/secex-firstboot/certs")
NO_LOCAL_LOGIN = Path("/usr/lib/secex-firstboot/no-local-login.ign")  # a base config of Ignition's

# Laid out like a directory of systemd units: what secex-firstboot-no-login.service puts over those on root,
# before the system starts. Made at seal, and part of the final sdboot.
NO_LOGIN_UNITS = Path("/etc/secex-no-login")

# In the initramfs of a system made by ostree: the link of its deployment, and where it leads.
DEPLOYMENT = Path("/etc/luks/deployment")

# Programs of ours under the names of IBM's, for libostree and rdcore: packaging/install.py.
INSTEAD_OF_IBMS = Path("/usr/lib/secex-firstboot/bin")

# In the initramfs, by dracut/module-setup.sh; as an archive names its files.
CHECK_ROOT = "usr/lib/secex-firstboot/check-root"

# Kernel: arch/s390/kernel/uv.c. Not there where kernel or firmware do not know the question.
THIS_HOSTS_KEYS = Path("/sys/firmware/uv/keys")
THIS_HOSTS_HEADER_VERSIONS = Path("/sys/firmware/uv/query/supp_se_hdr_ver")

# That of the kernel that runs. Kernel: Documentation/admin-guide/sysctl/kernel.rst
KERNEL_RELEASE = Path("/proc/sys/kernel/osrelease")

# The provisioned system's.
LUKS_KEYS = Path("/etc/luks")  # a file for each volume: its key; of boot and root the header before it
CRYPTTAB = PurePosixPath("/etc/crypttab")
SYSTEM_HOST_KEYS = Path("/etc/se-hostkeys")
HOST_KEY_PREFIX = "ibm-z-hostkey-"  # of the documents there
SYSTEM_CERTIFICATES = SYSTEM_HOST_KEYS / "certs"
RECOVERY_KEYS = SYSTEM_HOST_KEYS / "recovery"  # NAME.asc: OpenPGP public keys
BOOT = PurePosixPath("/boot")
# Numbers of the boot images that may start, a line each: check-root reads it, in the initramfs.
GENERATIONS = LUKS_KEYS / "generations"
SEALED = LUKS_KEYS / "sealed"  # the final sdboot starts, and nothing of first boot is left
SYSTEM_REPORT = Path("/var/lib/secex-firstboot/report.json")
GROWN = Path("/var/lib/secex-firstboot/grown")  # the root file system reaches the end of its volume
# What the boot image is made of, see roots.system_image. On root itself: /var may be a volume of its own, and
# a plain one.
IMAGE_STATE = LUKS_KEYS / "boot-image"
NOT_UP = IMAGE_STATE / "not-up"  # there as long as an image may start that is not known to come up
BOOT_IMAGES = IMAGE_STATE / "images.json"  # contract.boot_image.Images
SETTINGS = Path("/etc/secex-firstboot.conf")  # the user's
RUNTIME = Path("/run/secex-firstboot")  # of the initramfs, too: no secrets


def below(root: Path, path: PurePath) -> Path:
    """The place of an absolute ``path`` in the system whose root file system is mounted on ``root``."""
    return root / path.relative_to("/")
