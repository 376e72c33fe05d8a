"""The file of an onion service's key: read, and made where there is none; and of a password.

The key is in a file ``hs_ed25519_secret_key`` of tor. Both are for their owner alone. Errors are
sentences that name the file.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torcfg.onion_keys import KeyFileError, OnionKey
from txsimplex.whole_files import PRIVATE, create

__all__ = ["kept_key", "read_key", "read_password", "read_private_key"]


class KeyMissingError(KeyFileError):
    """There is no file."""


def read_key(path: Path) -> OnionKey:
    """The key in a file, whoever may read that. Raises `KeyFileError`."""
    try:
        return OnionKey.decode(path.read_bytes())
    except FileNotFoundError as error:
        raise KeyMissingError(f"{path} cannot be read: {error.strerror}") from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
    except KeyFileError as error:
        raise KeyFileError(f"{path} cannot be used: {error}") from None


def read_private_key(path: Path) -> OnionKey:
    """The key of a service, in a file that nobody else may read. Raises `KeyFileError`."""
    try:
        key = read_key(path)
    except KeyMissingError:
        raise KeyMissingError(f"{path} is not there: the first start makes it") from None
    _refuse_readers(path)
    return key


def kept_key(path: Path, random: Callable[[int], bytes]) -> OnionKey:
    """The key in a file, made if there is none yet. Raises `KeyFileError`."""
    with suppress(KeyMissingError):
        return read_private_key(path)
    try:
        create(path, OnionKey.generate(random).encode(), PRIVATE)
    except FileExistsError:
        # Another process was faster.
        return read_private_key(path)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be made: {error.strerror}") from None
    return read_private_key(path)


def read_password(path: Path) -> str:
    """The password of a control port, in a file that nobody else may read.

    It is the first line. Raises `KeyFileError`.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} cannot be used: it is not UTF-8") from None
    _refuse_readers(path)
    password = text.partition("\n")[0]
    if not password or not password.isprintable():
        raise KeyFileError(f"{path} cannot be used: it does not begin with a line of text")
    return password


def _refuse_readers(path: Path) -> None:
    if path.stat().st_mode & 0o077:
        raise KeyFileError(f"{path} may be read by others: make its mode 600")
