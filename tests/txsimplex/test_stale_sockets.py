"""Sockets left behind by processes that were killed."""

from __future__ import annotations

import os
from pathlib import Path
from socket import AF_UNIX, socket as Socket

import pytest

from txsimplex.stale_sockets import make_room, remove_stale


def test_one_on_which_nobody_listens_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Socket(AF_UNIX) as left:
        left.bind(str(path))
        left.listen()
    assert path.exists()
    remove_stale(str(path))
    assert not path.exists()


def test_one_on_which_somebody_listens_stays(tmp_path: Path) -> None:
    """Also when he is so busy that one could not connect at once."""
    path = tmp_path / "socket"
    with Socket(AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(0)
        for _ in range(3):
            remove_stale(os.fsencode(path))
            assert path.exists()
        listening.accept()[0].close()


def test_room_is_made_where_nobody_is(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    make_room(str(path))
    with Socket(AF_UNIX) as left:
        left.bind(str(path))
        left.listen()
        with pytest.raises(OSError, match="Address already in use"):
            make_room(os.fsencode(path))
    make_room(os.fsencode(path))
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        make_room(str(tmp_path / "missing/socket"))
    path.symlink_to(tmp_path / "missing")
    with pytest.raises(OSError, match="Address already in use"):
        make_room(str(path))


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    with Socket(AF_UNIX) as left:
        left.bind(str(tmp_path / "socket"))
    link.symlink_to(tmp_path / "socket")
    for path in (file, link, tmp_path / "missing", tmp_path / ("x" * 200)):
        remove_stale(str(path))
    assert file.exists()
    assert link.is_symlink()
    assert (tmp_path / "socket").exists()
