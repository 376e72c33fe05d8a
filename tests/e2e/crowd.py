"""Many clients at once, in a process of their own: ``python -m tests.e2e.crowd PORT HASH N``.

All connect and shake hands at the same time, and stay until the last one is served. Prints how
many were.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import react

from txsimplex.addresses import Host, RelayLocation
from txsimplex.client.smp import SMPClient, connect

TIME_LIMIT = 60.0


async def come(reactor: object, arguments: Sequence[str]) -> None:
    """Runs the crowd."""
    port, key_hash, number = arguments
    location = RelayLocation((Host.parse("127.0.0.1"),), port, bytes.fromhex(key_hash))

    async def client() -> SMPClient:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", int(port), timeout=int(TIME_LIMIT))
        connected = await connect(endpoint, location, timeout=TIME_LIMIT)
        await connected.ping()
        return connected

    clients = await gatherResults([Deferred.fromCoroutine(client()) for _ in range(int(number))])
    print(len(clients))
    for each in clients:
        each.abort()
    await gatherResults([Deferred.fromCoroutine(each.lost()) for each in clients])


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(come(reactor, sys.argv[1:])))
