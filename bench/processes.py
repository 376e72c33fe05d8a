"""What several processes bring: ``python -m bench.processes`` (bench/README.md).

One relay for each number of processes, all running; the load is now on one of them, now on another.
Server and generators share this machine's cores, so messages per second of the clock mean little.
What is measured is the processor time of each process for a message; from that follows how
many messages so many cores would carry. Time that processes spend for each other (the channel,
changes from one to the other) is in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.database_server import database_cpu_seconds, own_database_server
from bench.options import allow_many_files, finish, parse, positive, run_benchmark, versions
from bench.running import Cores, cpu_seconds, say
from bench.server import STORES, Installation, Server
from bench.workers import Workers
from txsimplex.smp.versions import max_message_length

_QUICK: Final = {
    "processes": [1, 2],
    "seconds": 2.0,
    "warm_up": 0.5,
    "repeat": 2,
    "connections": 60,
}


@dataclass
class Share:
    """Processor time for one message, in seconds: of the core, and of all edges together.

    That of the store's database server is not counted: it can be on another machine.
    """

    core: float
    edges: float
    database: float = 0.0

    @property
    def whole(self) -> float:
        """Of all processes of the relay."""
        return self.core + self.edges


@dataclass
class Measured:
    """The relay with so many edge processes (1: all in one process), and what was measured."""

    processes: int
    server: Server
    turns: list[Share] = field(default_factory=list)
    messages: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def share(self) -> Share:
        """The middle of all turns."""
        return Share(
            statistics.median(turn.core for turn in self.turns),
            statistics.median(turn.edges for turn in self.turns),
            statistics.median(turn.database for turn in self.turns),
        )

    def on_cores(self, cores: int) -> float:
        """Messages in a second of the clock, with so many cores for the relay alone.

        Work can be shared out, but neither the core nor an edge can have more than one.
        """
        share = self.share
        if self.processes == 1:
            return 1 / share.whole
        return min(cores / share.whole, 1 / share.core, self.processes / share.edges)

    def gain_over(self, other: Measured, cores: int) -> float:
        """How many times as much as `other` on one core, comparing turns side by side."""
        gains = []
        for own, its in zip(self.turns, other.turns, strict=True):
            one = Measured(self.processes, self.server, [own])
            gains.append(one.on_cores(cores) * its.whole)
        return statistics.median(gains)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.processes", description=__doc__)
    parser.add_argument(
        "--processes",
        type=_numbers,
        default=[1, 2, 4],
        metavar="N,N",
        help="edge processes, 1 being all in one; the first is what others are compared with; "
        "default: 1,2,4",
    )
    parser.add_argument("--store", choices=STORES, default="memory", help="default: memory")
    parser.add_argument(
        "--directory",
        type=Path,
        help="where stores are made, in temporary directories; default: the system's",
    )
    parser.add_argument("--version", type=versions, default=[18], metavar="V", help="default: 18")
    parser.add_argument("--connections", type=positive, default=200, help="default: 200")
    parser.add_argument("--size", type=positive, help="bytes of a body; default: the most allowed")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time; default: 5")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before; default: 1")
    parser.add_argument(
        "--repeat",
        type=positive,
        default=5,
        metavar="N",
        help="measure all in turn N times; default: 5",
    )
    parser.add_argument(
        "--groups",
        default="X25519:X448",
        help="TLS groups that clients offer; default: X25519:X448",
    )
    parser.add_argument("--no-pin", action="store_true", help="let the kernel choose the cores")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    parser.add_argument("--quick", action="store_true", help="be done in 40 seconds")
    return parser


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if not all(1 <= number <= 64 for number in numbers):
        raise argparse.ArgumentTypeError("numbers of processes are 1 to 64")
    return numbers


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status is 1 when an answer was wrong or nothing could be measured."""
    parser = _parser()
    options = parse(parser, arguments, _QUICK)
    if options.connections < 2:
        parser.error("--connections: at least 2, one to send and one to receive")
    return run_benchmark(lambda: _benchmark(options))


def _benchmark(options: argparse.Namespace) -> int:
    allow_many_files()
    cores = Cores(not options.no_pin)
    with ExitStack() as stack:
        all_measured = []
        database_server = None
        if options.store == "postgres":
            database_server = stack.enter_context(own_database_server(cores, options.directory))
        for number in options.processes:
            say(f"starting an smpd with processes = {number}")
            settings = {("server", "processes"): str(number)}
            relay = stack.enter_context(
                Installation(
                    cores,
                    store=options.store,
                    parent=options.directory,
                    settings=settings,
                    database_server=database_server,
                )
            )
            relay.launch()
            all_measured.append(Measured(number, relay.ready()))
        count = len(cores.generators) if cores.pinned else 1
        workers = stack.enter_context(Workers("bench.message_worker", count, cores.generators))
        say(f"{cores}; generators: {count}")
        for turn in range(options.repeat):
            for measured in all_measured:
                say(f"processes = {measured.processes}: full load, {turn + 1} of {options.repeat}")
                _measure(measured, workers, options)
    _report(all_measured, options, cores)
    return finish(any(measured.faults for measured in all_measured))


