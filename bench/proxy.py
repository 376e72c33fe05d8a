"""Messages by way of a proxy: ``python -m bench.proxy`` (bench/README.md).

Two relays, proxy and destination, with stores in memory. Senders in this process send messages of
the greatest size through the proxy, each with some under way; then a few at a steady rate, in
turns: directly, through the proxy, to see what that adds, and through it while one in a hundred is
for a relay that does not answer.

With ``--destinations N`` it is measured instead what N destinations cost the proxy.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any, Final

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint

from bench.destinations import Destinations
from bench.options import allow_many_files, finish, parse, positive, report, run_benchmark
from bench.percentiles import Durations, merged
from bench.reactor import run_in_reactor
from bench.running import Cores, say
from bench.server import Installation, Server, ServerFailedError
from txsimplex.addresses import Host, RelayLocation
from txsimplex.client.errors import ClientError, DisconnectedError
from txsimplex.client.proxied import through
from txsimplex.client.sending import SenderCommands
from txsimplex.client.smp import SMPClient, connect
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import commands

_QUICK: Final = {"seconds": 4.0, "latency_seconds": 4.0, "senders": 20, "turns": 2}
_BODY: Final = 16048
_LIMIT: Final = 30.0
_PROXY: Final = {("proxy", "local_networks"): "on"}
_DESTINATION: Final = {("queues", "quota"): "1000000"}


def _key(algorithm: Algorithm) -> PrivateKey:
    return PrivateKey.generate(algorithm, os.urandom)


class _Sender:
    """A sender with a queue of its own; `by` is how it sends."""

    def __init__(self, by: SenderCommands, sender_id: bytes, key: PrivateKey) -> None:
        self.by = by
        self.sender_id = sender_id
        self.key = key
        self.sent = 0
        self.faults = 0

    async def send(self) -> None:
        """Sends a message. Raises `ServerFailedError` when the connection is lost."""
        try:
            await self.by.send(self.sender_id, os.urandom(_BODY), key=self.key)
        except DisconnectedError:
            raise ServerFailedError("a relay has closed a connection") from None
        except ClientError as error:
            say(f"a message was not accepted: {error}")
            self.faults += 1
        else:
            self.sent += 1


async def _client(reactor: Any, server: Server) -> SMPClient:
    endpoint = TCP4ClientEndpoint(reactor, server.host, server.port)
    return await connect(endpoint, server.address, command_timeout=_LIMIT)


async def _new_queue(recipient: SMPClient) -> tuple[bytes, PrivateKey]:
    """A secured queue; its sender's id and key, of X25519 as apps have them."""
    own, key = _key(Algorithm.ED25519), _key(Algorithm.X25519)
    queue = await recipient.create_queue(own, _key(Algorithm.X25519), subscribe=False)
    await recipient.secure(queue.recipient_id, own, key.public)
    return queue.sender_id, key


class _Bench:
    """The two relays and their senders."""

    def __init__(self, options: argparse.Namespace) -> None:
        from twisted.internet import reactor as installed

        self.reactor: Any = installed
        self.options = options
        self.clients: list[SMPClient] = []
        self.senders: list[_Sender] = []
        self.direct: list[_Sender] = []

    async def prepare(self, proxy: Server, destination: Server) -> None:
        """Connects everybody."""
        recipient = await _client(self.reactor, destination)
        self.clients.append(recipient)
        for _ in range(self.options.senders):
            client = await _client(self.reactor, proxy)
            self.clients.append(client)
            routed = await through(client, destination.address)
            self.senders.append(_Sender(routed, *await _new_queue(recipient)))
        for _ in range(4):
            client = await _client(self.reactor, destination)
            self.clients.append(client)
            self.direct.append(_Sender(client, *await _new_queue(recipient)))

    async def measure_destinations(
        self, proxy: Server, destination: Server, result: dict[str, Any]
    ) -> None:
        """What destinations cost the proxy, each with a message through it."""
        recipient, client = [await _client(self.reactor, each) for each in (destination, proxy)]
        self.clients += [recipient, client]
        own = _key(Algorithm.ED25519)
        queue = await recipient.create_queue(own, _key(Algorithm.X25519), subscribe=False)
        measuring = Destinations(proxy, destination, result)
        await measuring.run(client, queue.sender_id, self.options, self._sleep)

    def close(self) -> None:
        """Ends all connections."""
        for client in self.clients:
            client.abort()

    # -- load

    async def load(self, seconds: float) -> int:
        """All senders as fast as they can; how many messages were accepted."""
        before = sum(sender.sent for sender in self.senders)
        end = time.monotonic() + seconds

        async def go_on(sender: _Sender) -> None:
            while time.monotonic() < end:
                await sender.send()

        window = range(self.options.window)
        await _all(Deferred.fromCoroutine(go_on(s)) for s in self.senders for _ in window)
        return sum(sender.sent for sender in self.senders) - before

    async def latency(self, senders: Sequence[_Sender], seconds: float) -> Durations:
        """From sending to OK, at a steady rate."""
        times = Durations()

        async def one(sender: _Sender) -> None:
            start = time.monotonic()
            await sender.send()
            times.add(time.monotonic() - start)

        running: list[Deferred[None]] = []
        count = int(seconds * self.options.rate)
        start = time.monotonic()
        for number in range(count):
            await self._sleep(start + number / self.options.rate - time.monotonic())
            running.append(Deferred.fromCoroutine(one(senders[number % len(senders)])))
        await _all(running)
        return times

    async def _sleep(self, seconds: float) -> None:
        done: Deferred[None] = Deferred()
        self.reactor.callLater(max(0.0, seconds), done.callback, None)
        await done

    async def ask_for_dead(self, port: int, until: Callable[[], bool]) -> int:
        """Asks for relays that do not answer, once for each hundred messages; how often."""
        asked = 0
        while not until():
            # The first one is the recipient's.
            client = self.clients[1 + asked % self.options.senders]
            which = (asked % self.options.dead).to_bytes(32, "big")
            location = RelayLocation((Host.parse("127.0.0.1"),), str(port), which)
            waiting: Any = Deferred.fromCoroutine(client.request(commands.Prxy(location)))
            waiting.addErrback(lambda failure: failure.trap(ClientError))
            asked += 1
            await self._sleep(100 / self.options.rate)
        return asked


