"""What it costs that nothing is lost: ``python -m bench.durability`` (bench/README.md).

The same load on relays with different stores, in turn: messages that are acknowledged
at once, as fast as it goes and then at half of that rate, and messages that nobody
takes, at the same half rate. What a database server uses is counted apart from the relay.
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
from typing import Any

from bench.database_server import (
    database_cpu_seconds,
    database_written_bytes,
    why_unavailable,
)
from bench.options import allow_many_files, finish, parse, positive, run_benchmark, versions
from bench.percentiles import Durations, merged
from bench.running import Cores, say
from bench.server import STORES, Installation, Server
from bench.workers import Workers
from txsimplex.smp.versions import max_message_length

_QUICK = {"seconds": 1.5, "warm_up": 0.5, "half_load_seconds": 2.0, "repeat": 2, "connections": 40}
_QUOTA = {("queues", "quota"): "1000000"}
"""So that messages that nobody takes can wait."""
_SETTLE_STEP = 0.5
_SETTLE_STEPS = 20
_QUIET_STEPS = 2
"""How often the count of written bytes has to be the same, to be taken for final."""
_HALF_LOAD_WARM_UP = 0.5
_PATIENCE = 30.0
"""Seconds after which nothing was carried, where it should have been within a shorter time."""


@dataclass(frozen=True, slots=True)
class Use:
    """What processes have used: of the relay, and of its database's server if it has one."""

    relay: float
    database: float = 0.0

    @property
    def both(self) -> float:
        """Together."""
        return self.relay + self.database

    def since(self, before: Use) -> Use:
        """What was used since then."""
        return Use(self.relay - before.relay, self.database - before.database)

    def times(self, factor: float) -> Use:
        """A part of it."""
        return Use(self.relay * factor, self.database * factor)


@dataclass
class Phase:
    """One measurement; `cpu` in seconds, `written` in bytes."""

    messages: int
    seconds: float
    cpu: Use
    ok: Durations
    core_speed: float | None
    written: Use
    late: int

    @property
    def per_second(self) -> float:
        """Messages in a second of the clock."""
        return self.messages / self.seconds

    @property
    def per_cpu_second(self) -> float:
        """Messages in a second of the relay's processor time."""
        return self.messages / self.cpu.relay if self.cpu.relay else 0.0

    @property
    def per_cpu_second_together(self) -> float:
        """Messages in a second of processor time of the relay and its database's server."""
        return self.messages / self.cpu.both if self.cpu.both else 0.0

    @property
    def written_per_message(self) -> float:
        """Bytes written to disk for each message, by all."""
        return self.written.both / max(1, self.messages)


