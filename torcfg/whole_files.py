"""Files that are there whole or not at all, also after a crash.

Each is written under another name, synced, and only then given its own.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["create", "sync_directory", "write_temporary"]


def create(path: Path, data: bytes, mode: int) -> None:
    """Writes a file that is not there yet; raises `FileExistsError` when it is."""
    temporary = write_temporary(path, data, mode)
    try:
        # Unlike a rename, a link never takes the place of a file.
        path.hardlink_to(temporary)
    finally:
        temporary.unlink()
    sync_directory(path.parent)


def write_temporary(path: Path, data: bytes, mode: int) -> Path:
    """Writes and syncs a file beside `path`, which the caller gives that name, or removes."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink()
        raise
    return temporary


def sync_directory(path: Path) -> None:
    """Makes names in a directory survive a crash."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
