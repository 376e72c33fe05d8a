"""How many messages a relay carries: ``python -m bench.relay`` (bench/README.md).

Half of the connections send, the others receive. Each message is a SEND, the MSG that
the relay makes of it, and its ACK; every answer is verified.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench.options import (
    add_common_options,
    finish,
    open_server,
    parse,
    positive,
    run_benchmark,
    versions,
)
from bench.percentiles import Durations, merged
from bench.profiles import profiled_server, sample
from bench.running import Cores, cpu_seconds, say
from bench.server import Server
from bench.workers import Workers
from txsimplex.smp.versions import BLOCK_ENCRYPTION, max_message_length

_QUICK = {"seconds": 7.0, "warm_up": 1.5, "latency_seconds": 4.0}


@dataclass
class Run:
    """What was measured at one version."""

    version: int
    size: int
    seconds: float
    messages: int
    server_cpu: float | None
    server_waited: float
    generator_cpu: float
    core_speed: float | None
    loaded: Durations
    paced: Durations | None
    faults: list[str] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Messages in a second of the clock."""
        return self.messages / self.seconds

    @property
    def per_cpu_second(self) -> float | None:
        """Messages in a second of the server's processor time."""
        return None if not self.server_cpu else self.messages / self.server_cpu

    def as_json(self) -> dict[str, Any]:
        """All of it, for the report."""
        per_cpu_second = self.per_cpu_second
        result: dict[str, Any] = {
            "version": self.version,
            "message_bytes": self.size,
            "messages": self.messages,
            "seconds": round(self.seconds, 2),
            "messages_per_second": round(self.per_second, 1),
            "messages_per_cpu_second": per_cpu_second and round(per_cpu_second, 1),
            "server_cpu_percent": self.server_cpu
            and round(100 * self.server_cpu / self.seconds, 1),
            "server_waited_percent": round(100 * self.server_waited / self.seconds, 1),
            "generator_cpu_percent": round(100 * self.generator_cpu / self.seconds, 1),
            "sha512_16k_us": self.core_speed,
            "loaded_latency_ms": _latencies(self.loaded),
            "faults": self.faults,
        }
        if self.paced is not None:
            result["latency_ms"] = _latencies(self.paced)
        return result


