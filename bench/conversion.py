"""How long a store is copied into another kind: ``python -m bench.conversion`` (bench/README.md).

A SQLite store is filled, and copied into a PostgreSQL server of its own and back by ``smpctl store
convert``: time, processor time and greatest memory of the command, without those of the server.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.filling import SqliteFiller, fill
from bench.options import finish, parse, positive, report, run_benchmark
from bench.postgres_server import PostgresServer
from bench.running import Process, say
from txsimplex.keys import Algorithm, PrivateKey

_QUICK = {"queues": 10_000, "messages": 10_000}
_SMPCTL = "from smpd.ctl import main; main()"
_SAY_EACH = 100_000
# As servers usually are, and not as one for tests.
_SETTINGS = {"wal_level": "replica", "shared_buffers": "128MB"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.conversion", description=__doc__)
    parser.add_argument("--queues", type=positive, default=100_000, help="default: 100,000")
    parser.add_argument(
        "--messages",
        type=positive,
        default=100_000,
        help="in as many of the queues; default: 100,000",
    )
    parser.add_argument(
        "--body-size", type=positive, default=16_048, help="bytes of a message; default: 16,048"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        help="where the stores are made, in a temporary directory; the user postgres must be able "
        "to enter it; default: the system's",
    )
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    parser.add_argument("--quick", action="store_true", help="be done in 20 seconds")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status is 1 when a conversion failed."""
    options = parse(_parser(), arguments, _QUICK)
    return run_benchmark(lambda: _benchmark(options))


def _benchmark(options: argparse.Namespace) -> int:
    place = Path(tempfile.mkdtemp(prefix="bench-", dir=options.directory))
    faults: list[str] = []
    figures: dict[str, Any] = {}
    try:
        store, back = place / "store", place / "back"
        say(f"filling a store with {options.queues:,} queues and {options.messages:,} messages")
        fill(
            SqliteFiller(store),
            queues=options.queues,
            messages=options.messages,
            body_size=options.body_size,
            keep=1,
            key=PrivateKey.generate(Algorithm.ED25519, os.urandom),
            progress=lambda number: None if number % _SAY_EACH else say(f"{number:,}"),
        )
        with PostgresServer(fsync=True, settings=_SETTINGS, parent=options.directory) as server:
            database = server.database()
            for name, origin, destination in (
                ("to_postgres", f"sqlite:{store}", database),
                ("to_sqlite", database, f"sqlite:{back}"),
            ):
                figures |= _convert(name, origin, destination, faults)
    finally:
        shutil.rmtree(place)
    settings = {name: getattr(options, name) for name in ("queues", "messages", "body_size")}
    result = {"benchmark": "conversion", "settings": settings, **figures, "faults": faults}
    report(result, as_json=options.json)
    return finish(bool(faults))


def _convert(
    name: str, origin: str, destination: str, faults: list[str]
) -> Mapping[str, float | int]:
    began = time.monotonic()
    command = [sys.executable, "-c", _SMPCTL, "store", "convert", origin, destination]
    with Process(command, os.sched_getaffinity(0), stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.popen.returncode = os.waitstatus_to_exitcode(status)
    if status:
        faults.append(f"{name}: status {process.popen.returncode}")
    return {
        f"{name}_seconds": round(time.monotonic() - began, 1),
        f"{name}_cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        f"{name}_peak_mib": usage.ru_maxrss // 1024,
    }


if __name__ == "__main__":
    sys.exit(main())
