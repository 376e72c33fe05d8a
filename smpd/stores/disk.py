"""What Python has no call for: holes in files."""

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
_READ: Final = 1 << 20


def has_data(descriptor: int, size: int) -> bool:
    """Whether there is anything but zeros in the first `size` bytes of a file.

    Takes next to no time where the file system knows about holes. Raises `OSError`.
    """
    position = 0
    while position < size:
        try:
            position = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return False
            raise
        some = os.pread(descriptor, min(_READ, max(0, size - position)), position)
        if some.count(0) != len(some):
            return True
        position += len(some) or size
    return False


def hole_puncher() -> Punch:
    """What gives parts of files back to the file system here.

    It raises `OSError`, with EOPNOTSUPP or ENOSYS where it cannot be done. (Python's own
    `posix_fallocate` does the opposite.)
    """
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
