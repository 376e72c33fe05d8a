"""Who may reach an onion service, as files: ``NAME.auth`` in one directory, as tor has them.

Without the directory everybody may; in an empty one is nobody's file, so nobody may.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from torcfg.client_keys import authorized, is_client_name, read_authorized
from torcfg.onion_keys import KeyFileError
from txsimplex.whole_files import PRIVATE, create, make_directory, sync_directory

__all__ = ["MOST_CLIENTS", "ClientFiles"]

MOST_CLIENTS: Final = 300
"""A descriptor has no room for many more: 350 fit into one of tor 0.4.9, 400 do not."""
_ENDING: Final = ".auth"


class ClientFiles:
    """The clients of an onion service, in a directory.

    Methods raise `OSError` for one that cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def names(self) -> list[str] | None:
        """The clients' names in order; None when everybody may connect."""
        try:
            found = list(self.directory.iterdir())
        except FileNotFoundError:
            return None
        return sorted(name for name in map(_client_of, found) if name is not None)

    def keys(self) -> tuple[str, ...] | None:
        """Their public keys, each once; None when everybody may connect.

        Raises `KeyFileError` when one cannot be read, with a text that names nobody.
        """
        try:
            names = self.names()
            if names is None:
                return None
            return tuple(dict.fromkeys(self.key(name) for name in names))
        except OSError as error:
            raise KeyFileError(
                f"the keys of its clients cannot be read: {error.strerror}"
            ) from None
        except (KeyFileError, UnicodeDecodeError):
            raise KeyFileError("the key of one of its clients cannot be used") from None

    def key(self, name: str) -> str:
        """The public key of a client. Raises `KeyFileError`."""
        return read_authorized(self._path(name).read_text("ascii"))

    def add(self, name: str, public: str) -> None:
        """Lets a client in; raises `FileExistsError` when there is one of that name."""
        make_directory(self.directory)
        create(self._path(name), authorized(public).encode("ascii"), PRIVATE)

    def remove(self, name: str) -> None:
        """Lets a client in no more; raises `FileNotFoundError` when there is none of that name."""
        self._path(name).unlink()

    def remove_all(self) -> None:
        """Lets everybody in, all at once: while some are removed, they would be shut out.

        Raises `KeyFileError` when there is anything else in the directory; nothing was removed
        then. Of a symbolic link, the directory that it led to stays, and is empty.
        """
        for path in sorted(self.directory.iterdir()):
            if _client_of(path) is None or (path.is_dir() and not path.is_symlink()):
                raise KeyFileError(
                    f"{path} is not the file of a client, and its directory has to go: "
                    "move it away first"
                )
        parent = self.directory.parent
        if self.directory.is_symlink():
            aside = self.directory.resolve()
            self.directory.unlink()
            sync_directory(parent)
            _empty(aside)
        else:
            # A directory may take the place of an empty one.
            aside = Path(tempfile.mkdtemp(prefix=f".{self.directory.name}.", dir=parent))
            try:
                self.directory.rename(aside)
            except BaseException:
                aside.rmdir()
                raise
            sync_directory(parent)
            _empty(aside)
            aside.rmdir()

    def _path(self, name: str) -> Path:
        assert is_client_name(name)
        return self.directory / (name + _ENDING)


def _client_of(path: Path) -> str | None:
    """The name of the client whose file it is; None for any other file."""
    name = path.name.removesuffix(_ENDING)
    return name if path.suffix == _ENDING and is_client_name(name) else None


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
