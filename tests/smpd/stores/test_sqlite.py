"""The SQLite store keeps the contract of stores."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from smpd.stores.group_commit import InPlace
from smpd.stores.interface import Store
from smpd.stores.sqlite import SqliteStore, open_sqlite
from tests.smpd.stores.contract import StoreContract
from tests.smpd.stores.machines import machines

_opened: list[tuple[SqliteStore, Path]] = []


def at_once(call: Callable[..., Any], *arguments: Any) -> None:
    """`callFromThread` where there is no other thread."""
    call(*arguments)


def new_store() -> SqliteStore:
    """A store whose commits wait for a clock that stands still."""
    directory = Path(tempfile.mkdtemp(prefix="store-"))
    store = open_sqlite(
        directory, call_later=Clock().callLater, call_from_thread=at_once, worker=InPlace()
    )
    _opened.append((store, directory))
    return store


def _committing(name: str) -> Callable[..., Any]:
    def method(self: SqliteStore, *arguments: Any) -> Any:
        self.flush()
        return getattr(super(CommittingStore, self), name)(*arguments)

    return method


class CommittingStore(SqliteStore):
    """Everything is on disk before the next call."""


for _name in Store.__abstractmethods__:
    setattr(CommittingStore, _name, _committing(_name))


def new_committing_store() -> SqliteStore:
    """A store that commits each change."""
    store = new_store()
    store.__class__ = CommittingStore
    return store


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while _opened:
        store, directory = _opened.pop()
        with suppress(Exception):
            store.close()
        shutil.rmtree(directory)


class TestSqliteStore(StoreContract):
    """The contract, nothing being committed meanwhile."""

    new_store = new_store


class TestCommittingStore(StoreContract):
    """The contract, each change being committed at once."""

    new_store = new_committing_store


TestMessages, TestRecords = machines(new_store)
TestCommittedMessages, TestCommittedRecords = machines(new_committing_store)
