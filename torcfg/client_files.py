"""Who may reach an onion service, as files: ``NAME.auth`` in one directory, as tor has them.

Without the directory everybody may; in an empty one is nobody's file, so nobody may.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from torcfg.client_keys import authorized, is_client_name, read_authorized
from torcfg.onion_keys import KeyFileError
from txsimplex.whole_files import PRIVATE, create, make_directory

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
        names = (path.name.removesuffix(_ENDING) for path in found if path.suffix == _ENDING)
        return sorted(name for name in names if is_client_name(name))

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
        """Lets everybody in."""
        for name in self.names() or ():
            self.remove(name)
        self.directory.rmdir()

    def _path(self, name: str) -> Path:
        assert is_client_name(name)
        return self.directory / (name + _ENDING)
