"""A store full of queues and messages, made without a relay."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
_SECRET_SIZE = 32


@dataclass(frozen=True, slots=True)
class FilledQueue:
    """A queue of the store, as its recipient knows it; `body` is of its only message."""

    recipient_id: bytes
    secret: bytes
    body: bytes


def fill(
    directory: Path,
    *,
    queues: int,
    messages: int,
    body_size: int,
    keep: int,
    key: PrivateKey,
    progress: Callable[[int], object],
) -> list[FilledQueue]:
    """Makes a SQLite store with so many `queues`, and one message in each of the first `messages`.

    All are secured messaging queues with the recipient's key `key`, since to make a
    million takes long and one is read like another; ids, secrets and bodies are random.
    Tells `progress` how many there are now and then, and returns `keep` of the queues
    with messages, spread evenly.
    """
    clock = Clock()
    store = open_sqlite(
        directory,
        call_later=clock.callLater,
        call_from_thread=lambda call, *arguments: call(*arguments),
        commit_interval=_COMMIT_INTERVAL,
        cached_queues=_CACHED,
        worker=InPlace(),
    )
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
            store.add(queue)
            if number < messages:
                body = os.urandom(body_size)
                store.write(queue, Message(os.urandom(ID_SIZE), now, False, body), 128)
                if number % step == 0 and len(kept) < keep:
                    kept.append(FilledQueue(queue.recipient_id, queue.secret, body))
            if number % _TOGETHER == _TOGETHER - 1:
                clock.advance(_COMMIT_INTERVAL)
                progress(number + 1)
    finally:
        store.close()
    return kept
