"""Where things are: names that users and other programs rely on."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

# The agent's secrets while first boot runs. It lies in the initramfs's own RAM file system, so that the
# switch to the real root frees it; the personalised sdboot brings it back after a crash.
STATE = Path("/etc/secex-firstboot")
PLAN = STATE / "plan.json"
COMMITTED = STATE / "committed"
HOST_KEYS = STATE / "hostkeys"

# What is no secret and is read again in the running system.
RUNTIME = Path("/run/secex-firstboot")
REPORT = RUNTIME / "report.json"
CONFIG_REFUSED = RUNTIME / "config-refused"  # why; the private key is gone then, so asking again cannot tell
FILES_FINISHED = RUNTIME / "files-finished"  # what Ignition wrote is part of the root file system
ROOT_MOUNT = RUNTIME / "root"
SE_MOUNT = RUNTIME / "se"
BOOT_MOUNT = RUNTIME / "boot"

# Fixed by the SE-ready image's format.
PRIVATE_KEY = Path("/usr/lib/coreos/ignition.asc")
CONFIG_DISK_SERIAL = "ignition_crypted"
CMDLINE_FIRSTBOOT = "ignition.firstboot"

# Ignition's: the user's config, those it merges that into, and the merged one it leaves for later stages.
IGNITION_USER_CONFIG = Path("/usr/lib/ignition/user.ign")
IGNITION_BASE_CONFIGS = Path("/usr/lib/ignition/base.d")
IGNITION_MERGED_CONFIG = Path("/run/ignition.json")
IGNITION_STATE = Path("/run/ignition/state")  # from its disks to its files stage; has keys
# Root certificates, and what else the image's builder knows of IBM's certificates and revocation lists.
CERTIFICATES = Path("/usr/lib/secex-firstboot/certs")
NO_LOCAL_LOGIN = Path("/usr/lib/secex-firstboot/no-local-login.ign")  # a config of ours for the second

# Laid out like a directory of systemd units: what secex-firstboot-no-login.service puts over those on root,
# before the system starts. Made at seal, and part of the final sdboot.
NO_LOGIN_UNITS = Path("/etc/secex-no-login")

# The provisioned system's.
SYSROOT = Path("/sysroot")
LUKS_KEYS = Path("/etc/luks")
CRYPTTAB = PurePosixPath("/etc/crypttab")  # below some root, never this machine's own
SYSTEM_HOST_KEYS = Path("/etc/se-hostkeys")
SYSTEM_CERTIFICATES = SYSTEM_HOST_KEYS / "certs"
SEALED = LUKS_KEYS / "sealed"  # the final sdboot starts, and nothing of first boot is left
SYSTEM_REPORT = Path("/var/lib/secex-firstboot/report.json")
GROWN = Path("/var/lib/secex-firstboot/grown")  # the root file system reaches the end of its volume
SETTINGS = Path("/etc/secex-firstboot.conf")  # the user's

# Kernel: arch/s390/kernel/uv.c, "1" in a Secure Execution guest; no such file where the machine has no
# ultravisor.
SECURE_EXECUTION_GUEST = Path("/sys/firmware/uv/prot_virt_guest")
SWAPS = Path("/proc/swaps")
THIS_HOSTS_KEYS = Path("/sys/firmware/uv/keys")
