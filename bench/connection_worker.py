"""A generator of connections: the process that `bench.connections` starts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from bench.percentiles import Durations
from bench.workers import Handler, obey, sleep
from txsimplex import fast_reactor, openssl
from txsimplex.addresses import ServerAddress
from txsimplex.client.errors import ClientError
from txsimplex.client.session import Session, open_blocks, open_session
from txsimplex.client.smp import SMPClient
from txsimplex.smp.versions import VersionRange
from txsimplex.tls import client_context

fast_reactor.install()

from OpenSSL import SSL  # noqa: E402
from twisted.internet import reactor as _reactor  # noqa: E402
from twisted.internet.defer import Deferred, gatherResults  # noqa: E402
from twisted.internet.endpoints import TCP4ClientEndpoint  # noqa: E402
from twisted.internet.protocol import Factory, Protocol  # noqa: E402

reactor: Any = _reactor

_TELL_FAULTS = 5
_VERIFY = 32
"""One handshake in so many is followed by a PING, to see that the relay has accepted it."""


class ConnectionWorker:
    """Connections that are held, made and dropped."""

    def __init__(self) -> None:
        self._held: list[Session] = []
        self._faults: list[str] = []
        self._pinging = False
        self._pings = Durations()
        self._pinged: list[Deferred[None]] = []

    async def prepare(self, address: str, host: str, port: int, version: int, groups: str) -> None:
        """Says what to connect to, and how."""
        self._address = ServerAddress.parse(address)
        self._versions = VersionRange(min(6, version), version)
        self._context = client_context(alpn=(b"smp/1",))
        openssl.set_groups(self._context, groups.encode())
        self._endpoint = TCP4ClientEndpoint(reactor, host, port, timeout=60)

    async def _session(self) -> Session:
        return await open_session(
            self._endpoint,
            self._address,
            versions=self._versions,
            context=self._context,
            timeout=120,
            clock=reactor,
        )

    async def _many(
        self, work: Callable[[int], Awaitable[None]], at_once: int, more: Callable[[int], bool]
    ) -> int:
        """Does `work` with 0, 1, 2 … while `more` says so, some at once; how often."""
        numbers = itertools.count()
        done = 0

        async def one_after_the_other() -> None:
            nonlocal done
            while more(number := next(numbers)):
                try:
                    await work(number)
                except ClientError as error:
                    self._fault(f"{type(error).__name__}: {error}")
                done += 1

        await gatherResults([Deferred.fromCoroutine(one_after_the_other()) for _ in range(at_once)])
        return done

    def _fault(self, text: str) -> None:
        if len(self._faults) < _TELL_FAULTS:
            self._faults.append(text)

    def _take_faults(self) -> list[str]:
        faults, self._faults = self._faults, []
        return faults

    async def hold(self, count: int, at_once: int, seconds: float) -> dict[str, Any]:
        """Opens `count` connections, or what can be done in so many seconds, and keeps them."""
        end = time.monotonic() + seconds

        async def one(_: int) -> None:
            self._held.append(await self._session())

        before = len(self._held)
        await self._many(one, at_once, lambda number: number < count and time.monotonic() < end)
        return {"held": len(self._held) - before, "faults": self._take_faults()}

    async def release(self) -> dict[str, Any]:
        """Closes the connections that are kept; says how many the server had closed before."""
        sessions, self._held = self._held, []
        lost = sum(not session.blocks.connected for session in sessions)
        for session in sessions:
            session.blocks.abort()
        await gatherResults([Deferred.fromCoroutine(s.blocks.lost()) for s in sessions])
        return {"lost": lost}

    async def handshakes(self, seconds: float, at_once: int) -> dict[str, Any]:
        """Connects and closes again for so many seconds."""
        end = time.monotonic() + seconds

        async def one(number: int) -> None:
            session = await self._session()
            if number % _VERIFY == 0:
                await SMPClient(session, clock=reactor).ping()
            session.blocks.close()

        done = await self._many(one, at_once, lambda _: time.monotonic() < end)
        return {"handshakes": done, "faults": self._take_faults()}

    async def burst(self, count: int) -> dict[str, Any]:
        """Begins `count` connections at the same moment; how long each handshake took."""
        durations = Durations()

        async def one(_: int) -> None:
            began = time.perf_counter()
            self._held.append(await self._session())
            durations.add(time.perf_counter() - began)

        began = time.monotonic()
        await self._many(one, count, lambda number: number < count)
        seconds = time.monotonic() - began
        return {
            "durations": durations.as_pairs(),
            "seconds": seconds,
            "faults": self._take_faults(),
        }

    async def ping(self, connections: int, rate: float) -> None:
        """Begins to send `rate` PINGs in a second over each of some connections."""
        self._pinging = True
        self._pings = Durations()
        clients = [SMPClient(await self._session(), clock=reactor) for _ in range(connections)]
        self._pinged = [Deferred.fromCoroutine(self._ping(each, rate)) for each in clients]

    async def _ping(self, client: SMPClient, rate: float) -> None:
        while self._pinging:
            began = time.perf_counter()
            try:
                await client.ping()
            except ClientError as error:
                self._fault(f"PING: {type(error).__name__}: {error}")
                return
            took = time.perf_counter() - began
            self._pings.add(took)
            await sleep(max(0.0, 1 / rate - took))
        await client.close()

    async def pings(self, last: bool) -> dict[str, Any]:
        """The answering times of the PINGs since this was asked before; ends them if `last`."""
        if last:
            self._pinging = False
            await gatherResults(self._pinged)
        pings, self._pings = self._pings, Durations()
        return {"durations": pings.as_pairs(), "faults": self._take_faults()}

    async def drop(self, count: int, at_once: int) -> dict[str, Any]:
        """Opens `count` connections and drops each at one of four moments, in turn.

        After TCP, in the middle of TLS, after TLS, and after the handshake of SMP.
        """
        ways = (self._drop_tcp, self._drop_half, self._drop_tls, self._drop_session)

        async def one(number: int) -> None:
            await ways[number % len(ways)]()

        done = await self._many(one, at_once, lambda number: number < count)
        return {"dropped": done, "faults": self._take_faults()}

    async def _tcp(self) -> Any:
        return (await self._endpoint.connect(_Plain())).transport  # type: ignore[attr-defined]

    async def _drop_tcp(self) -> None:
        (await self._tcp()).abortConnection()

    async def _drop_half(self) -> None:
        hello = _client_hello(self._context)
        transport = await self._tcp()
        transport.write(hello[: len(hello) // 2])
        await sleep(0.01)
        transport.abortConnection()

    async def _drop_tls(self) -> None:
        blocks = await open_blocks(self._endpoint, context=self._context, clock=reactor)
        blocks.abort()

    async def _drop_session(self) -> None:
        (await self._session()).blocks.abort()


class _Plain(Factory):
    noisy = False
    protocol = Protocol


def _client_hello(context: SSL.Context) -> bytes:
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    with suppress(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(1 << 16)


def main() -> None:
    """Obeys until stdin ends."""
    worker = ConnectionWorker()
    handlers: dict[str, Handler] = {
        "prepare": worker.prepare,
        "hold": worker.hold,
        "release": worker.release,
        "handshakes": worker.handshakes,
        "burst": worker.burst,
        "ping": worker.ping,
        "pings": worker.pings,
        "drop": worker.drop,
    }
    obey(handlers)


if __name__ == "__main__":
    main()
