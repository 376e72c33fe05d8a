"""Who may reach an onion service, as files."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from torcfg.client_files import ClientFiles
from torcfg.client_keys import ClientKey, authorized
from torcfg.onion_keys import KeyFileError


@pytest.fixture
def files(tmp_path: Path) -> ClientFiles:
    return ClientFiles(tmp_path / "clients")


def new_key() -> str:
    return ClientKey.generate(os.urandom).public


def test_without_the_directory_everybody_may_connect(files: ClientFiles) -> None:
    assert files.names() is None
    assert files.keys() is None


def test_those_who_were_added_may_and_nobody_else(files: ClientFiles) -> None:
    bob, alice = new_key(), new_key()
    files.add("bob", bob)
    files.add("alice", alice)
    assert files.names() == ["alice", "bob"]
    assert files.keys() == (alice, bob)
    assert files.key("bob") == bob
    assert files.directory.stat().st_mode & 0o777 == 0o700
    assert (files.directory / "bob.auth").stat().st_mode & 0o777 == 0o600
    assert (files.directory / "bob.auth").read_text() == f"descriptor:x25519:{bob}\n"


def test_when_the_last_one_is_removed_nobody_may(files: ClientFiles) -> None:
    files.add("alice", new_key())
    files.remove("alice")
    assert files.names() == []
    assert files.keys() == ()


def test_everybody_may_again(files: ClientFiles) -> None:
    files.add("alice", new_key())
    files.remove_all()
    assert files.keys() is None


def test_everybody_may_again_and_nothing_is_left(files: ClientFiles, tmp_path: Path) -> None:
    for name in ("alice", "bob"):
        files.add(name, new_key())
    files.remove_all()
    assert list(tmp_path.iterdir()) == []
    files.add("alice", new_key())
    assert files.names() == ["alice"]


@pytest.mark.parametrize("name", ["README", "alice.auth~", ".alice.auth.1234", "a b.auth"])
def test_another_file_keeps_everything_as_it_is(files: ClientFiles, name: str) -> None:
    """Were only the clients removed, nobody could connect."""
    files.add("alice", new_key())
    (files.directory / name).touch()
    before = files.keys()
    says = f"^{re.escape(str(files.directory / name))} is not the file of a client, and .*: move it"
    with pytest.raises(KeyFileError, match=says):
        files.remove_all()
    assert files.keys() == before
    (files.directory / name).unlink()
    (files.directory / "bob.auth").mkdir()
    with pytest.raises(KeyFileError, match=r"bob\.auth is not the file of a client"):
        files.remove_all()
    assert files.names() == ["alice", "bob"]


def test_a_directory_that_cannot_be_renamed_keeps_everything_as_it_is(
    files: ClientFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is mounted there."""
    files.add("alice", new_key())
    before = files.keys()

    def busy(path: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(OSError, match="busy"):
        files.remove_all()
    assert files.keys() == before
    assert list(tmp_path.iterdir()) == [files.directory]


def test_a_link_to_the_directory(files: ClientFiles, tmp_path: Path) -> None:
    """Who made it may not be able to make a directory where it leads to, so that one stays."""
    target = tmp_path / "elsewhere/clients"
    target.mkdir(parents=True)
    files.directory.symlink_to(Path("elsewhere/clients"))
    files.add("alice", new_key())
    (target / "README").touch()
    with pytest.raises(KeyFileError, match="README is not the file of a client"):
        files.remove_all()
    assert files.names() == ["alice"]
    (target / "README").unlink()
    files.remove_all()
    assert files.keys() is None
    assert not files.directory.is_symlink()
    assert list(target.iterdir()) == []
    files.add("bob", new_key())
    assert files.names() == ["bob"]


def test_a_key_that_two_have_counts_once(files: ClientFiles) -> None:
    key = new_key()
    files.add("alice", key)
    files.add("phone", key)
    assert files.keys() == (key,)


def test_a_name_that_is_taken_and_one_that_is_not(files: ClientFiles) -> None:
    key = new_key()
    files.add("alice", key)
    with pytest.raises(FileExistsError):
        files.add("alice", new_key())
    assert files.key("alice") == key
    with pytest.raises(FileNotFoundError):
        files.remove("bob")


def test_files_with_other_names_are_left_alone(files: ClientFiles) -> None:
    files.add("alice", new_key())
    for name in ("README", ".alice.auth", "a b.auth", ".alice.auth.1234"):
        (files.directory / name).write_text(authorized(new_key()))
    assert files.names() == ["alice"]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"descriptor:x25519:AAAA\n", b"\xff\xfe"])
def test_a_file_that_cannot_be_used_opens_nothing(files: ClientFiles, content: bytes) -> None:
    """What is said of it names nobody, since it goes into the log."""
    files.add("alice", new_key())
    (files.directory / "alice.auth").write_bytes(content)
    with pytest.raises(KeyFileError, match=r"^the key of one of its clients cannot be used$"):
        files.keys()


def test_a_directory_that_cannot_be_read_opens_nothing(files: ClientFiles) -> None:
    files.directory.touch()
    with pytest.raises(KeyFileError, match="cannot be read: Not a directory"):
        files.keys()
