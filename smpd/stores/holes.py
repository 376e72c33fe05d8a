"""Giving the place of a part of a file back to the file system.

Python offers `posix_fallocate` only, which does the opposite.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Final

Punch = Callable[[int, int, int], None]
"""Makes a hole: descriptor, offset and size in bytes. Raises `OSError`."""

# From <linux/falloc.h>.
_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02


def hole_puncher() -> Punch:
    """What makes holes here. It raises `OSError` with EOPNOTSUPP or ENOSYS where none can be."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        # The plain name has 32-bit offsets on 32-bit machines.
        fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
    except (OSError, AttributeError):
        return _cannot
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    fallocate.restype = ctypes.c_int

    def punch(descriptor: int, offset: int, size: int) -> None:
        while fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, size) != 0:
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))

    return punch


def _cannot(descriptor: int, offset: int, size: int) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
