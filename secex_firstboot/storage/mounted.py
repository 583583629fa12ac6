"""A mounted file system: how large it is as the kernel has it, and moving its end while it is in use.

By ioctl, as systemd-growfs does it (systemd: src/shared/resize-fs.c), not by xfs_growfs and resize2fs: when a
process is killed, a program that it has started may go on and grow the file system later.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.storage import filesystem

# xfsprogs: libxfs/xfs_fs.h, struct xfs_fsop_geom_v1: eight u32, the last one imaxpct,
# then u64 datablocks; struct xfs_growfs_data: u64 newblocks, u32 imaxpct, padding.
_XFS_IOC_FSGEOMETRY_V1 = 0x8070_5864  # _IOR('X', 100, 112 bytes)
_XFS_IOC_FSGROWFSDATA = 0x4010_586E  # _IOW('X', 110, 16 bytes)
_XFS_GEOMETRY = struct.Struct("=28xIQ72x")
_XFS_GROWFS_DATA = struct.Struct("=QI4x")
# kernel: include/uapi/linux/ext4.h: u64, the new number of blocks
_EXT4_IOC_RESIZE_FS = 0x4008_6610  # _IOW('f', 16, 8 bytes)
_U64 = struct.Struct("=Q")


@dataclass(frozen=True)
class Mounted:
    """An ext4 or xfs on ``device``, mounted on ``where``; ``block_size`` in bytes."""

    where: Path
    device: Path
    type: str
    block_size: int

    @classmethod
    def find(cls, where: Path, device: Path) -> Self:
        """Raises FirstbootError if what is mounted on ``where`` does not lie on ``device``."""
        if where.stat().st_dev != device.stat().st_rdev:
            raise FirstbootError("SX-DISK-26", f"{device} is not mounted on {where}")
        type = filesystem.identify(device, str(device)).type
        return cls(where, device, type, os.statvfs(where).f_bsize)

    def size(self) -> int:
        """Its end now, in bytes from the start of the device.

        xfs is asked, as its superblock on the disk changes when the log is written back; ext4 changes its
        superblock where the kernel caches the device, and there it is read. (statfs leaves out the log of an
        xfs and the tables of an ext4.)
        """
        if self.type == "xfs":
            return self.block_size * self._xfs_geometry()[1]
        return filesystem.identify(self.device, str(self.device)).size

    def grow(self, size: int) -> None:
        """Move its end to ``size``, a multiple of the block size.

        The kernel leaves out a rest in which no allocation group of an xfs (64 blocks) and no block group of
        an ext4 (its tables) has room; that is no error. Everything up to ``size`` must have been written.
        """
        blocks = size // self.block_size
        if self.type == "xfs":
            most_inodes, _ = self._xfs_geometry()
            self._ioctl(_XFS_IOC_FSGROWFSDATA, _XFS_GROWFS_DATA.pack(blocks, most_inodes))
        else:
            self._ioctl(_EXT4_IOC_RESIZE_FS, _U64.pack(blocks))

    def _xfs_geometry(self) -> tuple[int, int]:
        """imaxpct, the most of the space that inodes may take, in percent; and the number of blocks."""
        found = self._ioctl(_XFS_IOC_FSGEOMETRY_V1, bytes(_XFS_GEOMETRY.size))
        most_inodes, blocks = _XFS_GEOMETRY.unpack(found)
        return most_inodes, blocks

    def _ioctl(self, request: int, argument: bytes) -> bytes:
        descriptor = os.open(self.where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return fcntl.ioctl(descriptor, request, argument)
        except OSError as error:
            raise FirstbootError(
                "SX-DISK-27",
                f"cannot ask or grow the {self.type} on {self.where}: {error.strerror}",
                "look at the kernel's messages",
            ) from error
        finally:
            os.close(descriptor)