def _latencies(durations: Durations) -> dict[str, float]:
    return {f"p{percent}": durations.milliseconds(percent) for percent in (50, 90, 99, 100)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description=__doc__)
    add_common_options(parser)
    parser.add_argument(
        "--versions", type=versions, default=[18, 10], metavar="V,V", help="default: 18,10"
    )
    parser.add_argument("--connections", type=positive, default=200, help="default: 200")
    parser.add_argument(
        "--queues", type=positive, help="in all; default: as many as messages are under way"
    )
    parser.add_argument(
        "--window",
        type=positive,
        default=1,
        help="messages (with --batch: groups of them) under way for each sender; default: 1",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=1,
        metavar="N",
        help="send N messages together and acknowledge N in one block; default: 1",
    )
    parser.add_argument("--size", type=positive, help="bytes of a body; default: the most allowed")
    parser.add_argument("--seconds", type=float, default=20.0, help="measured time; default: 20")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before; default: 3")
    parser.add_argument(
        "--rate", type=float, default=300.0, help="messages/s when latency is measured"
    )
    parser.add_argument(
        "--latency-seconds", type=float, default=10.0, help="0 to leave that out; default: 10"
    )
    parser.add_argument(
        "--verify",
        type=positive,
        default=16,
        metavar="N",
        help="decrypt and compare every Nth message; 1 for all; default: 16",
    )
    parser.add_argument(
        "--repeat",
        type=positive,
        default=1,
        metavar="N",
        help="measure the versions in turn N times, the median counts; default: 1",
    )
    parser.add_argument(
        "--processes", type=positive, help="generators of load; default: the cores that are left"
    )
    parser.add_argument(
        "--profile", action="store_true", help="say afterwards where the server spends its time"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status is 1 when an answer was wrong or nothing could be measured."""
    parser = _parser()
    options = parse(parser, arguments, _QUICK)
    if options.connections < 2:
        parser.error("--connections: at least 2, one to send and one to receive")
    return run_benchmark(lambda: _benchmark(options))


def _benchmark(options: argparse.Namespace) -> int:
    cores = Cores(not options.no_pin)
    runs: list[Run] = []
    with ExitStack() as stack:
        profile = stack.enter_context(profiled_server(options.profile, bool(options.address)))
        server = open_server(stack, options, cores, profile.twistd_options)
        count = options.processes or (len(cores.generators) if cores.pinned else 1)
        workers = stack.enter_context(Workers("bench.message_worker", count, cores.generators))
        speed = stack.enter_context(Workers("bench.core_speed", 1, cores.server))
        say(f"{cores}; generators: {count}")
        for turn in range(options.repeat):
            for version in options.versions:
                runs.append(_run(server, workers, speed, options, version))
                if options.profile and turn == 0:
                    _profile(server, workers, options, version, profile)
    profile.report()
    _report(runs, options, cores)
    return finish(any(run.faults for run in runs))


def _run(
    server: Server, workers: Workers, speed: Workers, options: argparse.Namespace, version: int
) -> Run:
    size = options.size or max_message_length(version)
    _connect(server, workers, options, version, size)
    say(f"v{version}: load, {options.warm_up:g} s of warming up, {options.seconds:g} s measured")
    workers.ask("start")
    time.sleep(options.warm_up)
    workers.ask("mark")
    speed.ask("mark")
    pids = [worker.pid for worker in workers.workers]
    began, before, own = time.monotonic(), server.cpu_seconds(), sum(map(cpu_seconds, pids))
    waited = server.waited_seconds()
    time.sleep(options.seconds)
    seconds = time.monotonic() - began
    server_cpu = server.cpu_seconds() - before if server.pids else None
    waited = server.waited_seconds() - waited
    generator_cpu = sum(map(cpu_seconds, pids)) - own
    (core_speed,) = speed.ask("mark")
    marks = workers.ask("mark")
    faults = [fault for result in workers.ask("drain") for fault in result["faults"]]
    loaded = merged(mark["latency"] for mark in marks)
    messages = sum(mark["messages"] for mark in marks)
    if not messages:
        faults.append("no message arrived")
    run = Run(
        version,
        size,
        seconds,
        messages,
        server_cpu,
        waited,
        generator_cpu,
        core_speed,
        loaded,
        None,
        faults,
    )
    # There is no time for the latency of more than one version when it has to be quick.
    first = version == options.versions[0]
    if options.latency_seconds and not faults and (first or not options.quick):
        run.paced = _paced(workers, options, run)
    workers.ask("disconnect")
    return run


def _connect(
    server: Server, workers: Workers, options: argparse.Namespace, version: int, size: int
) -> None:
    say(f"v{version}: making {options.connections // 2} pairs of connections and their queues")
    pairs = options.connections // 2
    queues = options.queues or pairs * options.window * options.batch
    shares = [queues // pairs + (index < queues % pairs) for index in range(pairs)]
    common = {
        "address": str(server.address),
        "host": server.host,
        "port": server.port,
        "version": version,
        "groups": options.groups,
        "window": options.window,
        "batch": options.batch,
        "size": size,
        "verify": options.verify,
    }
    count = len(workers.workers)
    each = [
        {**common, "queues": [max(1, share) for share in shares[index::count]]}
        for index in range(count)
    ]
    workers.ask("connect", each, timeout=60 + options.connections)


def _paced(workers: Workers, options: argparse.Namespace, run: Run) -> Durations:
    say(f"v{run.version}: latency at {options.rate:g} messages/s, {options.latency_seconds:g} s")
    rate = options.rate / len(workers.workers) / options.batch
    workers.ask("pace", [{"rate": rate}] * len(workers.workers))
    time.sleep(min(1.0, options.latency_seconds / 4))
    workers.ask("mark")
    time.sleep(options.latency_seconds)
    marks = workers.ask("mark")
    late = sum(mark["late"] for mark in marks)
    if late:
        say(f"v{run.version}: {late} messages were not sent in time, their windows being full")
    run.faults += [fault for result in workers.ask("drain") for fault in result["faults"]]
    return merged(mark["latency"] for mark in marks)


def _profile(
    server: Server, workers: Workers, options: argparse.Namespace, version: int, profile: Any
) -> None:
    size = options.size or max_message_length(version)
    _connect(server, workers, options, version, size)
    workers.ask("start")
    time.sleep(1)
    sample(profile, server, version, options.seconds)
    workers.ask("drain")
    workers.ask("disconnect")


def _median(runs: Sequence[Run], version: int) -> Run:
    """The run in the middle of those at one version."""
    ordered = sorted(
        (run for run in runs if run.version == version),
        key=lambda run: run.per_cpu_second or run.per_second,
    )
    return ordered[len(ordered) // 2]


def _report(runs: Sequence[Run], options: argparse.Namespace, cores: Cores) -> None:
    print(
        f"\n{options.connections} connections, window {options.window}, batch {options.batch}; "
        f"{cores}\n"
    )
    print(
        "version  block layer  bytes  messages/s  per CPU-s  server  waits  generators  SHA-512"
        "  SEND→MSG ms"
    )
    for run in runs:
        per_cpu = "-" if run.per_cpu_second is None else f"{run.per_cpu_second:.0f}"
        server = "-" if not run.server_cpu else f"{100 * run.server_cpu / run.seconds:.0f} %"
        print(
            f"{run.version:7}  {'yes' if run.version >= BLOCK_ENCRYPTION else 'no':>11}"
            f"  {run.size:5}  {run.per_second:10.0f}  {per_cpu:>9}  {server:>6}"
            f"  {100 * run.server_waited / run.seconds:3.0f} %"
            f"  {100 * run.generator_cpu / run.seconds:8.0f} %"
            f"  {run.core_speed or 0:4.0f} µs  {_latency_text(run, options)}"
        )
        for fault in run.faults:
            print(f"  FAULT: {fault}")
    if options.repeat > 1:
        for version in options.versions:
            run = _median(runs, version)
            value = run.per_cpu_second or run.per_second
            unit = "CPU-second" if run.per_cpu_second else "second"
            print(f"median at v{version}: {value:.0f} messages per {unit}")
    if any(run.server_waited > run.seconds / 20 for run in runs):
        print("Other processes had the server's core at times (waits): latencies are theirs too.")
    if options.json:
        print(json.dumps(_result(runs, options, cores)))
    sys.stdout.flush()


def _latency_text(run: Run, options: argparse.Namespace) -> str:
    def text(name: str, durations: Durations) -> str:
        values = "/".join(f"{durations.milliseconds(percent):.1f}" for percent in (50, 90, 99))
        return f"p50/p90/p99 {values} {name}"

    parts = [text("loaded", run.loaded)]
    if run.paced is not None:
        parts.insert(0, text(f"at {options.rate:g}/s", run.paced))
    return "; ".join(parts)


def _result(runs: Sequence[Run], options: argparse.Namespace, cores: Cores) -> dict[str, Any]:
    first, *others = (_median(runs, version) for version in options.versions)
    result: dict[str, Any] = {
        "benchmark": "relay",
        "messages_per_cpu_second": first.as_json()["messages_per_cpu_second"],
        "messages_per_second": first.as_json()["messages_per_second"],
    }
    for run in others:
        result[f"messages_per_cpu_second_v{run.version}"] = run.as_json()["messages_per_cpu_second"]
    latency = first.loaded if first.paced is None else first.paced
    result["sha512_16k_us"] = first.core_speed
    result["latency_p50_ms"] = latency.milliseconds(50)
    result["latency_p99_ms"] = latency.milliseconds(99)
    names = ("connections", "window", "batch", "groups", "verify", "rate")
    result["settings"] = {name: getattr(options, name) for name in names}
    result["settings"]["cores"] = str(cores)
    result["runs"] = [run.as_json() for run in runs]
    return result


if __name__ == "__main__":
    sys.exit(main())
