"""How a relay with very many queues starts: ``python -m bench.restart`` (bench/README.md).

A store on disk is filled, and a relay is started on it several times: the time until it
answers a client about one of the queues, and its memory then and after a thousand more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.filling import FilledQueue, Filler, SqliteFiller, fill
from bench.options import allow_many_files, finish, parse, positive, report, run_benchmark
from bench.running import Cores, say
from bench.server import STORES, Installation, Server, ServerFailedError
from bench.workers import Worker, Workers
from txsimplex.keys import Algorithm, PrivateKey

_QUICK = {"queues": 100_000, "messages": 100_000, "repeat": 3}
_USED = 1000
"""Queues that are subscribed to."""
_ROOM = 4096
"""Bytes that the store's files grow by, at least, for each message and for each queue."""
_READY_TIME = 600.0
_SETTLE_TIME = 1.0
_SAY_EACH = 20


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.restart", description=__doc__)
    parser.add_argument(
        "--store",
        choices=[store for store in STORES if store != "memory"],
        default="sqlite",
        help="default: sqlite",
    )
    parser.add_argument("--queues", type=positive, default=1_000_000, help="default: 1,000,000")
    parser.add_argument(
        "--messages",
        type=positive,
        default=1_000_000,
        help="in as many of the queues; default: 1,000,000",
    )
    parser.add_argument(
        "--body-size",
        type=positive,
        default=100,
        help="bytes of a message; on disk a message takes a multiple of 4 KiB; default: 100",
    )
    parser.add_argument(
        "--repeat", type=positive, default=5, metavar="N", help="starts; default: 5"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        help="where the store is made, in a temporary directory; default: the system's",
    )
    parser.add_argument("--no-pin", action="store_true", help="let the kernel choose the cores")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    parser.add_argument("--quick", action="store_true", help="be done in 40 seconds")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status is 1 when a queue or message was not found again."""
    parser = _parser()
    options = parse(parser, arguments, _QUICK)
    if not _USED < options.messages <= options.queues:
        parser.error(f"--messages: more than {_USED}, and not more than --queues")
    return run_benchmark(lambda: _benchmark(options))


class _Starts:
    """Starts of one relay, and what is seen of each."""

    def __init__(
        self, relay: Installation, worker: Worker, key: PrivateKey, queues: Sequence[FilledQueue]
    ) -> None:
        self._relay = relay
        self._worker = worker
        self._key = key.raw.hex()
        self._queues = [
            [each.recipient_id.hex(), each.secret.hex(), each.body.hex()] for each in queues
        ]
        self.seconds: list[float] = []
        self.resident: list[int] = []
        self.faults: list[str] = []

    def start(self) -> Server:
        """Starts the relay with nothing of its store in the cache of files."""
        _forget_files(self._relay)
        began = time.monotonic()
        self._relay.launch()
        server = self._relay.ready(_READY_TIME)
        answered = self._worker.ask(
            "first_answer",
            address=str(server.address),
            host=server.host,
            port=server.port,
            queue=self._queues[0][0],
            key=self._key,
        )
        self.seconds.append(answered - began)
        self.resident.append(server.resident_kib())
        return server

    def stop(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Ends the relay."""
        self._relay.end(by)
        self._worker.ask("lost")
        self.faults += self._relay.complaints()

    def use_queues(self, server: Server) -> int:
        """Subscribes to all queues that are known; the resident memory then, in KiB."""
        self.faults += self._worker.ask("subscribe", queues=self._queues, key=self._key)
        time.sleep(_SETTLE_TIME)
        return server.resident_kib()

    def acknowledge(self) -> None:
        """Acknowledges the messages of these queues."""
        self.faults += self._worker.ask("acknowledge", key=self._key)


def _benchmark(options: argparse.Namespace) -> int:
    allow_many_files()
    _check_room(options)
    cores = Cores(not options.no_pin)
    key = PrivateKey.generate(Algorithm.ED25519, os.urandom)
    result: dict[str, Any] = {
        "benchmark": "restart",
        "store": options.store,
        "queues": options.queues,
        "messages": options.messages,
    }
    with ExitStack() as stack:
        relay = stack.enter_context(
            Installation(cores, store=options.store, parent=options.directory)
        )
        began = time.monotonic()
        say(f"making {options.queues} queues and {options.messages} messages")
        queues = _filled(relay, key, options)
        result["fill_seconds"] = round(time.monotonic() - began, 1)
        result["mib_on_disk"] = _size_on_disk(_kept_in(relay)) >> 20
        (worker,) = stack.enter_context(
            Workers("bench.restart_worker", 1, cores.generators)
        ).workers
        starts = _Starts(relay, worker, key, queues)
        for number in range(options.repeat):
            say(f"start {number + 1} of {options.repeat}")
            server = starts.start()
            if number < options.repeat - 1:
                starts.stop()
        say(f"subscribing to {_USED} queues")
        used = starts.use_queues(server)
        result["start_seconds"] = round(statistics.median(starts.seconds), 2)
        result["resident_mib"] = _mib(statistics.median(starts.resident))
        result["after_1000_queues_mib"] = _mib(used)
        say("acknowledging their messages, kill -9, and a last start")
        starts.acknowledge()
        starts.stop(signal.SIGKILL)
        starts.start()
        result["start_seconds_after_kill"] = round(starts.seconds[-1], 2)
        starts.stop()
    result["settings"] = {"body_size": options.body_size, "repeat": options.repeat}
    result["settings"]["cores"] = str(cores)
    result["faults"] = starts.faults
    report(result, as_json=options.json)
    return finish(bool(starts.faults))


def _check_room(options: argparse.Namespace) -> None:
    parent = options.directory or Path(tempfile.gettempdir())
    size = -(-options.body_size // _ROOM) * _ROOM
    needed = options.messages * size + options.queues * _ROOM // 4
    if shutil.disk_usage(parent).free < needed:
        raise ServerFailedError(f"{parent} has no room for {needed >> 20} MiB")


def _filler(relay: Installation) -> Filler:
    if relay.database is None:
        return SqliteFiller(relay.store_path)
    # It needs psycopg, which not everybody has who measures other stores.
    from bench.postgres_filling import PostgresFiller

    return PostgresFiller(relay.database)


def _filled(relay: Installation, key: PrivateKey, options: argparse.Namespace) -> list[FilledQueue]:
    each = max(1, options.queues // _SAY_EACH)
    told = 0

    def progress(count: int) -> None:
        nonlocal told
        if count // each > told:
            told = count // each
            say(f"{count} queues")

    return fill(
        _filler(relay),
        queues=options.queues,
        messages=options.messages,
        body_size=options.body_size,
        keep=_USED,
        key=key,
        progress=progress,
    )


def _files(path: Path) -> list[Path]:
    return [each for each in path.rglob("*") if each.is_file()]


def _size_on_disk(path: Path) -> int:
    return sum(each.stat().st_blocks for each in _files(path)) * 512


def _kept_in(relay: Installation) -> Path:
    """Where the store's files are."""
    server = relay.database_server
    return relay.store_path if server is None else server.directory


def _forget_files(relay: Installation) -> None:
    """Has the kernel, and the database's server, drop what they keep of the store's files."""
    if relay.database_server is not None:
        relay.database_server.stop()
    for each in _files(_kept_in(relay)):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    if relay.database_server is not None:
        relay.database_server.start()


def _mib(kib: float) -> float:
    return round(kib / 1024, 1)


if __name__ == "__main__":
    sys.exit(main())
