"""Kills of relays that share a database, and of the database, for `bench.crash`."""

from __future__ import annotations

import argparse
import random
import re
import time
from contextlib import ExitStack
from typing import Any, Final

from bench.running import Cores, say
from bench.server import Installation
from bench.workers import Worker, Workers

_ALL: Final = 0.1
"""Part of the kills that hit all relays at once."""
_EARLY: Final = 0.1
"""Part of the kills that hit a relay once more while it starts."""
_WITH_RELAY: Final = 0.3
"""Part of the kills of the database that hit a relay, too."""
_LONGEST_DOWN: Final = 1.0
"""The longest that the database is down, in seconds."""
_SAY_EACH: Final = 5
_READY_TIME: Final = 60.0
_RUN_TIME: Final = 60.0
_DRAIN_TIME: Final = 120.0
_ENDS: Final = {("delivery", "end_interval"): "0.5"}
"""Who has lost a subscription is told before the next kill."""
_OF_DATABASE: Final = re.compile(r"the store: ")


class RelayRounds:
    """Kills, one after the other, while what was not killed goes on."""

    def __init__(
        self, relays: list[Installation], worker: Worker, options: argparse.Namespace
    ) -> None:
        self._relays = relays
        self._worker = worker
        self._options = options
        database = relays[0].database_server
        assert database is not None
        self._database = database
        self.kills = 0
        self.early_kills = 0
        self.kills_of_all = 0
        self.database_kills = 0
        self.longest_down = 0.0
        self.load_seconds = 0.0
        self.start_seconds: list[float] = []
        self.complaints: list[str] = []

    def begin(self) -> None:
        """Starts all relays, and the load."""
        self._start(list(range(len(self._relays))))
        self._worker.ask("begin", queues=self._options.queues)

    def one(self) -> dict[str, Any]:
        """Lets all work, kills something, and starts it again; the counts of the clients then."""
        began = time.monotonic()
        time.sleep(random.uniform(0, self._options.load))
        if random.random() < self._options.kill_database:
            counts = self._kill_database()
        else:
            counts = self._kill_relays()
        self.load_seconds += time.monotonic() - began
        return counts

    def drain(self) -> dict[str, Any]:
        """Takes all that is left; the counts in the end."""
        counts: dict[str, Any] = self._worker.ask("drain", timeout=_DRAIN_TIME)
        for relay in self._relays:
            relay.end()
            self._read_log(relay)
        return counts

    def _kill_relays(self) -> dict[str, Any]:
        numbers = list(range(len(self._relays)))
        every = len(numbers) > 1 and random.random() < _ALL
        hit = numbers if every else [random.choice(numbers)]
        self.kills_of_all += every
        for number in hit:
            self._kill(number)
        counts = self._tell(hit, database=False)
        self._start(hit)
        return counts

    def _kill_database(self) -> dict[str, Any]:
        began = time.monotonic()
        self._database.kill()
        self.kills += 1
        self.database_kills += 1
        hit = [random.randrange(len(self._relays))] if random.random() < _WITH_RELAY else []
        for number in hit:
            self._kill(number)
        counts = self._tell(hit, database=True)
        time.sleep(random.uniform(0, _LONGEST_DOWN))
        self._database.start()
        self.longest_down = max(self.longest_down, time.monotonic() - began)
        self._worker.ask("database_returned")
        self._start(hit)
        return counts

    def _tell(self, hit: list[int], *, database: bool) -> dict[str, Any]:
        answer = self._worker.ask("killed", relays=hit, database=database, timeout=_RUN_TIME)
        counts: dict[str, Any] = answer
        return counts

    def _kill(self, number: int) -> None:
        relay = self._relays[number]
        relay.end(self._options.signal)
        self.kills += 1
        self._read_log(relay)

    def _start(self, numbers: list[int]) -> None:
        began = time.monotonic()
        for number in numbers:
            self._relays[number].launch()
        if self.start_seconds and random.random() < _EARLY:
            time.sleep(random.uniform(0, 1.2 * self.start_seconds[-1]))
            for number in numbers:
                self._kill(number)
                self.early_kills += 1
                self._relays[number].launch()
        for number in numbers:
            server = self._relays[number].ready(_READY_TIME)
            self.start_seconds.append(time.monotonic() - began)
            self._worker.ask(
                "returned",
                timeout=_RUN_TIME,
                relay=number,
                address=str(server.address),
                host=server.host,
                port=server.port,
            )

    def _read_log(self, relay: Installation) -> None:
        found = relay.complaints()
        if self._options.kill_database:
            # It is rightly said that the database is not there.
            found = [line for line in found if not _OF_DATABASE.search(line)]
        self.complaints += found


def kill_relays(
    options: argparse.Namespace, cores: Cores, settings: dict[tuple[str, str], str]
) -> tuple[RelayRounds, dict[str, Any]]:
    """Runs it: the kills that were made, and the counts of the clients in the end."""
    settings = {**settings, **_ENDS}
    with ExitStack() as stack:
        say(f"{options.relays} smpd with one database; {cores}")
        first = stack.enter_context(
            Installation(cores, store=options.store, parent=options.directory, settings=settings)
        )
        relays = [first]
        for _ in range(options.relays - 1):
            another = Installation(
                cores,
                store=options.store,
                parent=options.directory,
                settings=settings,
                sharing=first,
            )
            relays.append(stack.enter_context(another))
        workers = stack.enter_context(Workers("bench.relays_worker", 1, cores.generators))
        rounds = RelayRounds(relays, workers.workers[0], options)
        rounds.begin()
        told = ""
        said = 0
        end = time.monotonic() + options.seconds
        while rounds.kills < options.kills and time.monotonic() < end:
            counts = rounds.one()
            if rounds.kills // _SAY_EACH > said:
                said = rounds.kills // _SAY_EACH
                say(
                    f"{rounds.kills} kills; {counts['messages_answered_ok']} messages answered "
                    f"OK, {counts['lost']} lost"
                )
            if "".join(counts["faults"]) != told:
                told = "".join(counts["faults"])
                say(f"after {rounds.kills} kills: {'; '.join(counts['faults'])}")
                for history in counts["histories"]:
                    say(history)
        say("taking what is left")
        return rounds, rounds.drain()
