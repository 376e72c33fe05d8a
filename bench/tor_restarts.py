"""Tor is ended again and again below a relay: ``python -m bench.tor_restarts`` (bench/README.md).

A Tor network of its own, on 127.0.0.1; a relay that is an onion service, on a tor of its own or,
with ``--apart``, on one that is there, as Debian's; and the tor of a client, by which a message is
sent and received after each time. Odd times that tor gets SIGKILL, even times SIGTERM. Whatever is
not reachable again in time is a fault.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from bench.options import finish, parse, positive, report, run_benchmark
from bench.percentiles import Durations
from bench.reactor import run_in_reactor
from bench.running import Cores, Process, children, say
from bench.server import Installation, Server, ServerFailedError
from smpd.ctl.errors import CommandError
from smpd.ctl.running import ask
from tests.e2e.tor_network import TorMissingError, TorNetwork, TorNetworkError
from torcfg.tor_process import torrc
from txsimplex.addresses import Host, RelayLocation
from txsimplex.client.errors import ClientError
from txsimplex.client.smp import SMPClient, connect
from txsimplex.client.socks import SocksCredentials, SocksEndpoint
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.messages import Msg

_QUICK: Final = {"restarts": 1}
_BODY: Final = 16_000
_ATTEMPT: Final = 20.0
"""Seconds after which a client tries by another circuit."""
_STEP: Final = 0.1


class NotReachedError(Exception):
    """The relay was not reachable in time."""


class _OwnTor:
    """The tor of a relay, which starts it again itself."""

    def __init__(self, relay: int) -> None:
        self._relay = relay

    @property
    def pid(self) -> int | None:
        """Its number, None while there is none."""
        for pid in children(self._relay):
            # It may be gone meanwhile.
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "tor":
                    return pid
        return None

    def start(self) -> None:
        """The relay does."""


class _TorApart:
    """A tor that the relay does not start, with its files in `directory`, which is made."""

    def __init__(
        self, cores: set[int], directory: Path, network: TorNetwork, *, socks: bool
    ) -> None:
        self._cores = cores
        self._process: Process | None = None
        directory.mkdir(mode=0o700)
        self._configuration = directory / "torrc"
        text = torrc(directory, socks=socks, single_hop=False, include=network.torrc)
        self._configuration.write_text(text, encoding="utf-8")

    @property
    def pid(self) -> int | None:
        """Its number, None when it has ended."""
        process = self._process
        return None if process is None or process.popen.poll() is not None else process.pid

    def start(self) -> None:
        """Starts it. Not by the reactor, which hears of no process's end."""
        self.end()
        self._process = Process(
            ("tor", "--hush", "-f", str(self._configuration), "--defaults-torrc", "/nonexistent"),
            self._cores,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def end(self) -> None:
        """Ends it."""
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def __enter__(self) -> _TorApart:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()


class _Bench:
    """A relay with its control socket and its `tor`, as a client sees it.

    `client` is the directory of the client's tor.
    """

    def __init__(
        self,
        limit: float,
        server: Server,
        control: Path,
        tor: _OwnTor | _TorApart,
        client: Path,
    ) -> None:
        from twisted.internet import reactor as installed

        self._reactor: Any = installed
        address = server.address
        self._onion = Host.parse(next(host.text for host in address.hosts if host.is_onion))
        self._port = server.port
        self._location = RelayLocation((self._onion,), str(server.port), address.key_hash)
        self._limit = limit
        self._control = control
        self._tor = tor
        self._socks = client / "socks"
        self.published = Durations()
        self.reached = Durations()

    async def until_reached(self) -> None:
        """Waits until it is published, and a message gets through. Raises `NotReachedError`."""
        begin = time.monotonic()
        await self._until_published(begin)
        self.published.add(time.monotonic() - begin)
        while True:
            try:
                await self._message()
            except ClientError as error:
                if time.monotonic() - begin > self._limit:
                    raise NotReachedError(f"no message got through: {error}") from None
                await self._pause(0.5)
            else:
                break
        self.reached.add(time.monotonic() - begin)

    async def end_tor(self, by: signal.Signals) -> None:
        """Ends the relay's tor, waits until the relay has noticed, and has it started again."""
        tor = self._tor.pid
        assert tor is not None
        os.kill(tor, by)
        begin = time.monotonic()
        while (await self._state()) == "published" or self._tor.pid == tor:
            if time.monotonic() - begin > self._limit:
                raise NotReachedError("the relay does not notice that its tor has ended")
            await self._pause(_STEP)
        self._tor.start()

    async def _until_published(self, begin: float) -> None:
        while (state := await self._state()) != "published":
            if time.monotonic() - begin > self._limit:
                raise NotReachedError(f"the onion service is {state}")
            await self._pause(_STEP)

    async def _state(self) -> str:
        status = await deferToThread(ask, self._control, "status")
        return str(status["onion"][0]["state"])

    async def _message(self) -> None:
        """A queue, a message into it and out of it."""
        recipient, sender = await self._client(), await self._client()
        try:
            own, key = (PrivateKey.generate(Algorithm.ED25519, os.urandom) for _ in range(2))
            dh_key = PrivateKey.generate(Algorithm.X25519, os.urandom)
            queue = await recipient.create_queue(own, dh_key)
            await recipient.secure(queue.recipient_id, own, key.public)
            await sender.send(queue.sender_id, os.urandom(_BODY), key=key)
            event = await Deferred.fromCoroutine(anext(recipient.events)).addTimeout(
                _ATTEMPT, self._reactor
            )
            assert isinstance(event.message, Msg)
            await recipient.ack(queue.recipient_id, own, event.message.msg_id)
            await recipient.delete(queue.recipient_id, own)
        finally:
            recipient.abort()
            sender.abort()

    async def _client(self) -> SMPClient:
        apart = SocksCredentials(os.urandom(8).hex().encode(), b"bench")
        socks = UNIXClientEndpoint(self._reactor, str(self._socks))
        way = SocksEndpoint(socks, self._onion.text, self._port, apart)
        return await connect(way, self._location, timeout=_ATTEMPT, command_timeout=_ATTEMPT)

    async def _pause(self, seconds: float) -> None:
        await deferLater(self._reactor, seconds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tor_restarts",
        description="Ends the tor of a relay that is an onion service, again and again, and "
        "measures how long it takes until the relay is reached by Tor again. On a Tor network of "
        "its own.",
        epilog="example: python -m bench.tor_restarts --restarts 100",
    )
    parser.add_argument(
        "--restarts", type=positive, default=10, metavar="N", help="how often; default: 10"
    )
    parser.add_argument(
        "--limit",
        type=positive,
        default=180,
        metavar="S",
        help="seconds in which it has to be reachable again; default: 180",
    )
    parser.add_argument(
        "--apart", action="store_true", help="the relay's tor is not its own, but one that is there"
    )
    parser.add_argument("--no-pin", action="store_true", help="let the kernel choose the cores")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    parser.add_argument("--quick", action="store_true", help="once only")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = parse(_parser(), arguments, _QUICK)
    return run_benchmark(lambda: _benchmark(options))


def _benchmark(options: argparse.Namespace) -> int:
    cores = Cores(not options.no_pin)
    faults = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        say("making a Tor network")
        try:
            (directory / "net").mkdir()
            network = stack.enter_context(TorNetwork(directory / "net"))
        except (TorMissingError, TorNetworkError) as error:
            raise ServerFailedError(str(error)) from None
        control, host, client = (directory / name for name in ("control.sock", "host", "client"))
        settings = {
            ("tor", "onion"): "on",
            ("tor", "control"): f"unix:{host}/control" if options.apart else "own",
            ("tor", "include"): "" if options.apart else str(network.torrc),
            ("control", "socket"): str(control),
        }
        relay = stack.enter_context(Installation(cores, settings=settings))
        relay.launch()
        server = relay.ready()
        tor: _OwnTor | _TorApart = _OwnTor(server.pids[0])
        if options.apart:
            tor = stack.enter_context(_TorApart(cores.server, host, network, socks=False))
        stack.enter_context(_TorApart(cores.generators, client, network, socks=True))
        bench = _Bench(options.limit, server, control, tor, client)
        try:
            run_in_reactor(lambda: _run(bench, options.restarts))
        except (NotReachedError, CommandError) as error:
            faults.append(str(error))
    result: dict[str, Any] = {}
    result["restarts"] = len(bench.reached)
    for name, times in (("published", bench.published), ("reached", bench.reached)):
        for percent in (50, 99, 100):
            result[f"{name}_p{percent}_s"] = round(times.percentile(percent), 1)
    report({"benchmark": "tor_restarts", **result, "faults": faults}, as_json=options.json)
    return finish(bool(faults))


async def _run(bench: _Bench, restarts: int) -> None:
    say("waiting for the onion service")
    await bench.until_reached()
    bench.published, bench.reached = Durations(), Durations()
    for number in range(1, restarts + 1):
        by = signal.SIGKILL if number % 2 else signal.SIGTERM
        await bench.end_tor(by)
        await bench.until_reached()
        say(f"{number} of {restarts}: reached, at most after {bench.reached.percentile(100):.1f} s")


if __name__ == "__main__":
    sys.exit(main())
