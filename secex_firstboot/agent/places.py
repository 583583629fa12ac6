"""Where the agent finds and leaves things while first boot runs. Nothing below the agent knows of these."""

from __future__ import annotations

from pathlib import Path

from secex_firstboot.contract import paths

# The agent's secrets. It lies in the initramfs's own RAM file system, so that the switch to the real root
# frees it; the personalised sdboot brings it back after a crash.
STATE = Path("/etc/secex-firstboot")
PLAN = STATE / "plan.json"
COMMITTED = STATE / "committed"
HOST_KEYS = STATE / "hostkeys"
RECOVERY_KEYS = STATE / "recovery"

# What is no secret and is read again in the running system.
RUNTIME = paths.RUNTIME
REPORT = RUNTIME / "report.json"
CONFIG_REFUSED = RUNTIME / "config-refused"  # why; the private key is gone then, so asking again cannot tell
FILES_FINISHED = RUNTIME / "files-finished"  # what Ignition wrote is part of the root file system
ROOT_MOUNT = RUNTIME / "root"
SE_MOUNT = RUNTIME / "se"
BOOT_MOUNT = RUNTIME / "boot"

# Ignition's: the user's config, those it merges that into, and the merged one it leaves for later stages.
IGNITION_USER_CONFIG = Path("/usr/lib/ignition/user.ign")
IGNITION_BASE_CONFIGS = Path("/usr/lib/ignition/base.d")
IGNITION_MERGED_CONFIG = Path("/run/ignition.json")
IGNITION_STATE = Path("/run/ignition/state")  # from its disks to its files stage; has keys

SYSROOT = Path("/sysroot")

# Kernel: arch/s390/kernel/uv.c, "1" in a Secure Execution guest; no such file where the machine has no
# ultravisor.
SECURE_EXECUTION_GUEST = Path("/sys/firmware/uv/prot_virt_guest")
SWAPS = Path("/proc/swaps")
THIS_HOSTS_KEYS = paths.THIS_HOSTS_KEYS
THIS_HOSTS_HEADER_VERSIONS = paths.THIS_HOSTS_HEADER_VERSIONS
