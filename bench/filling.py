"""A store full of queues and messages, made without a relay."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from twisted.internet.task import Clock

from smpd.queues import ID_SIZE, Message, Queue, day_of
from smpd.stores.group_commit import InPlace
from smpd.stores.sqlite import open_sqlite
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.commands import QueueMode

_COMMIT_INTERVAL = 0.005
_CACHED = 1000
"""Queues that are kept in memory while filling."""
_TOGETHER = 5000
"""Queues and messages in one commit."""
_QUOTA = 128
_SECRET_SIZE = 32


@dataclass(frozen=True, slots=True)
class FilledQueue:
    """A queue of the store, as its recipient knows it; `body` is of its only message."""

    recipient_id: bytes
    secret: bytes
    body: bytes


class Filler(Protocol):
    """A store that is being filled."""

    def add(self, queue: Queue, message: Message | None) -> None:
        """Adds a queue, with a message if there is one."""

    def commit(self) -> None:
        """Writes what was added since the last time."""

    def close(self) -> None:
        """Writes all of it, and ends."""


class SqliteFiller:
    """Fills a SQLite store, by what the relay calls."""

    def __init__(self, directory: Path) -> None:
        self._clock = Clock()
        self._store = open_sqlite(
            directory,
            call_later=self._clock.callLater,
            call_from_thread=lambda call, *arguments: call(*arguments),
            commit_interval=_COMMIT_INTERVAL,
            cached_queues=_CACHED,
            worker=InPlace(),
        )

    def add(self, queue: Queue, message: Message | None) -> None:
        self._store.add(queue)
        if message is not None:
            self._store.write(queue, message, _QUOTA)

    def commit(self) -> None:
        self._clock.advance(_COMMIT_INTERVAL)

    def close(self) -> None:
        self._store.close()


def fill(
    store: Filler,
    *,
    queues: int,
    messages: int,
    body_size: int,
    keep: int,
    key: PrivateKey,
    progress: Callable[[int], object],
) -> list[FilledQueue]:
    """Fills a store with so many `queues`, and one message in each of the first `messages`.

    All are secured messaging queues with the recipient's key `key`, since to make a
    million takes long and one is read like another; ids, secrets and bodies are random.
    Tells `progress` how many there are now and then, and returns `keep` of the queues
    with messages, spread evenly. Closes the store.
    """
    sender_key = PrivateKey.generate(Algorithm.X25519, os.urandom).public
    now = int(time.time())
    kept: list[FilledQueue] = []
    step = max(1, messages // keep)
    try:
        for number in range(queues):
            queue = Queue(
                os.urandom(ID_SIZE),
                [key.public],
                os.urandom(_SECRET_SIZE),
                os.urandom(ID_SIZE),
                QueueMode.MESSAGING,
                sender_key,
                used_on=day_of(now),
            )
            message = None
            if number < messages:
                body = os.urandom(body_size)
                message = Message(os.urandom(ID_SIZE), now, False, body)
                if number % step == 0 and len(kept) < keep:
                    kept.append(FilledQueue(queue.recipient_id, queue.secret, body))
            store.add(queue, message)
            if number % _TOGETHER == _TOGETHER - 1:
                store.commit()
                progress(number + 1)
    finally:
        store.close()
    return kept