async def _all(running: Iterable[Deferred[None]]) -> None:
    try:
        await gatherResults(list(running), consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.proxy", description=__doc__)
    parser.add_argument("--senders", type=positive, default=50, help="connections; default: 50")
    parser.add_argument("--window", type=positive, default=4, help="messages of each; default: 4")
    parser.add_argument("--seconds", type=float, default=10.0, help="under load; default: 10")
    parser.add_argument("--rate", type=float, default=100.0, help="messages/s after; default: 100")
    parser.add_argument(
        "--latency-seconds",
        type=float,
        default=10.0,
        help="directly, by the proxy, and beside dead relays, for each; default: 10",
    )
    parser.add_argument(
        "--dead", type=positive, default=10, help="so many relays do not answer; default: 10"
    )
    parser.add_argument("--turns", type=positive, default=5, help="of these; default: 5")
    parser.add_argument(
        "--destinations", type=positive, help="measure what so many cost, and nothing else"
    )
    parser.add_argument("--no-pin", action="store_true", help="let the kernel choose the cores")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    parser.add_argument("--quick", action="store_true", help="be done in 40 seconds")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = parse(_parser(), arguments, _QUICK)
    return run_benchmark(lambda: _benchmark(options))


def _benchmark(options: argparse.Namespace) -> int:
    allow_many_files()
    cores = Cores(not options.no_pin)
    result: dict[str, Any] = {}
    with ExitStack() as stack:
        relays = []
        for settings in (_PROXY, _DESTINATION):
            installation = stack.enter_context(Installation(cores, settings=settings))
            installation.launch()
            relays.append((installation, installation.ready()))
        os.sched_setaffinity(0, cores.generators)
        proxy, destination = (server for _, server in relays)
        bench = _Bench(options)
        run_in_reactor(lambda: _run(bench, proxy, destination, result))
        refused = sum(each.faults for each in (*bench.senders, *bench.direct))
        faults = [line for each, _ in relays for line in each.complaints()]
        if refused:
            faults.append(f"{refused} messages were not accepted")
    report({"benchmark": "proxy", **result, "faults": faults}, as_json=options.json)
    return finish(bool(faults))


async def _run(bench: _Bench, proxy: Server, destination: Server, result: dict[str, Any]) -> None:
    options = bench.options
    if options.destinations is not None:
        await bench.measure_destinations(proxy, destination, result)
        bench.close()
        return
    say(f"connecting {options.senders} senders")
    await bench.prepare(proxy, destination)
    await bench.load(1.0)
    say(f"load, {options.seconds:g} s")
    before = proxy.cpu_seconds(), destination.cpu_seconds()
    start = time.monotonic()
    sent = await bench.load(options.seconds)
    seconds = time.monotonic() - start
    result["messages_per_second"] = round(sent / seconds, 1)
    for name, server, then in zip(
        ("proxy", "destination"), (proxy, destination), before, strict=True
    ):
        used = server.cpu_seconds() - then
        result[f"{name}_messages_per_cpu_second"] = round(sent / used, 1) if used else None
    await _latencies(bench, result)
    bench.close()


async def _latencies(bench: _Bench, result: dict[str, Any]) -> None:
    """By turns, since what else the machine does would otherwise be taken for a difference."""
    options = bench.options
    seconds = options.latency_seconds / options.turns
    say(f"latency at {options.rate:g} messages/s, {options.turns} turns of {seconds:g} s for each")
    turns: list[tuple[Durations, Durations, Durations]] = []
    dead = 0
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as silent:
        port = silent.getsockname()[1]
        for _ in range(options.turns):
            direct = await bench.latency(bench.direct, seconds)
            proxied = await bench.latency(bench.senders, seconds)
            beside, asked = await _beside_dead(bench, port, seconds)
            turns.append((direct, proxied, beside))
            say("p99 " + ", ".join(f"{each.milliseconds(99)} ms" for each in turns[-1]))
            dead += asked
    names = ("direct", "proxied", "beside_dead_relays")
    for name, parts in zip(names, zip(*turns, strict=True), strict=True):
        times = merged(each.as_pairs() for each in parts)
        result[f"{name}_p50_ms"] = times.milliseconds(50)
        result[f"{name}_p99_ms"] = times.milliseconds(99)
    result["dead_relays_asked_for"] = dead
    ratios = [beside.percentile(99) / proxied.percentile(99) for _, proxied, beside in turns]
    result["p99_beside_dead_relays_ratio"] = round(median(ratios), 3)


async def _beside_dead(bench: _Bench, port: int, seconds: float) -> tuple[Durations, int]:
    ended = False
    asking = Deferred.fromCoroutine(bench.ask_for_dead(port, lambda: ended))
    times = await bench.latency(bench.senders, seconds)
    ended = True
    return times, await asking


if __name__ == "__main__":
    sys.exit(main())