@dataclass
class Measured:
    """One store's relay, and what was measured with it."""

    store: str
    server: Server
    loads: list[Phase] = field(default_factory=list)
    half: Phase | None = None
    waiting: Phase | None = None
    faults: list[str] = field(default_factory=list)

    def cpu_seconds(self) -> Use:
        """User and system time used so far, in seconds."""
        database = self.server.database
        return Use(
            self.server.cpu_seconds(), 0.0 if database is None else database_cpu_seconds(database)
        )

    def written_bytes(self) -> Use:
        """How many bytes were written to disks so far."""
        database = self.server.database
        return Use(
            self.server.written_bytes(), 0 if database is None else database_written_bytes(database)
        )

    @property
    def load(self) -> Phase:
        """The run at full load that is in the middle of all."""
        return sorted(self.loads, key=lambda load: load.per_cpu_second)[len(self.loads) // 2]

    @property
    def half_rate(self) -> float:
        """Half of the messages per second at full load."""
        return statistics.median(load.per_second for load in self.loads) / 2

    def share_of(self, other: Measured) -> float:
        """Its messages per CPU-second as a part of another's, in the run beside."""
        pairs = zip(self.loads, other.loads, strict=True)
        return statistics.median(
            own.per_cpu_second / its.per_cpu_second if its.per_cpu_second else 0.0
            for own, its in pairs
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.durability", description=__doc__)
    parser.add_argument(
        "--stores",
        type=_stores,
        metavar="STORE,STORE",
        help=f"default: {','.join(STORES)}, the last if PostgreSQL's programs are there",
    )
    parser.add_argument("--version", type=versions, default=[18], metavar="V", help="default: 18")
    parser.add_argument("--connections", type=positive, default=200, help="default: 200")
    parser.add_argument(
        "--window", type=positive, default=1, help="messages under way for each sender; default: 1"
    )
    parser.add_argument("--size", type=positive, help="bytes of a body; default: the most allowed")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="measured time at full load; default: 5"
    )
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before; default: 1")
    parser.add_argument(
        "--half-load-seconds", type=float, default=10.0, help="at half load; default: 10"
    )
    parser.add_argument(
        "--repeat",
        type=positive,
        default=5,
        metavar="N",
        help="measure full load with the stores in turn N times; default: 5",
    )
    parser.add_argument(
        "--groups",
        default="X25519:X448",
        help="TLS groups that clients offer; default: X25519:X448",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        help="where the stores are made, in temporary directories; default: the system's",
    )
    parser.add_argument("--no-pin", action="store_true", help="let the kernel choose the cores")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    parser.add_argument("--quick", action="store_true", help="be done in 40 seconds")
    return parser


def _stores(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(STORES):
        raise argparse.ArgumentTypeError(f"no store {unknown.pop()!r}; known: {', '.join(STORES)}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status is 1 when an answer was wrong or nothing could be measured."""
    parser = _parser()
    options = parse(parser, arguments, _QUICK)
    if options.connections < 2:
        parser.error("--connections: at least 2, one to send and one to receive")
    return run_benchmark(lambda: _benchmark(options))


class _Load:
    """Makes load on one relay after the other, and measures."""

    def __init__(self, workers: Workers, speed: Workers, options: argparse.Namespace) -> None:
        self._workers = workers
        self._speed = speed
        self._options = options
        self.size = options.size or max_message_length(options.version[0])

    def full(self, measured: Measured) -> None:
        """As many messages as it takes, each acknowledged at once."""
        options = self._options
        self._connect(measured.server, taken=True)
        self._workers.ask("start")
        time.sleep(options.warm_up)
        measured.loads.append(self._measure(measured, options.seconds))
        self._end(measured)

    def half(self, measured: Measured, *, taken: bool) -> Phase:
        """Half as many messages; without `taken`, they stay in their queues."""
        self._connect(measured.server, taken=taken)
        before = _settled(measured)
        rate = measured.half_rate / len(self._workers.workers)
        self._workers.ask("mark")
        self._workers.ask("pace", [{"rate": rate}] * len(self._workers.workers))
        first = self._measure(measured, _HALF_LOAD_WARM_UP)
        phase = self._measure(measured, self._options.half_load_seconds)
        last = self._drain(measured)
        # All that was written belongs to all messages, also to those of the warming up.
        written = _settled(measured).since(before)
        phase.written = written.times(
            phase.messages / max(1, first.messages + phase.messages + last)
        )
        self._workers.ask("disconnect", timeout=120)
        return phase

    def _connect(self, server: Server, *, taken: bool) -> None:
        options = self._options
        pairs = options.connections // 2
        common = {
            "address": str(server.address),
            "host": server.host,
            "port": server.port,
            "version": options.version[0],
            "groups": options.groups,
            "window": options.window if taken else max(options.window, _WAITING_WINDOW),
            "batch": 1,
            "size": self.size,
            "verify": 16,
            "taken": taken,
        }
        count = len(self._workers.workers)
        shares = [len(range(index, pairs, count)) for index in range(count)]
        each = [{**common, "queues": [options.window] * share} for share in shares]
        self._workers.ask("connect", each, timeout=60 + options.connections)

    def _measure(self, measured: Measured, seconds: float) -> Phase:
        self._workers.ask("mark")
        self._speed.ask("mark")
        began, before, written = time.monotonic(), measured.cpu_seconds(), measured.written_bytes()
        marks: list[dict[str, Any]] = []
        while True:
            time.sleep(seconds)
            passed, cpu = time.monotonic() - began, measured.cpu_seconds().since(before)
            marks += self._workers.ask("mark")
            messages = sum(mark["messages"] for mark in marks)
            # On a busy machine a short time may pass without either.
            if (messages and cpu.relay) or passed > _PATIENCE:
                break
        (core_speed,) = self._speed.ask("mark")
        phase = Phase(
            messages,
            passed,
            cpu,
            merged(mark["ok_latency"] for mark in marks),
            core_speed,
            written=measured.written_bytes().since(written),
            late=sum(mark["late"] for mark in marks),
        )
        if not messages or not cpu.relay:
            measured.faults.append("no message was carried")
        return phase

    def _drain(self, measured: Measured) -> int:
        """Waits for what is under way; how many messages that were."""
        for result in self._workers.ask("drain"):
            measured.faults += result["faults"]
        return sum(mark["messages"] for mark in self._workers.ask("mark"))

    def _end(self, measured: Measured) -> None:
        self._drain(measured)
        self._workers.ask("disconnect", timeout=120)


_WAITING_WINDOW = 4
"""Messages under way for each sender when each OK has to wait for the disk."""


def _settled(measured: Measured) -> Use:
    """The bytes written when no more are being written."""
    if measured.server.database is not None:
        # What is only in its memory belongs to the messages before, too.
        measured.server.database.checkpoint()
    written = measured.written_bytes()
    quiet = 0
    for _ in range(_SETTLE_STEPS):
        time.sleep(_SETTLE_STEP)
        now = measured.written_bytes()
        quiet = quiet + 1 if now == written else 0
        written = now
        if quiet >= _QUIET_STEPS:
            break
    return written


def possible_stores() -> list[str]:
    """The stores that there can be here."""
    reason = why_unavailable()
    if reason is None:
        return list(STORES)
    say(f"without the postgres store: {reason}")
    return [store for store in STORES if store != "postgres"]


def _benchmark(options: argparse.Namespace) -> int:
    allow_many_files()
    cores = Cores(not options.no_pin)
    with ExitStack() as stack:
        all_measured = []
        for store in options.stores or possible_stores():
            say(f"starting an smpd with the {store} store")
            relay = stack.enter_context(
                Installation(cores, store=store, parent=options.directory, settings=_QUOTA)
            )
            relay.launch()
            all_measured.append(Measured(store, relay.ready()))
        count = len(cores.generators) if cores.pinned else 1
        workers = stack.enter_context(Workers("bench.message_worker", count, cores.generators))
        speed = stack.enter_context(Workers("bench.core_speed", 1, cores.server))
        say(f"{cores}; generators: {count}")
        load = _Load(workers, speed, options)
        for turn in range(options.repeat):
            for measured in all_measured:
                say(f"{measured.store}: full load, {turn + 1} of {options.repeat}")
                load.full(measured)
        for measured in all_measured:
            if measured.faults:
                continue
            say(f"{measured.store}: half load, {measured.half_rate:.0f} messages/s")
            measured.half = load.half(measured, taken=True)
            say(f"{measured.store}: the same, nobody takes them")
            measured.waiting = load.half(measured, taken=False)
    _report(all_measured, options, cores, load.size)
    return finish(any(measured.faults for measured in all_measured))


def _report(
    all_measured: Sequence[Measured], options: argparse.Namespace, cores: Cores, size: int
) -> None:
    print(f"\nv{options.version[0]}, {options.connections} connections, {size} bytes; {cores}\n")
    print(
        "store    messages/s  per CPU-s  SHA-512   half load: OK p50/p99 ms  written"
        "   waiting: OK p50/p99 ms  per CPU-s  written"
    )
    for measured in all_measured:
        load = measured.load
        text = f"{measured.store:8} {load.per_second:10.0f}  {load.per_cpu_second:9.0f}"
        text += f"  {load.core_speed or 0:4.0f} µs"
        if measured.half is not None and measured.waiting is not None:
            half, waiting = measured.half, measured.waiting
            text += f"  {_latency(half):>25}  {half.written_per_message:7.0f}"
            text += f"  {_latency(waiting):>23}  {waiting.per_cpu_second:9.0f}"
            text += f"  {waiting.written_per_message:7.0f}"
        print(text)
        if measured.server.database is not None:
            print(f"{'':8} {_of_database(measured)}")
        for fault in measured.faults:
            print(f"  FAULT: {fault}")
    first, *others = all_measured
    for other in others:
        share = other.share_of(first)
        print(f"{other.store}: {share:.0%} of {first.store}'s messages per CPU-second")
    if options.json:
        print(json.dumps(_result(all_measured, options, cores, size)))
    sys.stdout.flush()


def _of_database(measured: Measured) -> str:
    load = measured.load
    text = (
        f"with the database's server: {load.per_cpu_second_together:.0f} messages per CPU-second, "
        f"{1e6 * load.cpu.relay / max(1, load.messages):.0f} + "
        f"{1e6 * load.cpu.database / max(1, load.messages):.0f} µs a message"
    )
    if measured.waiting is not None:
        waiting = measured.waiting
        relay, database = (
            used / max(1, waiting.messages)
            for used in (waiting.written.relay, waiting.written.database)
        )
        text += f"; waiting: {relay:.0f} + {database:.0f} bytes written"
    return text


def _latency(phase: Phase) -> str:
    return f"{phase.ok.milliseconds(50):.1f}/{phase.ok.milliseconds(99):.1f}"


def _result(
    all_measured: Sequence[Measured], options: argparse.Namespace, cores: Cores, size: int
) -> dict[str, Any]:
    first = all_measured[0]
    result: dict[str, Any] = {"benchmark": "durability", "message_bytes": size}
    for measured in all_measured:
        result[measured.store] = _figures(measured)
        if measured is not first:
            result[measured.store][f"share_of_{first.store}"] = round(measured.share_of(first), 3)
    names = ("version", "connections", "window", "seconds", "half_load_seconds", "repeat")
    result["settings"] = {name: getattr(options, name) for name in names} | {"cores": str(cores)}
    return result


def _figures(measured: Measured) -> dict[str, Any]:
    load = measured.load
    figures: dict[str, Any] = {
        "messages_per_cpu_second": round(load.per_cpu_second, 1),
        "messages_per_second": round(load.per_second, 1),
        "sha512_16k_us": load.core_speed,
        "bytes_written_per_message_full_load": round(load.written_per_message, 1),
    }
    if measured.half is not None and measured.waiting is not None:
        half, waiting = measured.half, measured.waiting
        figures |= {
            "half_load_rate": round(measured.half_rate, 1),
            "ok_p50_ms": half.ok.milliseconds(50),
            "ok_p99_ms": half.ok.milliseconds(99),
            "bytes_written_per_message_at_once": round(half.written_per_message, 1),
            "ok_p50_ms_waiting": waiting.ok.milliseconds(50),
            "ok_p99_ms_waiting": waiting.ok.milliseconds(99),
            "bytes_written_per_message": round(waiting.written_per_message, 1),
            "messages_per_cpu_second_waiting": round(waiting.per_cpu_second, 1),
            "late": half.late + waiting.late,
        }
    if measured.server.database is not None:
        figures |= _figures_of_database(measured)
    figures["runs"] = [
        {
            "messages_per_cpu_second": round(each.per_cpu_second, 1),
            "messages_per_second": round(each.per_second, 1),
            "sha512_16k_us": each.core_speed,
        }
        for each in measured.loads
    ]
    figures["faults"] = measured.faults
    return figures


def _figures_of_database(measured: Measured) -> dict[str, Any]:
    load = measured.load
    figures = {
        "messages_per_cpu_second_together": round(load.per_cpu_second_together, 1),
        "relay_cpu_us_per_message": round(1e6 * load.cpu.relay / max(1, load.messages), 1),
        "database_cpu_us_per_message": round(1e6 * load.cpu.database / max(1, load.messages), 1),
    }
    for name, phase in (("", measured.waiting), ("_at_once", measured.half)):
        if phase is not None:
            count = max(1, phase.messages)
            figures |= {
                f"relay_bytes_written_per_message{name}": round(phase.written.relay / count, 1),
                f"database_bytes_written_per_message{name}": round(
                    phase.written.database / count, 1
                ),
            }
    return figures


if __name__ == "__main__":
    sys.exit(main())
