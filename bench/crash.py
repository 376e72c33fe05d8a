"""What a relay remembers when it is killed: ``python -m bench.crash`` (bench/README.md).

A relay under load is killed by SIGKILL at a random moment and started again on the same
store, many times. Every answer that it gave is compared with what comes back. With
`--relays` several relays have one database, and one of them is killed while others go on.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.crash_relays import RelayRounds, kill_relays
from bench.options import allow_many_files, finish, parse, positive, report, run_benchmark
from bench.running import Cores, say
from bench.server import STORES, Installation, Server
from bench.workers import Worker, Workers

_QUICK = {"seconds": 30.0, "kills": 10_000}
_EARLY = 0.1
"""Part of the kills that hit the relay while it starts or its clients come back."""
_SAY_EACH = 5
_RUN_TIME = 60.0
_DRAIN_TIME = 120.0
_COMPLAINTS_TOLD = 5
_SETTINGS = ("by", "queues", "quota", "load", "relays", "kill_database")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.crash", description=__doc__)
    parser.add_argument("--kills", type=positive, default=500, help="default: 500")
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="do not kill any more after this time; default: no limit",
    )
    parser.add_argument(
        "--store",
        choices=STORES,
        default="sqlite",
        help="the relay's store; memory keeps nothing, which must be found; default: sqlite",
    )
    parser.add_argument(
        "--relays",
        type=positive,
        default=1,
        metavar="N",
        help="relays that share the database of --store postgres; default: 1",
    )
    parser.add_argument(
        "--kill-database",
        type=_probability,
        default=0.0,
        metavar="P",
        help="part of the kills that hit the database's server, with --store postgres; default: 0",
    )
    parser.add_argument("--queues", type=positive, default=40, help="busy ones; default: 40")
    parser.add_argument(
        "--quota",
        type=positive,
        default=16,
        help="messages that wait in a queue before it is full; default: 16",
    )
    parser.add_argument(
        "--load",
        type=float,
        default=0.6,
        metavar="SECONDS",
        help="the longest that the load lasts before a kill; default: 0.6",
    )
    parser.add_argument(
        "--by",
        choices=("KILL", "TERM"),
        default="KILL",
        help="the signal; TERM is a stop in order, which must lose nothing either; default: KILL",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        help="where the store is made, in a temporary directory; default: the system's",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="end when something is wrong, and copy the store as it is then to DIR",
    )
    parser.add_argument("--no-pin", action="store_true", help="let the kernel choose the cores")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    parser.add_argument("--quick", action="store_true", help="be done in 40 seconds")
    return parser


def _probability(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status is 1 when anything was not as it was answered."""
    parser = _parser()
    options = parse(parser, arguments, _QUICK)
    if options.store != "postgres" and (options.relays > 1 or options.kill_database):
        parser.error("--relays and --kill-database: only with --store postgres")
    options.signal = signal.Signals[f"SIG{options.by}"]
    return run_benchmark(lambda: _benchmark(options))


class _Rounds:
    """Kills, one after the other, and what they left in the relay's log."""

    def __init__(self, relay: Installation, worker: Worker, options: argparse.Namespace) -> None:
        self._relay = relay
        self._worker = worker
        self._options = options
        self._server: Server | None = None
        self.kills = 0
        self.early_kills = 0
        self.load_seconds = 0.0
        self.start_seconds: list[float] = []
        self.complaints: list[str] = []

    def start(self) -> dict[str, Any]:
        """Starts the relay and waits until it is ready; where clients find it."""
        began = time.monotonic()
        self._relay.launch()
        self._server = self._relay.ready()
        self.start_seconds.append(time.monotonic() - began)
        return self._place(self._server)

    def _place(self, server: Server) -> dict[str, Any]:
        return {"address": str(server.address), "host": server.host, "port": server.port}

    def one(self) -> dict[str, Any]:
        """Starts the relay, lets it work, and kills it; the counts of the clients then."""
        if self._server is not None and random.random() < _EARLY:
            self._relay.launch()
            self._run(self._place(self._server))
            time.sleep(random.uniform(0, 1.2 * statistics.median(self.start_seconds)))
            self._kill()
            self.early_kills += 1
            self._worker.tell("crashed")
            self._worker.answer(_RUN_TIME)
        else:
            self._run(self.start())
            self._worker.answer(_RUN_TIME)
            load = random.uniform(0, self._options.load)
            time.sleep(load)
            self._kill()
            self.load_seconds += load
            self._worker.tell("crashed")
        counts: dict[str, Any] = self._worker.answer(_RUN_TIME)
        return counts

    def _run(self, place: dict[str, Any]) -> None:
        self._worker.tell("run", queues=self._options.queues, **place)

    def _kill(self) -> None:
        self._relay.end(self._options.signal)
        self.kills += 1
        self.complaints += self._relay.complaints()

    def drain(self) -> dict[str, Any]:
        """Starts the relay once more and takes all that is left; the counts in the end."""
        counts: dict[str, Any] = self._worker.ask("drain", timeout=_DRAIN_TIME, **self.start())
        self._relay.end()
        self.complaints += self._relay.complaints()
        return counts


