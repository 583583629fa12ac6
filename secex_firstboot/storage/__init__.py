"""Disks: partitions, dm-verity, LUKS2 with dm-integrity, copying, file systems."""
