"""Files that are there whole or not at all, also after a crash.

Each is written under another name, synced, and only then given its own (but see `create`). What
root makes in somebody else's directory is his, as all that is in it: he may be the user that the
relay runs as.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

__all__ = ["PRIVATE", "PUBLIC", "create", "make_directory", "replace", "sync_directory"]

PRIVATE = 0o600
PUBLIC = 0o644
_DIRECTORY = 0o700
_NO_HARD_LINKS = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS))
"""What a file system without them answers."""


def make_directory(path: Path) -> None:
    """Make a directory for its owner alone, and those above it; one that is there stays."""
    for each in (*reversed(path.parents), path):
        if not (each.is_dir() if each is path else each.exists()):
            each.mkdir(mode=_DIRECTORY if each is path else 0o777)
            _give_to_owner_of(each.parent, each)
            sync_directory(each.parent)


def create(path: Path, data: bytes, mode: int) -> None:
    """Write a file that is not there yet.

    Where the file system has no hard links, as FAT, a crash may leave a part of it.

    :raises FileExistsError: it is.
    """
    temporary = _write_temporary(path, data, mode)
    try:
        _give_to_owner_of(path.parent, temporary)
        # Unlike a rename, a link never takes the place of a file.
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _write_in_place(path, data, mode)
    finally:
        temporary.unlink()
    sync_directory(path.parent)


def replace(path: Path, data: bytes, mode: int) -> None:
    """Write a file, in place of one that may be there.

    Its owner and group stay, and a group that could read it still can, since
    that may be how the relay's user reads it.
    """
    temporary = _write_temporary(path, data, mode)
    try:
        _take_ownership(path, temporary, mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make it safe that files were made in a directory, renamed or removed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_temporary(path: Path, data: bytes, mode: int) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        _write(descriptor, data, mode)
    except BaseException:
        temporary.unlink()
        raise
    return temporary


def _write_in_place(path: Path, data: bytes, mode: int) -> None:
    # Like the temporary file, nobody else can read it before it is whole.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
    try:
        _write(descriptor, data, mode)
        _give_to_owner_of(path.parent, path)
    except BaseException:
        path.unlink()
        raise


def _write(descriptor: int, data: bytes, mode: int) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())


def _give_to_owner_of(directory: Path, made: Path) -> None:
    owner = directory.stat()
    # Anybody may have others' files in /tmp and its like.
    if os.geteuid() == 0 and owner.st_uid != 0 and not owner.st_mode & stat.S_ISVTX:
        os.chown(made, owner.st_uid, owner.st_gid)


def _take_ownership(path: Path, temporary: Path, mode: int) -> None:
    try:
        old = path.stat()
    except FileNotFoundError:
        _give_to_owner_of(path.parent, temporary)
        return
    new = temporary.stat()
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.chown(temporary, old.st_uid, old.st_gid)
    temporary.chmod(mode | stat.S_IMODE(old.st_mode) & stat.S_IRGRP)
