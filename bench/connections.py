"""What connections cost a relay: ``python -m bench.connections`` (bench/README.md).

Memory of an idle connection, handshakes in a second of the server's processor time,
how fast the relay answers others while many connect at once, and whether anything
stays behind of connections that are opened and dropped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bench.options import (
    add_common_options,
    finish,
    open_server,
    parse,
    positive,
    report,
    run_benchmark,
    versions,
)
from bench.percentiles import Durations, merged
from bench.running import Cores, say
from bench.server import Server
from bench.workers import Worker, Workers

_FIRST = 50
"""Connections that are there before memory is counted, so that all code is loaded."""
_PING_CONNECTIONS = 10
_PING_RATE = 20.0
_SETTLE_TIME = 1.0
_FILES_TIME = 10.0
_GROWTH_ALLOWED = 4096
"""KiB that memory may grow while the second half of the connections is dropped."""
_QUICK = {"seconds": 5.0, "idle_seconds": 12.0}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.connections", description=__doc__)
    add_common_options(parser)
    parser.add_argument("--version", type=versions, default=[18], metavar="V", help="default: 18")
    parser.add_argument(
        "--idle", type=positive, default=2000, help="connections for memory; default: 2000"
    )
    parser.add_argument(
        "--idle-seconds",
        type=float,
        default=300.0,
        help="time in which as many of them are opened as can be; default: 300",
    )
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="time for handshakes; default: 15"
    )
    parser.add_argument(
        "--at-once", type=positive, default=32, help="handshakes at the same time; default: 32"
    )
    parser.add_argument(
        "--burst",
        type=positive,
        default=500,
        help="connections that begin at the same moment while others PING; default: 500",
    )
    parser.add_argument(
        "--drop",
        type=positive,
        metavar="N",
        help="only open and drop N connections, and see what stays behind",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status is 1 when something failed or stayed behind."""
    options = parse(_parser(), arguments, _QUICK)
    return run_benchmark(lambda: _benchmark(options))


def _benchmark(options: argparse.Namespace) -> int:
    cores = Cores(not options.no_pin)
    result: dict[str, Any] = {"benchmark": "connections"}
    faults: list[str] = []
    with ExitStack() as stack:
        server = open_server(stack, options, cores)
        makers = stack.enter_context(Workers("bench.connection_worker", 1, cores.generators))
        pingers = stack.enter_context(Workers("bench.connection_worker", 1, cores.generators))
        # Whoever measures answering times goes before whoever makes the load meanwhile.
        bursters = stack.enter_context(
            Workers("bench.connection_worker", 1, cores.generators, niceness=10)
        )
        prepared = {
            "address": str(server.address),
            "host": server.host,
            "port": server.port,
            "version": options.version[0],
            "groups": options.groups,
        }
        for workers in (makers, pingers, bursters):
            workers.ask("prepare", [prepared])
        (maker,), (pinger,), (burster,) = makers.workers, pingers.workers, bursters.workers
        say(str(cores))
        if options.drop:
            result |= _drop(server, maker, options, faults)
        else:
            if server.pids:
                result |= _idle(server, maker, options, faults)
            result |= _handshakes(server, maker, options, faults)
            result |= _responsiveness(burster, pinger, options, faults)
    result["settings"] = {
        name: getattr(options, name) for name in ("idle", "at_once", "burst", "groups")
    }
    result["settings"] |= {"version": options.version[0], "cores": str(cores)}
    result["faults"] = faults
    report(result, as_json=options.json)
    return finish(bool(faults))


def _idle(
    server: Server, maker: Worker, options: argparse.Namespace, faults: list[str]
) -> dict[str, Any]:
    say(f"opening {options.idle} connections and leaving them idle")
    limits: dict[str, Any] = {"at_once": options.at_once, "seconds": options.idle_seconds}
    faults += maker.ask("hold", count=_FIRST, **limits)["faults"]
    time.sleep(_SETTLE_TIME)
    before = server.resident_kib()
    answer = maker.ask("hold", count=options.idle, timeout=options.idle_seconds + 60, **limits)
    time.sleep(_SETTLE_TIME)
    after = server.resident_kib()
    lost = maker.ask("release")["lost"]
    faults += answer["faults"]
    if lost:
        faults.append(f"{lost} idle connections were lost")
    return {
        "kib_per_idle_connection": round((after - before) / max(answer["held"], 1), 1),
        "idle_connections": answer["held"],
        "resident_kib_before": before,
        "resident_kib_with_idle": after,
    }


