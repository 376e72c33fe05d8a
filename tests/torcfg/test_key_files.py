"""Files of keys of onion services: read, made where there is none, and refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torcfg.key_files import kept_key, read_key, read_password, read_private_key
from torcfg.onion_keys import KeyFileError, OnionKey


def test_a_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "onion.key"
    key = kept_key(path, os.urandom)
    assert path.stat().st_mode & 0o777 == 0o600
    assert OnionKey.decode(path.read_bytes()) == key
    assert kept_key(path, os.urandom) == read_private_key(path) == read_key(path) == key
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_that_another_process_makes_at_the_same_time_stays(tmp_path: Path) -> None:
    path, other = tmp_path / "onion.key", OnionKey.generate(os.urandom)

    def random(size: int) -> bytes:
        path.touch(0o600)
        path.write_bytes(other.encode())
        return os.urandom(size)

    assert kept_key(path, random) == other


def test_what_cannot_be_read_used_or_made(tmp_path: Path) -> None:
    path = tmp_path / "onion.key"
    with pytest.raises(KeyFileError, match=f"^{path} cannot be read: No such file or directory$"):
        read_key(path)
    with pytest.raises(KeyFileError, match=f"^{path} is not there: the first start makes it$"):
        read_private_key(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(KeyFileError, match=f"^{path} cannot be used: not a file hs_ed25519"):
        kept_key(path, os.urandom)
    assert path.read_bytes() == b"nonsense"
    nowhere = tmp_path / "nowhere" / "onion.key"
    with pytest.raises(KeyFileError, match=f"^{nowhere} cannot be made: No such file or directory"):
        kept_key(nowhere, os.urandom)
    too_long = tmp_path / (256 * "x")
    with pytest.raises(KeyFileError, match=f"^{too_long} cannot be read: File name too long$"):
        kept_key(too_long, os.urandom)


def test_a_key_that_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "onion.key"
    key = kept_key(path, os.urandom)
    path.chmod(0o640)
    for read in (read_private_key, lambda each: kept_key(each, os.urandom)):
        with pytest.raises(KeyFileError, match=f"^{path} may be read by others: make its mode 600"):
            read(path)
    assert read_key(path) == key


def test_a_password_is_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.touch(0o600)
    for content in ("it's a secret", "it's a secret\nand more\n"):
        path.write_text(content)
        assert read_password(path) == "it's a secret"


@pytest.mark.parametrize("content", [b"", b"\nhunter2", b"hunter2\0", b"hunter2\xff"])
def test_what_is_no_password(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "password"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match=f"^{path} cannot be used: it ") as caught:
        read_password(path)
    assert "hunter2" not in str(caught.value)


def test_a_password_that_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("hunter2")
    path.chmod(0o604)
    with pytest.raises(KeyFileError, match=f"^{path} may be read by others: make its mode 600$"):
        read_password(path)
