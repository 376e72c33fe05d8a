"""The clients of ``bench.crash`` when several relays share a store.

A process that `bench.crash` starts. Connections to all relays stay open as long as these live.
Each queue has its sender at one relay and its recipient at another, or the same; whoever
loses a connection goes to another relay, and recipients move now and then without need, so
that a subscription is taken from a connection that is still there. `Ledger` says what was wrong.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from bench.busy_queues import (
    CHURN_INTERVAL,
    CONNECTIONS,
    ENDED,
    HABITS,
    SENDS_AT_ONCE,
    STEP,
    BusyQueue,
    connected,
    created,
    is_auth,
)
from bench.ledger import Ledger, numbered_body
from bench.workers import Handler, obey, sleep
from txsimplex import fast_reactor
from txsimplex.client.errors import RelayError
from txsimplex.client.smp import SMPClient
from txsimplex.smp import errors
from txsimplex.smp.messages import Deld, End, Msg
from txsimplex.smp.transmissions import Received

fast_reactor.install()

from twisted.internet import reactor as _reactor  # noqa: E402
from twisted.internet.defer import Deferred  # noqa: E402
from twisted.python.failure import Failure  # noqa: E402

reactor: Any = _reactor

_STAY: Final = 6.0
"""The longest that a recipient stays where it is, in seconds."""
_PATIENCE: Final = 10.0
"""Seconds in which a message has to come to its subscriber, and an END to who was one."""
_WATCH_INTERVAL: Final = 0.5
_RETRY: Final = 0.2
_LEFT_TIME: Final = 5.0
"""Seconds that a queue waits for a connection that is not subscribed to it."""
_DRAIN_TIME: Final = 60.0


@dataclass(eq=False)
class _Connection:
    """A client of one relay. `ends` are the queues of which it has to get END, since when."""

    relay: int
    number: int
    client: SMPClient
    ends: dict[bytes, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"relay {self.relay}, connection {self.number}"


class _SharedQueue:
    """A queue, and where its users are."""

    def __init__(self, busy: BusyQueue, recipient: _Connection) -> None:
        self.busy = busy
        self.recipient: _Connection | None = recipient
        """Where it is subscribed to, or is about to be."""
        self.sender: _Connection | None = None
        self.subscribed = True
        self.idle_since: float | None = time.monotonic()
        """Since when there was no message for the recipient."""
        self.owed_since: float | None = None
        """Since when there ought to be one."""
        self.moving = False
        self.in_doubt = False
        """Whether SUB or ACK was answered by an error of the store."""
        self.left: list[_Connection] = []
        """Where it was subscribed to, and END has not come."""
        self.marker_acks = 0
        self.deleted = False

    @property
    def key(self) -> bytes:
        """What it is called in the books."""
        return self.busy.recipient_id


class RelaysWorker:
    """All clients, and what the relays owe them."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._wanted = 0
        self._queues: dict[bytes, _SharedQueue] = {}
        self._gone: list[_SharedQueue] = []
        self._senders: list[_Connection] = []
        self._recipients: list[_Connection] = []
        self._tasks: set[Deferred[Any]] = set()
        self._failure: Failure | None = None
        self._draining = False
        self._disturbed = 0.0
        self._made = 0
        self._sending = 0
        self.moves = self.ends = 0
        self.store_errors: Counter[str] = Counter()

    # -- what the benchmark asks for

    async def begin(self, queues: int) -> None:
        """Keeps so many queues busy from now on."""
        self._wanted = queues
        self._start(self._churn())
        self._start(self._watch())

    async def returned(self, relay: int, address: str, host: str, port: int) -> bool:
        """A relay takes connections; False when it went away again meanwhile."""
        began = time.monotonic()
        for connections in (self._senders, self._recipients):
            for _ in range(CONNECTIONS):
                self._made += 1
                known: list[_Connection] = []
                client = await connected(
                    reactor,
                    (address, host, port),
                    partial(self._event, known),
                    lambda: time.monotonic() < began + _PATIENCE,
                )
                if client is None:
                    return False
                connection = _Connection(relay, self._made, client)
                known.append(connection)
                connections.append(connection)
                self._start(self._forget_when_lost(connection))
        return True

    async def killed(self, relays: list[int], database: bool) -> dict[str, Any]:
        """Relays, or the database, were killed: waits until that is felt; the counts so far."""
        if database:
            self._disturbed = time.monotonic()
        self.ledger.killed()
        for connection in self._senders + self._recipients:
            if connection.relay in relays:
                await connection.client.lost()
        return self._counts()

    async def database_returned(self) -> None:
        """The database is there again."""
        self._disturbed = time.monotonic()

    async def drain(self) -> dict[str, Any]:
        """Takes everything that is left, and looks once more for what was deleted."""
        self._draining = True
        deadline = time.monotonic() + _DRAIN_TIME
        while self._sending:
            await sleep(STEP)
        # Each recipient subscribes once more, at any relay, and takes all there is.
        for queue in self._queues.values():
            queue.moving = True
        while not all(map(self._is_drained, self._queues.values())):
            if time.monotonic() > deadline or self._failure is not None:
                self.ledger.wrong_answer("messages or answers did not come")
                break
            await sleep(STEP)
        for key, queue in self._queues.items():
            self.ledger.empty(key)
            # Nobody subscribes to it any more.
            queue.deleted = True
        for queue in self._gone:
            await self._look_for(queue)
        for connection in self._senders + self._recipients:
            await connection.client.close()
        return self._counts()

    def _is_drained(self, queue: _SharedQueue) -> bool:
        return not queue.moving and queue.subscribed and queue.idle_since is not None

    def _counts(self) -> dict[str, Any]:
        if self._failure is not None:
            self._failure.raiseException()
        return {
            **self.ledger.as_json(),
            "moves": self.moves,
            "ends": self.ends,
            "store_errors": dict(self.store_errors),
            "histories": self.ledger.histories,
        }

    def _start(self, task: Coroutine[Any, Any, None]) -> None:
        doing = Deferred.fromCoroutine(task)
        self._tasks.add(doing)

        def done(result: object) -> None:
            self._tasks.discard(doing)
            if isinstance(result, Failure) and self._failure is None:
                self._failure = result

        doing.addBoth(done)

    # -- connections

    async def _forget_when_lost(self, connection: _Connection) -> None:
        await connection.client.lost()
        for connections in (self._senders, self._recipients):
            if connection in connections:
                connections.remove(connection)

    async def _any(self, connections: list[_Connection]) -> _Connection:
        """Any of them, as soon as there is one."""
        while True:
            there = [each for each in connections if each.client.connected]
            if there:
                return random.choice(there)
            await sleep(STEP)

    async def _another(self, queue: _SharedQueue) -> _Connection:
        """A connection of recipients that is not subscribed to the queue, as soon as there is one.

        On one that is, a message that has come would come once more.
        """
        began = time.monotonic()
        while True:
            queue.left = [each for each in queue.left if each.client.connected]
            there = [
                each
                for each in self._recipients
                if each.client.connected and each is not queue.recipient and each not in queue.left
            ]
            if there:
                return random.choice(there)
            if queue.left and time.monotonic() > began + _LEFT_TIME:
                # No SUB elsewhere had an effect.
                random.choice(queue.left).client.abort()
            await sleep(STEP)

    def _is_of_store(self, error: RelayError) -> bool:
        """Whether a relay says that the database has failed: rightly, when it was killed."""
        if error.error.path[-1] != "STORE" or not self._disturbed:
            return False
        self.store_errors[str(error)] += 1
        return True

    # -- queues come and go

    async def _churn(self) -> None:
        while not self._draining:
            await sleep(random.uniform(0, 2 * CHURN_INTERVAL))
            if len(self._queues) >= self._wanted:
                await self._delete(random.choice(list(self._queues.values())))
            else:
                await self._create()

    async def _create(self) -> None:
        recipient = await self._any(self._recipients)
        try:
            busy = await created(recipient.client)
        except ENDED:
            return
        except RelayError as error:
            if not self._is_of_store(error):
                self.ledger.wrong_answer(f"NEW was answered by {error}")
            return
        queue = _SharedQueue(busy, recipient)
        self._new_habit(queue)
        self.ledger.created(queue.key)
        self.ledger.note(queue.key, f"NEW at {recipient}")
        self._queues[queue.key] = queue
        self._start(self._keep_subscribed(queue))
        self._start(self._begin_sending(queue))

    def _new_habit(self, queue: _SharedQueue) -> None:
        queue.busy.habit = HABITS[0] if self._draining else random.choice(HABITS)

    async def _delete(self, queue: _SharedQueue) -> None:
        connection = await self._any(self._recipients)
        queue.deleted = True
        self._queues.pop(queue.key)
        self.ledger.delete_asked(queue.key)
        self.ledger.note(queue.key, f"DEL at {connection}")
        while True:
            try:
                await connection.client.delete(queue.key, queue.busy.key)
            except ENDED:
                pass
            except RelayError as error:
                if is_auth(error):
                    # An earlier one, which had no answer, has taken effect.
                    break
                if not self._is_of_store(error):
                    self.ledger.wrong_answer(f"DEL was answered by {error}", queue.key)
                    break
                await sleep(_RETRY)
            else:
                break
            connection = await self._any(self._recipients)
        self.ledger.delete_answered(queue.key)
        self._gone.append(queue)

    async def _look_for(self, queue: _SharedQueue) -> None:
        """What was deleted must not be there."""
        connection = await self._any(self._recipients)
        try:
            await connection.client.subscribe(queue.key, queue.busy.key)
        except RelayError as error:
            if not is_auth(error):
                self.ledger.wrong_answer(f"SUB was answered by {error}", queue.key)
        else:
            self.ledger.found(queue.key, True)

    # -- the sender

    async def _begin_sending(self, queue: _SharedQueue) -> None:
        busy = queue.busy
        while busy.wants_securing and not busy.secured and not queue.deleted:
            connection = await self._any(self._recipients)
            try:
                await connection.client.secure(queue.key, busy.key, busy.sender_key.public)
            except ENDED:
                continue
            except RelayError as error:
                if self._is_of_store(error):
                    await sleep(_RETRY)
                    continue
                if not queue.deleted:
                    self.ledger.wrong_answer(f"KEY was answered by {error}", queue.key)
            # What had no answer before does not matter: the same key is set again.
            busy.secured = True
        for _ in range(SENDS_AT_ONCE):
            self._start(self._send(queue))

    async def _sender(self, queue: _SharedQueue) -> _Connection:
        """The connection that all messages under way of a queue are sent on."""
        while queue.sender is None or not queue.sender.client.connected:
            connection = await self._any(self._senders)
            if queue.sender is None or not queue.sender.client.connected:
                queue.sender = connection
                self.ledger.note(queue.key, f"sender at {connection}")
        return queue.sender

    async def _send(self, queue: _SharedQueue) -> None:
        busy = queue.busy
        key = busy.sender_key if busy.secured else None
        while True:
            client = (await self._sender(queue)).client
            if self._draining or queue.deleted:
                return
            number = self.ledger.send_asked(queue.key)
            self._sending += 1
            try:
                await client.send(busy.seed, numbered_body(busy.seed, number), key=key)
            except ENDED:
                continue
            except RelayError as error:
                if error.error == errors.QUOTA:
                    self.ledger.send_refused(queue.key, number)
                    await sleep(STEP)
                elif self._is_of_store(error):
                    self.ledger.send_in_doubt(queue.key, number, str(error))
                    await sleep(_RETRY)
                else:
                    self.ledger.send_failed(queue.key, number, str(error))
                    await sleep(STEP)
            else:
                self.ledger.send_answered(queue.key, number)
                if queue.owed_since is None:
                    queue.owed_since = time.monotonic()
            finally:
                self._sending -= 1

    # -- the recipient

    async def _keep_subscribed(self, queue: _SharedQueue) -> None:
        """Subscribes elsewhere each time that a connection is lost, and now and then."""
        while True:
            await self._stay(queue)
            connection = await self._another(queue)
            if queue.deleted:
                return
            former = queue.recipient
            if former is not None and former.client.connected:
                if queue.marker_acks:
                    # It came while there was no other connection.
                    continue
                queue.left.append(former)
                self.moves += 1
            await self._subscribe(queue, connection)

    async def _stay(self, queue: _SharedQueue) -> None:
        """Waits until a connection is lost, or it is time to go to another."""
        until = time.monotonic() + random.uniform(0, _STAY)
        while not queue.deleted:
            connection = queue.recipient
            if connection is None or not connection.client.connected:
                return
            leaves = (
                queue.moving
                or not queue.subscribed
                or (time.monotonic() > until and not self._draining)
            )
            # The books could not tell whether a queue is full if both had a marker.
            if leaves and not queue.marker_acks:
                return
            await sleep(STEP)

    async def _subscribe(self, queue: _SharedQueue, connection: _Connection) -> None:
        queue.subscribed = queue.moving = queue.in_doubt = False
        queue.idle_since = None
        queue.recipient = connection
        queue.marker_acks = 0
        queue.busy.came = False
        self._new_habit(queue)
        self.ledger.subscribing(queue.key, str(connection))
        try:
            await connection.client.subscribe(queue.key, queue.busy.key)
            await connection.client.ping()
        except ENDED:
            return
        except RelayError as error:
            if self._is_of_store(error):
                # It may be subscribed nevertheless.
                queue.in_doubt = True
                await sleep(_RETRY)
            elif not is_auth(error):
                self.ledger.wrong_answer(f"SUB was answered by {error}", queue.key)
            elif not queue.deleted:
                self.ledger.found(queue.key, False)
                self._queues.pop(queue.key)
                queue.deleted = True
            return
        if queue.recipient is not connection or queue.deleted:
            return
        queue.subscribed = True
        for former in queue.left:
            former.ends.setdefault(queue.key, time.monotonic())
        if not queue.busy.came:
            # A message would have come before the answer to PING.
            self.ledger.nothing_came(queue.key)
            queue.idle_since = time.monotonic()

    def _event(self, known: list[_Connection], received: Received) -> None:
        (connection,) = known
        key = received.entity_id
        queue = self._queues.get(key)
        if isinstance(received.message, End | Deld):
            self._ended(connection, queue, key, received.message)
        elif not isinstance(received.message, Msg):
            self.ledger.wrong_answer(f"an event that is not a message: {received.message}")
        elif queue is not None and queue.recipient is connection and not queue.in_doubt:
            self._took(queue, connection, received.message)

    def _ended(
        self, connection: _Connection, queue: _SharedQueue | None, key: bytes, event: End | Deld
    ) -> None:
        self.ends += 1
        connection.ends.pop(key, None)
        if queue is None:
            return
        self.ledger.note(key, f"END at {connection}")
        if isinstance(event, Deld):
            self.ledger.wrong_answer("DELD of a queue that was not deleted", key)
        elif connection in queue.left:
            queue.left.remove(connection)
        elif queue.recipient is connection and queue.subscribed:
            self.ledger.wrong_answer("END to who is subscribed", key)

    def _took(self, queue: _SharedQueue, connection: _Connection, message: Msg) -> None:
        number = queue.busy.enter(self.ledger, message)
        queue.busy.came = True
        queue.idle_since = queue.owed_since = None
        if queue.busy.habit != "never":
            delay = random.uniform(0, STEP) if queue.busy.habit == "later" else 0.0
            self._start(self._acknowledge(queue, connection, number, message.msg_id, delay))

    async def _acknowledge(
        self,
        queue: _SharedQueue,
        connection: _Connection,
        number: int | None,
        msg_id: bytes,
        delay: float,
    ) -> None:
        if delay:
            await sleep(delay)
        run = self.ledger.run_of(queue.key)
        if queue.recipient is not connection or queue.deleted or queue.in_doubt:
            return
        queue.marker_acks += number is None
        self.ledger.ack_asked(queue.key, number, msg_id)
        try:
            message = await connection.client.ack(queue.key, queue.busy.key, msg_id)
        except ENDED:
            return
        except RelayError as error:
            self._not_acknowledged(queue, run, error)
            return
        if self.ledger.run_of(queue.key) != run:
            assert number is not None
            self.ledger.ack_answered_elsewhere(queue.key, number, run)
            return
        queue.marker_acks -= number is None
        self.ledger.ack_answered(queue.key, number, msg_id, empty=message is None)
        if message is not None:
            self._took(queue, connection, message)
        else:
            queue.idle_since = time.monotonic()

    def _not_acknowledged(self, queue: _SharedQueue, run: int, error: RelayError) -> None:
        same = self.ledger.run_of(queue.key) == run
        if same:
            queue.marker_acks = 0
        if not same or queue.in_doubt:
            # It had lost the queue to another, or had never got it.
            right = error.error == errors.NO_MSG or is_auth(error) or self._is_of_store(error)
            if not right:
                self.ledger.ack_failed(queue.key, str(error))
        elif self._is_of_store(error):
            # The first message comes once more then, which may be the same.
            self.ledger.note(queue.key, str(error))
            queue.moving = queue.in_doubt = True
        else:
            self.ledger.ack_failed(queue.key, str(error))

    # -- what does not come

    async def _watch(self) -> None:
        while not self._draining:
            await sleep(_WATCH_INTERVAL)
            before = time.monotonic() - _PATIENCE
            if self._disturbed > before:
                continue
            for key, queue in self._queues.items():
                since = (queue.idle_since, queue.owed_since)
                if all(each is not None and each < before for each in since):
                    queue.owed_since = None
                    if self.ledger.owes(key):
                        self.ledger.wrong_answer("a message did not come to its subscriber", key)
            for connection in self._recipients:
                for key, asked in list(connection.ends.items()):
                    if asked < before:
                        del connection.ends[key]
                        if key in self._queues:
                            self.ledger.wrong_answer("END did not come", key)


def main() -> None:
    """Obeys until stdin ends."""
    worker = RelaysWorker()
    handlers: dict[str, Handler] = {
        "begin": worker.begin,
        "returned": worker.returned,
        "killed": worker.killed,
        "database_returned": worker.database_returned,
        "drain": worker.drain,
    }
    obey(handlers)


if __name__ == "__main__":
    main()
