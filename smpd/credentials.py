"""The relay's certificate files: read together, written whole.

Every file is written under another name, synced and renamed, so that after a
crash it is the old one or the new one. A key and its certificate are two files;
`replace_pair` goes through states in each of which `read_pair` finds a key with
its own certificate (docs/spec/smp-ops.md §3).
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

PRIVATE = 0o600
PUBLIC = 0o644
_DIRECTORY = 0o700


def make_directory(path: Path) -> None:
    """Makes a directory for its owner alone, and those above it; one that is there stays."""
    if not path.is_dir():
        path.mkdir(mode=_DIRECTORY, parents=True)
        _sync_directory(path.parent)


def create(path: Path, data: bytes, mode: int) -> None:
    """Writes a file that is not there yet; raises `FileExistsError` when it is."""
    temporary = _write_temporary(path, data, mode)
    try:
        # Unlike a rename, a link never takes the place of a file.
        path.hardlink_to(temporary)
    finally:
        temporary.unlink()
    _sync_directory(path.parent)


def replace(path: Path, data: bytes, mode: int) -> None:
    """Writes a file, in place of one that may be there.

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
    _sync_directory(path.parent)


def pending(certificate: Path) -> Path:
    """Where a new certificate waits until its key has taken the place of the old one."""
    return certificate.with_name(certificate.name + ".new")


def replace_pair(certificate: Path, key: Path, certificate_pem: bytes, key_pem: bytes) -> None:
    """Puts a new key and certificate in the place of the old ones.

    The new certificate is first written beside the old one. From the moment at
    which the new key is in its place on, `read_pair` takes that certificate, and
    so it does when nothing comes after this.
    """
    replace(pending(certificate), certificate_pem, PUBLIC)
    replace(key, key_pem, PRIVATE)
    pending(certificate).replace(certificate)
    _sync_directory(certificate.parent)


def read_pair(
    certificate: Path, key: Path, belong: Callable[[bytes, bytes], bool]
) -> tuple[bytes, bytes] | None:
    """Certificate and key that belong together, also while or after `replace_pair` is interrupted.

    `belong(certificate, key)` says whether they do; None when they never did.
    Raises `OSError` when a file cannot be read.
    """
    # The second round is for a replacement that happened between the readings of the first.
    for _ in range(2):
        key_pem = key.read_bytes()
        for path in (certificate, pending(certificate)):
            try:
                certificate_pem = path.read_bytes()
            except FileNotFoundError:
                if path == certificate:
                    raise
                continue
            if belong(certificate_pem, key_pem):
                return certificate_pem, key_pem
    return None


def _write_temporary(path: Path, data: bytes, mode: int) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink()
        raise
    return temporary


def _take_ownership(path: Path, temporary: Path, mode: int) -> None:
    try:
        old = path.stat()
    except FileNotFoundError:
        return
    new = temporary.stat()
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.chown(temporary, old.st_uid, old.st_gid)
    temporary.chmod(mode | stat.S_IMODE(old.st_mode) & stat.S_IRGRP)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
