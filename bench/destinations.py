"""What a destination costs a proxy: memory, and processor time while nothing is forwarded.

A part of `bench.proxy`. All destinations are one relay, whose address is given with another second
host each time: a proxy tells relays apart by their whole address, and connects to the first host.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred, gatherResults

from bench.running import say
from bench.server import Server, ServerFailedError
from txsimplex.addresses import Host, RelayLocation
from txsimplex.client.proxied import ProxiedRelay, through
from txsimplex.client.smp import SMPClient

_BODY: Final = 16048
_WARM_UP: Final = 50
_AT_ONCE: Final = 32
"""What a proxy does at the same time for one client."""

_T = TypeVar("_T")
_R = TypeVar("_R")


def addresses(server: Server) -> Iterator[RelayLocation]:
    """Addresses of the relay, as many as are wanted."""
    own = server.address
    for number in itertools.count():
        other = Host.parse(f"192.0.{number // 250}.{number % 250}")
        yield RelayLocation((own.hosts[0], other), own.port, own.key_hash)


async def _each(work: Callable[[_T], Awaitable[_R]], items: Iterable[_T]) -> list[_R]:
    """What `work` gives for each item, with some under way at the same time."""
    waiting = iter(items)

    async def go_on() -> list[_R]:
        return [await work(item) for item in waiting]

    done = await gatherResults([Deferred.fromCoroutine(go_on()) for _ in range(_AT_ONCE)])
    return list(itertools.chain.from_iterable(done))


class Destinations:
    """Connects a proxy to many destinations, and says what they cost."""

    def __init__(self, proxy: Server, destination: Server, result: dict[str, Any]) -> None:
        self._proxy = proxy
        self._addresses = addresses(destination)
        self._files = 0
        self._memory = 0
        self._result = result

    async def run(
        self,
        client: SMPClient,
        sender_id: bytes,
        options: argparse.Namespace,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """Measures with a client of the proxy and an unsecured queue at the destination.

        Raises `ServerFailedError` when destinations share connections or have lost them.
        """
        count: int = options.destinations

        async def send(routed: ProxiedRelay) -> None:
            await routed.send(sender_id, os.urandom(_BODY))

        # What is loaded once, or grows in steps, does not count.
        await _each(send, await self._connect(client, _WARM_UP))
        await sleep(1.0)
        self._memory, self._files = self._proxy.resident_kib(), self._proxy.open_files()
        say(f"connecting {count} destinations")
        routed = await self._connect(client, count)
        await sleep(1.0)
        connected = self._proxy.open_files() - self._files
        if connected < count:
            raise ServerFailedError(f"of {count} destinations the proxy has {connected}")
        self._result["destinations"] = connected
        self._note("connected", count)
        say(f"idle, {options.seconds:g} s")
        before = self._proxy.cpu_seconds()
        await sleep(options.seconds)
        used = (self._proxy.cpu_seconds() - before) / options.seconds
        self._result["idle_cpu_percent"] = round(100 * used, 1)
        say("a message to each")
        await _each(send, routed)
        await sleep(1.0)
        self._note("used", count)

    async def _connect(self, client: SMPClient, count: int) -> list[ProxiedRelay]:
        async def connect(location: RelayLocation) -> ProxiedRelay:
            return await through(client, location)

        return await _each(connect, itertools.islice(self._addresses, count))

    def _note(self, name: str, count: int) -> None:
        memory = self._proxy.resident_kib()
        self._result[f"proxy_mib_{name}"] = round(memory / 1024, 1)
        self._result[f"kib_per_destination_{name}"] = round((memory - self._memory) / count, 1)
