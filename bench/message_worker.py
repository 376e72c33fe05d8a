"""A generator of messages: the process that other benchmarks start, once or more."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from typing import Any

from bench.messages import Pair, Queue, Sender, Tally, delete_queues, make_queues
from bench.percentiles import Durations
from bench.workers import Handler, obey, sleep
from txsimplex import fast_reactor, openssl
from txsimplex.addresses import ServerAddress
from txsimplex.client.session import Session, open_session
from txsimplex.client.smp import SMPClient
from txsimplex.smp.versions import VersionRange
from txsimplex.tls import client_context

fast_reactor.install()

from twisted.internet import reactor as _reactor  # noqa: E402
from twisted.internet.defer import (  # noqa: E402
    Deferred,
    DeferredSemaphore,
    FirstError,
    gatherResults,
)
from twisted.internet.endpoints import TCP4ClientEndpoint  # noqa: E402

reactor: Any = _reactor

_AT_ONCE = 8
"""Connections that are set up at the same time."""
_DRAIN_TIME = 15.0
_STEP = 0.002


class MessageWorker:
    """Pairs of connections, and when they send."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._pairs: list[Sender] = []
        self._queues: list[tuple[Session, list[Queue]]] = []
        self._sessions: list[Session] = []
        self._pace = 0.0
        self._paced_until = 0.0
        self._next = 0

    async def connect(
        self,
        address: str,
        host: str,
        port: int,
        version: int,
        groups: str,
        queues: Sequence[int],
        verify: int,
        taken: bool = True,
        **options: int,
    ) -> None:
        """Makes a pair of connections for each number in `queues`, with so many queues.

        With `taken` false nobody subscribes to these, and messages stay in them.
        """
        self._tally = Tally()
        server = ServerAddress.parse(address)
        password = None if server.password is None else server.password.encode()
        context = client_context(alpn=(b"smp/1",))
        openssl.set_groups(context, groups.encode())
        versions = VersionRange(min(6, version), version)

        async def connected() -> Session:
            endpoint = TCP4ClientEndpoint(reactor, host, port)
            session = await open_session(
                endpoint, server, versions=versions, context=context, clock=reactor
            )
            if session.version != version:
                raise ValueError(f"the server speaks version {session.version}, not {version}")
            return session

        async def pair(count: int) -> None:
            sender, recipient = await connected(), await connected()
            made = await make_queues(
                SMPClient(recipient, clock=reactor),
                count,
                password,
                os.urandom,
                subscribe=taken,
            )
            self._sessions += [sender, recipient]
            self._queues.append((recipient, made))
            if taken:
                both = Pair(sender, recipient, made, self._tally, verify=verify, **options)
                self._pairs.append(both)
            else:
                self._pairs.append(Sender(sender, made, self._tally, **options))

        semaphore = DeferredSemaphore(_AT_ONCE)
        made = [
            semaphore.run(lambda count: Deferred.fromCoroutine(pair(count)), count)
            for count in queues
        ]
        try:
            await gatherResults(made, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()
        gc.collect()
        gc.freeze()

    async def start(self) -> None:
        """Sends as fast as the windows allow."""
        for pair in self._pairs:
            pair.start()

    async def pace(self, rate: float) -> None:
        """Sends `rate` groups of messages in a second, whatever becomes of them."""
        self._pace = rate
        self._paced_until = time.perf_counter()
        self._step()

    def _step(self) -> None:
        if not self._pace:
            return
        now = time.perf_counter()
        while self._paced_until <= now:
            self._paced_until += 1 / self._pace
            if not self._pairs[self._next % len(self._pairs)].send_group():
                self._tally.late += 1
            self._next += 1
        reactor.callLater(min(_STEP, self._paced_until - now), self._step)

    async def mark(self) -> dict[str, Any]:
        """What was done since the last mark."""
        tally = self._tally
        result = {
            "messages": tally.messages,
            "late": tally.late,
            "latency": tally.latency.as_pairs(),
            "ok_latency": tally.ok_latency.as_pairs(),
            "faults": tally.faults,
            "cpu_seconds": time.process_time(),
        }
        tally.messages = tally.late = 0
        tally.latency = Durations()
        tally.ok_latency = Durations()
        return result

    async def drain(self) -> dict[str, Any]:
        """Sends no more and waits for what is under way."""
        self._pace = 0.0
        for pair in self._pairs:
            pair.running = False
        deadline = time.monotonic() + _DRAIN_TIME
        while not all(pair.idle for pair in self._pairs):
            if time.monotonic() > deadline:
                self._tally.fault("messages or answers did not come")
                break
            await sleep(0.05)
        return {"faults": self._tally.faults}

    async def disconnect(self) -> None:
        """Deletes the queues and closes the connections."""
        for recipient, queues in self._queues:
            await delete_queues(SMPClient(recipient, clock=reactor), queues)
        self._tally = Tally()
        for session in self._sessions:
            session.blocks.close()
        for session in self._sessions:
            await session.blocks.lost()
        self._pairs, self._queues, self._sessions = [], [], []


def main() -> None:
    """Obeys until stdin ends."""
    worker = MessageWorker()
    handlers: dict[str, Handler] = {
        "connect": worker.connect,
        "start": worker.start,
        "pace": worker.pace,
        "mark": worker.mark,
        "drain": worker.drain,
        "disconnect": worker.disconnect,
    }
    obey(handlers)


if __name__ == "__main__":
    main()