def _benchmark(options: argparse.Namespace) -> int:
    allow_many_files()
    cores = Cores(not options.no_pin)
    settings = {("queues", "quota"): str(options.quota)}
    rounds: _Rounds | RelayRounds
    if options.relays > 1 or options.kill_database:
        rounds, counts = kill_relays(options, cores, settings)
    else:
        rounds, counts = _kill_relay(options, cores, settings)
    result = _result(rounds, counts, options, cores)
    report(result, as_json=options.json)
    return finish(bool(result["lost"] or result["faults"]))


def _kill_relay(
    options: argparse.Namespace, cores: Cores, settings: dict[tuple[str, str], str]
) -> tuple[_Rounds, dict[str, Any]]:
    with ExitStack() as stack:
        say(f"an smpd with the {options.store} store; {cores}")
        relay = stack.enter_context(
            Installation(cores, store=options.store, parent=options.directory, settings=settings)
        )
        workers = stack.enter_context(Workers("bench.crash_worker", 1, cores.generators))
        rounds = _Rounds(relay, workers.workers[0], options)
        told = ""
        end = time.monotonic() + options.seconds
        while rounds.kills < options.kills and time.monotonic() < end:
            counts = rounds.one()
            if rounds.kills % _SAY_EACH == 0:
                say(
                    f"{rounds.kills} kills; {counts['messages_answered_ok']} messages answered OK, "
                    f"{counts['lost']} lost"
                )
            if "".join(counts["faults"]) != told:
                told = "".join(counts["faults"])
                say(f"after {rounds.kills} kills: {'; '.join(counts['faults'])}")
                if options.keep is not None:
                    shutil.copytree(relay.store_path, options.keep)
                    break
        say("taking what is left")
        return rounds, rounds.drain()


def _result(
    rounds: _Rounds | RelayRounds,
    counts: dict[str, Any],
    options: argparse.Namespace,
    cores: Cores,
) -> dict[str, Any]:
    histories = counts.pop("histories", [])
    faults = [*counts.pop("faults"), *histories, *rounds.complaints[:_COMPLAINTS_TOLD]]
    starts = rounds.start_seconds
    several = {}
    if isinstance(rounds, RelayRounds):
        several = {
            "relays": options.relays,
            "kills_of_all": rounds.kills_of_all,
            "database_kills": rounds.database_kills,
            "database_down_seconds_longest": round(rounds.longest_down, 2),
        }
    return {
        "benchmark": "crash",
        "store": options.store,
        "kills": rounds.kills,
        "early_kills": rounds.early_kills,
        **several,
        **counts,
        "errors_logged": len(rounds.complaints),
        "messages_per_second": round(counts["messages_answered_ok"] / rounds.load_seconds, 1)
        if rounds.load_seconds
        else None,
        "start_seconds_median": round(statistics.median(starts), 2),
        "start_seconds_longest": round(max(starts), 2),
        "settings": {name: getattr(options, name) for name in _SETTINGS} | {"cores": str(cores)},
        "faults": faults,
    }


if __name__ == "__main__":
    sys.exit(main())
