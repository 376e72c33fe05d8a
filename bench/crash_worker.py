"""The clients of ``bench.crash``: busy queues on a relay that is killed again and again.

A process that `bench.crash` starts. Each round it connects, looks for its queues,
subscribes to them, and then sends, acknowledges, creates and deletes until the
connections are lost. `Ledger` says what was wrong.
"""

from __future__ import annotations

import random
import time
from collections.abc import Coroutine, Sequence
from typing import Any

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
from txsimplex.client.errors import ClientError, RelayError
from txsimplex.client.smp import Request, SMPClient
from txsimplex.smp import commands, errors
from txsimplex.smp.messages import Msg, Ok, Sok
from txsimplex.smp.transmissions import Received

fast_reactor.install()

from twisted.internet import reactor as _reactor  # noqa: E402
from twisted.internet.defer import Deferred, DeferredList  # noqa: E402
from twisted.python.failure import Failure  # noqa: E402

reactor: Any = _reactor

_DRAIN_TIME = 60.0
_SUBSCRIBED_AT_ONCE = 64


class CrashWorker:
    """All clients, and what the relay owes them."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._wanted = 0
        self._queues: dict[bytes, BusyQueue] = {}
        self._deleted: list[BusyQueue] = []
        """Queues whose deletion was asked in the last run."""
        self._gone: list[BusyQueue] = []
        """Queues that were found to be there no more."""
        self._senders: list[SMPClient] = []
        self._recipients: list[SMPClient] = []
        self._tasks: list[Deferred[Any]] = []
        self._stopping = False

    # -- what the benchmark asks for

    async def run(self, address: str, host: str, port: int, queues: int) -> bool:
        """Connects, checks what is there, and keeps so many `queues` busy.

        False when a crash cut short what comes before the traffic.
        """
        self._stopping = False
        self._wanted = queues
        running = Deferred.fromCoroutine(self._run((address, host, port)))
        self._tasks.append(running)
        try:
            return bool(await running)
        except ENDED:
            return False

    async def crashed(self) -> dict[str, Any]:
        """The relay was killed: waits until that is felt everywhere; the counts so far."""
        self._stopping = True
        for client in self._senders + self._recipients:
            # What had arrived is read before the end of the connection is.
            await client.lost()
        tasks, self._tasks = self._tasks, []
        for success, result in await DeferredList(tasks, consumeErrors=True):
            if not success and isinstance(result, Failure) and not result.check(*ENDED):
                result.raiseException()
        self._senders, self._recipients = [], []
        self.ledger.crashed()
        return self.ledger.as_json()

    async def drain(self, address: str, host: str, port: int) -> dict[str, Any]:
        """Takes everything that is left, and looks once more for what was deleted."""
        if not await self.run(address, host, port, queues=0):
            raise ClientError("the relay went away before everything was taken")
        deadline = time.monotonic() + _DRAIN_TIME
        while any(queue.waits for queue in self._queues.values()):
            if time.monotonic() > deadline:
                self.ledger.wrong_answer("messages or answers did not come")
                break
            await sleep(STEP)
        for client in self._recipients:
            await client.ping()
        for queue in self._queues.values():
            self.ledger.empty(queue.recipient_id)
        await self._look_for(self._gone)
        for client in self._senders + self._recipients:
            await client.close()
        return self.ledger.as_json()

    # -- beginning a run

    async def _run(self, place: tuple[str, str, int]) -> bool:
        for clients in (self._senders, self._recipients):
            while len(clients) < CONNECTIONS:
                client = await connected(reactor, place, self._event, lambda: not self._stopping)
                if client is None:
                    return False
                clients.append(client)
        # When a look was cut short by a crash, those deleted before are among the others.
        all_queues = {queue.recipient_id: queue for queue in self._deleted} | self._queues
        await self._look_for(list(all_queues.values()))
        self._deleted = []
        for client in self._recipients:
            await client.ping()
        for queue in self._queues.values():
            # A message would have come before the answer to PING.
            if not queue.came:
                self.ledger.empty(queue.recipient_id)
        if self._wanted:
            await self._begin()
        return True

    async def _look_for(self, queues: Sequence[BusyQueue]) -> None:
        """Subscribes to queues; those that are there no more, or should not be, are dropped."""
        for queue in queues:
            # What comes in answer may come before all answers are there.
            self._queues[queue.recipient_id] = queue
            queue.waits = queue.came = False
            queue.habit = random.choice(HABITS) if self._wanted else HABITS[0]
        for share, client in enumerate(self._recipients):
            own = [queue for queue in queues if queue.share == share]
            for start in range(0, len(own), _SUBSCRIBED_AT_ONCE):
                part = own[start : start + _SUBSCRIBED_AT_ONCE]
                requests = [
                    Request(commands.Sub(), queue.recipient_id, queue.key) for queue in part
                ]
                for queue, answer in zip(part, await client.send_many(requests), strict=True):
                    self._looked_for(queue, answer)

    def _looked_for(self, queue: BusyQueue, answer: object) -> None:
        if isinstance(answer, ENDED):
            raise answer
        there = isinstance(answer, Ok | Sok)
        if not there and not is_auth(answer):
            self.ledger.wrong_answer(f"SUB was answered by {answer}")
            # Nothing can be said of its messages then.
            queue.came = True
        elif not self.ledger.found(queue.recipient_id, there):
            del self._queues[queue.recipient_id]
            self._gone.append(queue)

    async def _begin(self) -> None:
        for queue in list(self._queues.values()):
            await self._secure(queue)
        while len(self._queues) < self._wanted:
            await self._create()
        for queue in list(self._queues.values()):
            self._start_sending(queue)
        self._start(self._churn())

    def _start(self, task: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(Deferred.fromCoroutine(task))

    # -- queues come and go

    async def _create(self) -> BusyQueue:
        share = random.randrange(CONNECTIONS)
        queue = await created(self._recipients[share], share)
        self.ledger.created(queue.recipient_id)
        self._queues[queue.recipient_id] = queue
        await self._secure(queue)
        return queue

    async def _secure(self, queue: BusyQueue) -> None:
        if not queue.wants_securing or queue.secured:
            return
        # Whether a KEY without answer took effect does not matter: the same key is set again.
        client = self._client_of(queue)
        try:
            await client.secure(queue.recipient_id, queue.key, queue.sender_key.public)
        except RelayError as error:
            self.ledger.wrong_answer(f"KEY was answered by {error}")
        queue.secured = True

    async def _churn(self) -> None:
        while not self._stopping:
            await sleep(random.uniform(0, 2 * CHURN_INTERVAL))
            if len(self._queues) >= self._wanted:
                await self._delete(random.choice(list(self._queues.values())))
            else:
                self._start_sending(await self._create())

    async def _delete(self, queue: BusyQueue) -> None:
        # It is looked for in the next run, whatever is answered now.
        self._deleted.append(queue)
        self._queues.pop(queue.recipient_id)
        self.ledger.delete_asked(queue.recipient_id)
        try:
            await self._client_of(queue).delete(queue.recipient_id, queue.key)
        except RelayError as error:
            self.ledger.wrong_answer(f"DEL was answered by {error}")
        else:
            self.ledger.delete_answered(queue.recipient_id)

    # -- sending

    def _start_sending(self, queue: BusyQueue) -> None:
        for _ in range(SENDS_AT_ONCE):
            self._start(self._send(queue))

    async def _send(self, queue: BusyQueue) -> None:
        client = self._senders[queue.share]
        key = queue.sender_key if queue.secured else None
        while not self._stopping and queue.recipient_id in self._queues:
            number = self.ledger.send_asked(queue.recipient_id)
            try:
                await client.send(queue.seed, numbered_body(queue.seed, number), key=key)
            except RelayError as error:
                if error.error == errors.QUOTA:
                    self.ledger.send_refused(queue.recipient_id, number)
                else:
                    self.ledger.send_failed(queue.recipient_id, number, str(error))
                await sleep(STEP)
            else:
                self.ledger.send_answered(queue.recipient_id, number)

    # -- receiving

    def _client_of(self, queue: BusyQueue) -> SMPClient:
        return self._recipients[queue.share]

    def _event(self, received: Received) -> None:
        queue = self._queues.get(received.entity_id)
        if not isinstance(received.message, Msg):
            self.ledger.wrong_answer(f"an event that is not a message: {received.message}")
        elif queue is not None:
            self._took(queue, received.message)

    def _took(self, queue: BusyQueue, message: Msg) -> None:
        """Enters a message into the books; acknowledges it or not."""
        number = queue.enter(self.ledger, message)
        queue.came = True
        if queue.habit == "never":
            return
        queue.waits = True
        delay = random.uniform(0, STEP) if queue.habit == "later" else 0.0
        self._start(self._acknowledge(queue, number, message.msg_id, delay))

    async def _acknowledge(
        self, queue: BusyQueue, number: int | None, msg_id: bytes, delay: float
    ) -> None:
        if delay:
            await sleep(delay)
        if self._stopping:
            return
        recipient_id = queue.recipient_id
        self.ledger.ack_asked(recipient_id, number, msg_id)
        try:
            message = await self._client_of(queue).ack(recipient_id, queue.key, msg_id)
        except RelayError as error:
            self.ledger.ack_failed(recipient_id, str(error))
            queue.waits = False
            return
        queue.waits = False
        self.ledger.ack_answered(recipient_id, number, msg_id, empty=message is None)
        if message is not None:
            self._took(queue, message)


def main() -> None:
    """Obeys until stdin ends."""
    worker = CrashWorker()
    handlers: dict[str, Handler] = {
        "run": worker.run,
        "crashed": worker.crashed,
        "drain": worker.drain,
    }
    obey(handlers)


if __name__ == "__main__":
    main()