def _measure(measured: Measured, workers: Workers, options: argparse.Namespace) -> None:
    server = measured.server
    _connect(server, workers, options)
    workers.ask("start")
    time.sleep(options.warm_up)
    workers.ask("mark")
    of_database = _database_cpu_seconds(server)
    before = [cpu_seconds(pid) for pid in server.pids]
    time.sleep(options.seconds)
    after = [cpu_seconds(pid) for pid in server.pids]
    of_database = _database_cpu_seconds(server) - of_database
    messages = sum(mark["messages"] for mark in workers.ask("mark"))
    for result in workers.ask("drain"):
        measured.faults += result["faults"]
    workers.ask("disconnect", timeout=120)
    if not messages:
        measured.faults.append("no message was carried")
        return
    core, *edges = (last - first for first, last in zip(before, after, strict=True))
    measured.messages += messages
    measured.turns.append(Share(core / messages, sum(edges) / messages, of_database / messages))


def _database_cpu_seconds(server: Server) -> float:
    # The others have nothing to do meanwhile.
    return 0.0 if server.database is None else database_cpu_seconds(server.database)


def _connect(server: Server, workers: Workers, options: argparse.Namespace) -> None:
    pairs = options.connections // 2
    version = options.version[0]
    common = {
        "address": str(server.address),
        "host": server.host,
        "port": server.port,
        "version": version,
        "groups": options.groups,
        "window": 1,
        "batch": 1,
        "size": options.size or max_message_length(version),
        "verify": 16,
    }
    count = len(workers.workers)
    shares = [len(range(index, pairs, count)) for index in range(count)]
    each = [{**common, "queues": [1] * share} for share in shares]
    workers.ask("connect", each, timeout=60 + options.connections)


def _report(all_measured: Sequence[Measured], options: argparse.Namespace, cores: Cores) -> None:
    first = all_measured[0]
    print(f"\nv{options.version[0]}, {options.connections} connections; {cores}")
    print("processor time of all processes of a relay; messages/s reckoned from it\n")
    print(
        "processes  per CPU-s  core µs  edges µs   messages/s on 1, 2, 4, 8 cores"
        f"   2 cores against {first.processes} on one"
    )
    for measured in all_measured:
        if measured.turns and first.turns:
            share = measured.share
            rates = ", ".join(f"{measured.on_cores(number):.0f}" for number in (1, 2, 4, 8))
            print(
                f"{measured.processes:9}  {1 / share.whole:9.0f}  {1e6 * share.core:7.0f}"
                f"  {1e6 * share.edges:8.0f}   {rates:>31}   {measured.gain_over(first, 2):.2f}"
            )
            if share.database:
                print(f"{'':9}  and the database's server {1e6 * share.database:.0f} µs")
        for fault in measured.faults:
            print(f"  FAULT: {fault}")
    print(
        "\nMessages/s on N cores: N divided by the time of all, but never more than one core for"
        "\nthe core process, and one for each edge. Generators and other programs are not counted."
    )
    if options.json:
        print(json.dumps(_result(all_measured, options, cores)))
    sys.stdout.flush()


def _result(
    all_measured: Sequence[Measured], options: argparse.Namespace, cores: Cores
) -> dict[str, Any]:
    first = all_measured[0]
    result: dict[str, Any] = {"benchmark": "processes"}
    for measured in all_measured:
        if not measured.turns or not first.turns:
            continue
        share = measured.share
        result[f"processes_{measured.processes}"] = {
            "messages": measured.messages,
            "messages_per_cpu_second": round(1 / share.whole, 1),
            "core_us_per_message": round(1e6 * share.core, 1),
            "edges_us_per_message": round(1e6 * share.edges, 1),
            "database_us_per_message": round(1e6 * share.database, 1),
            "messages_per_second_on_cores": {
                str(number): round(measured.on_cores(number), 1) for number in (1, 2, 4, 8)
            },
            "gain_on_two_cores": round(measured.gain_over(first, 2), 3),
            "faults": measured.faults,
        }
    names = ("processes", "store", "version", "connections", "seconds", "repeat")
    result["settings"] = {name: getattr(options, name) for name in names} | {"cores": str(cores)}
    return result


if __name__ == "__main__":
    sys.exit(main())