def _handshakes(
    server: Server, maker: Worker, options: argparse.Namespace, faults: list[str]
) -> dict[str, Any]:
    say(f"handshakes, {options.at_once} at once, for {options.seconds:g} s")
    maker.ask("handshakes", seconds=1.0, at_once=options.at_once)
    began, cpu, waited = time.monotonic(), server.cpu_seconds(), server.waited_seconds()
    answer = maker.ask(
        "handshakes",
        seconds=options.seconds,
        at_once=options.at_once,
        timeout=options.seconds + 60,
    )
    seconds = time.monotonic() - began
    cpu = server.cpu_seconds() - cpu
    waited = server.waited_seconds() - waited
    faults += answer["faults"]
    result = {"handshakes_per_second": round(answer["handshakes"] / seconds, 1)}
    if server.pids:
        result["handshakes_per_cpu_second"] = round(answer["handshakes"] / cpu, 1)
        result["server_cpu_percent"] = round(100 * cpu / seconds, 1)
        result["server_waited_percent"] = round(100 * waited / seconds, 1)
    return result


def _responsiveness(
    burster: Worker, pinger: Worker, options: argparse.Namespace, faults: list[str]
) -> dict[str, Any]:
    say(f"PING while {options.burst} connections begin at once")
    pinger.ask("ping", connections=_PING_CONNECTIONS, rate=_PING_RATE)
    time.sleep(1.5)
    quiet = pinger.ask("pings", last=False)
    answer = burster.ask("burst", count=options.burst, timeout=120)
    busy = pinger.ask("pings", last=True)
    burster.ask("release")
    faults += [*answer["faults"], *quiet["faults"], *busy["faults"]]
    durations = merged([busy["durations"]])
    return {
        **_percentiles("ping", merged([quiet["durations"]]), ""),
        **_percentiles("ping", durations, "_during_handshakes"),
        "pings_during_handshakes": len(durations),
        "burst_seconds": round(answer["seconds"], 2),
        **_percentiles("burst_handshake", merged([answer["durations"]]), ""),
    }


def _percentiles(name: str, durations: Durations, when: str) -> dict[str, float]:
    return {f"{name}_p{p}_ms{when}": durations.milliseconds(p) for p in (50, 99)}


def _drop(
    server: Server, maker: Worker, options: argparse.Namespace, faults: list[str]
) -> dict[str, Any]:
    faults += maker.ask("drop", count=4 * _FIRST, at_once=options.at_once)["faults"]
    result: dict[str, Any] = {"dropped": options.drop}
    if not server.pids:
        return _drop_half(server, maker, options.drop, options, faults)
    files = _files(server, 0)
    half = options.drop // 2
    memory = [server.resident_kib()]
    for count in (half, options.drop - half):
        _drop_half(server, maker, count, options, faults)
        result["files_after"] = _files(server, files)
        memory.append(server.resident_kib())
    result |= {"files_before": files, "resident_kib": memory}
    if result["files_after"] > files:
        faults.append(f"{result['files_after'] - files} files stayed open")
    if memory[2] - memory[1] > _GROWTH_ALLOWED:
        faults.append(f"memory grew by {memory[2] - memory[1]} KiB in the second half")
    return result


def _drop_half(
    server: Server, maker: Worker, count: int, options: argparse.Namespace, faults: list[str]
) -> dict[str, Any]:
    say(f"opening and dropping {count} connections")
    answer = maker.ask("drop", count=count, at_once=options.at_once, timeout=60 + count)
    faults += answer["faults"]
    held = maker.ask("hold", count=1, at_once=1, seconds=60)
    faults += held["faults"]
    maker.ask("release")
    return {"dropped": answer["dropped"]}


def _files(server: Server, wanted: int) -> int:
    """The server's open files, when they are as few as `wanted` or time is over."""
    deadline = time.monotonic() + _FILES_TIME
    while True:
        time.sleep(0.5)
        files = server.open_files()
        if files <= wanted or time.monotonic() > deadline or not wanted:
            return files


if __name__ == "__main__":
    sys.exit(main())
