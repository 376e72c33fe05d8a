"""A process that uses the SQLite store at random and tells what it does, until it is killed.

``python -m tests.smpd.stores.crashing DIRECTORY SEED`` writes a line of JSON to stdout before
each change, one after it with the number that it has to wait for, and one whenever the mark
moves. What it found at the start comes first.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from itertools import chain
from pathlib import Path
from typing import Any

from smpd.queues import Message, Queue, Status
from smpd.stores.interface import Collision
from smpd.stores.sqlite import SqliteStore, open_sqlite
from tests.smpd.stores.records import NOW, at_once
from txsimplex.keys import Algorithm, PublicKey
from txsimplex.smp.commands import LinkData

QUOTA = 6
MOST_QUEUES = 12
CHANGES_PER_TURN = 3


def tell(*fields: Any) -> None:
    """One line, which is there even if the process ends the next moment."""
    line = json.dumps([each.hex() if isinstance(each, bytes) else each for each in fields])
    os.write(1, line.encode() + b"\n")


def body_of(msg_id: bytes) -> bytes:
    """The body of the message with this id: of any size."""
    size = int.from_bytes(hashlib.sha256(msg_id).digest()[:2], "big") % 16065
    return hashlib.shake_128(msg_id).digest(size)


def seen(store: SqliteStore, recipient_id: bytes) -> list[Any] | None:
    """What there is of a queue: its state, its link, its messages with the marker as None."""
    queue = store.by_recipient(recipient_id)
    if queue is None:
        return None
    messages = []
    store.message_count(queue)
    for each in queue.messages.waiting:
        if not each.is_quota and each.body != body_of(each.msg_id):
            raise AssertionError("another body")
        messages.append([each.msg_id.hex(), each.is_quota])
    return [
        queue.status.value,
        None if queue.sender_key is None else queue.sender_key.raw.hex(),
        None if queue.link is None else queue.link.link_id.hex(),
        messages,
    ]


class Crashing:
    """Changes at random, a few in each turn of the reactor."""

    def __init__(self, directory: Path, seed: int, reactor: Any) -> None:
        self._random = random.Random(seed)
        self._reactor = reactor
        self._store = open_sqlite(
            directory,
            call_later=reactor.callLater,
            call_from_thread=reactor.callFromThread,
            commit_interval=self._random.choice([0.001, 0.005]),
            cached_queues=self._random.choice([0, 4, 100]),
        )
        self._ids: list[bytes] = []
        for recipient_id in chain.from_iterable(at_once(self._store.unused(1 << 40, 100))):
            self._ids.append(recipient_id)
            tell("found", recipient_id, seen(self._store, recipient_id))
        tell("count", self._store.queue_count())
        self._store.on_commit = lambda: tell("mark", self._store.committed)

    def start(self) -> None:
        """Tells what is safe already, and goes on with the reactor."""
        tell("ready", self._store.committed)
        self._reactor.callWhenRunning(self.turn)

    def turn(self) -> None:
        """Some changes."""
        for _ in range(self._random.randint(0, CHANGES_PER_TURN)):
            self._change()
        self._reactor.callLater(self._random.choice([0, 0, 0.001, 0.003]), self.turn)

    def _change(self) -> None:
        kind = self._random.choices(
            ["write", "remove", "add", "delete", "status", "secure", "link", "unlink"],
            [40, 33, 5, 3, 2, 1, 2, 1],
        )[0]
        if kind == "add" or not self._ids:
            if len(self._ids) < MOST_QUEUES:
                self._add()
            return
        recipient_id = self._random.choice(self._ids)
        queue = self._store.by_recipient(recipient_id)
        if queue is None:
            raise AssertionError("a queue is gone")
        before = self._store.noted
        getattr(self, "_" + kind)(queue)
        noted = self._store.noted
        tell("done", noted if noted != before else self._store.unsafe(queue))

    def _bytes(self, size: int) -> bytes:
        return self._random.randbytes(size)

    def _key(self) -> PublicKey:
        return PublicKey(Algorithm.ED25519, self._bytes(32))

    def _add(self) -> None:
        queue = Queue(self._bytes(24), [self._key()], self._bytes(32), self._bytes(24), used_on=0)
        tell("add", queue.recipient_id)
        self._store.add(queue)
        self._ids.append(queue.recipient_id)
        tell("done", self._store.noted)

    def _delete(self, queue: Queue) -> None:
        tell("delete", queue.recipient_id)
        self._store.delete(queue)
        self._ids.remove(queue.recipient_id)

    def _status(self, queue: Queue) -> None:
        status = self._random.choice([Status.ACTIVE, Status.OFF, Status.BLOCKED])
        tell("status", queue.recipient_id, status.value)
        self._store.set_status(queue, status)

    def _secure(self, queue: Queue) -> None:
        key = self._key()
        tell("key", queue.recipient_id, key.raw)
        self._store.secure(queue, key)

    def _link(self, queue: Queue) -> None:
        link_id = bytes([self._random.randrange(4)]) * 24
        tell("link", queue.recipient_id, link_id)
        try:
            self._store.set_link(queue, link_id, LinkData(b"fixed", self._bytes(2000)))
        except Collision:
            tell("refused")

    def _unlink(self, queue: Queue) -> None:
        tell("link", queue.recipient_id, None)
        self._store.delete_link(queue)

    def _write(self, queue: Queue) -> None:
        msg_id = self._bytes(24)
        size = self._store.message_count(queue)
        tell("write", queue.recipient_id, msg_id)
        message = Message(msg_id, NOW, False, body_of(msg_id))
        written = self._store.write(queue, message, QUOTA)
        if self._store.message_count(queue) == size:
            tell("refused")
        elif not written.accepted:
            tell("marker")

    def _remove(self, queue: Queue) -> None:
        first = self._store.head(queue)
        if first is not None:
            if not first.is_quota and first.body != body_of(first.msg_id):
                raise AssertionError("another body")
            tell("remove", queue.recipient_id, first.msg_id)
            self._store.remove(queue, first.msg_id)


def main(directory: str, seed: str) -> None:
    """Until somebody kills it."""
    from twisted.internet import reactor as installed

    reactor: Any = installed
    crashing = Crashing(Path(directory), int(seed), reactor)
    crashing.start()
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
