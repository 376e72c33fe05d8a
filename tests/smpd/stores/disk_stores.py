"""SQLite stores for tests: in temporary directories, with clocks and threads that tests drive."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from twisted.internet.task import Clock

from smpd.stores.group_commit import InPlace, Worker, WriterThread
from smpd.stores.interface import Store
from smpd.stores.sqlite import SqliteStore, open_sqlite

TICK = 0.004
"""More than half of the interval of commits: seconds."""


class Loop:
    """A reactor's time and its calls from other threads, which a test goes through."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()

    def call_from_thread(self, call: Callable[..., Any], *arguments: Any) -> None:
        """`IReactorFromThreads.callFromThread`."""
        self._calls.put((call, arguments))

    def turn(self, seconds: float = 0.0) -> None:
        """Time passes, and calls of other threads are made."""
        self.clock.advance(seconds)
        with suppress(Empty):
            while True:
                call, arguments = self._calls.get_nowait()
                call(*arguments)

    def pass_interval(self) -> None:
        """Time enough for everything that was noted to be handed to the writer."""
        for _ in range(3):
            self.turn(TICK)

    def wait(self, until: Callable[[], bool], turns: int = 5000) -> None:
        """Turns until `until` says so; `TimeoutError` after so many turns of 2 ms."""
        for _ in range(turns):
            if until():
                return
            with suppress(Empty):
                call, arguments = self._calls.get(timeout=0.002)
                call(*arguments)
            self.turn(0.1)
        raise TimeoutError


class BeforeEachCall:
    """A store, and something that is done before each call of it."""

    def __init__(self, store: Store, action: Callable[[], Any]) -> None:
        self._store = store
        self._action = action

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def call(*arguments: Any) -> Any:
            self._action()
            return found(*arguments)

        return call


class DiskStores:
    """Stores in directories of their own, which go with them."""

    def __init__(self) -> None:
        self._opened: list[SqliteStore] = []
        self._directories: list[Path] = []

    def directory(self) -> Path:
        """A new directory."""
        directory = Path(tempfile.mkdtemp(prefix="store-"))
        self._directories.append(directory)
        return directory

    def open(
        self,
        directory: Path | None = None,
        loop: Loop | None = None,
        *,
        threaded: bool = False,
        cached_queues: int = 20_000,
    ) -> SqliteStore:
        """The store in a directory, in a new one if none is given."""
        loop = loop or Loop()
        worker: Worker = WriterThread() if threaded else InPlace()
        store = open_sqlite(
            directory or self.directory(),
            call_later=loop.clock.callLater,
            call_from_thread=loop.call_from_thread,
            cached_queues=cached_queues,
            worker=worker,
        )
        self._opened.append(store)
        return store

    def close(self, store: SqliteStore) -> None:
        """Closes a store, but leaves its directory."""
        self._opened.remove(store)
        store.close()

    def clear(self) -> None:
        """Closes all stores and removes all directories."""
        while self._opened:
            self._opened.pop().close()
        while self._directories:
            shutil.rmtree(self._directories.pop())
