"""What the command lines of the benchmarks have in common."""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.database_server import DatabaseUnavailableError
from bench.running import Cores, ended_by_signals, say
from bench.server import STORES, OwnServer, Server, ServerFailedError
from bench.workers import WorkerFailedError
from txsimplex.addresses import Scheme, ServerAddress
from txsimplex.encoding import ParseError
from txsimplex.smp.versions import SMP_RANGE


def positive(text: str) -> int:
    """A number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def versions(text: str) -> list[int]:
    """Versions of SMP with commas between them."""
    numbers = [int(part) for part in text.split(",")]
    if any(number not in SMP_RANGE for number in numbers):
        raise argparse.ArgumentTypeError(f"versions are {SMP_RANGE}")
    return numbers


def _address(text: str) -> ServerAddress:
    try:
        return ServerAddress.parse(text, Scheme.SMP)
    except ParseError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options about the server, the report and where all runs."""
    parser.add_argument(
        "--address",
        type=_address,
        metavar="smp://…",
        help="the server to drive; without it, an smpd of its own on 127.0.0.1",
    )
    parser.add_argument(
        "--store",
        choices=STORES,
        default="memory",
        help="the store of that smpd of its own; default: memory",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        help="where that smpd's store is made, in a temporary directory; default: the system's",
    )
    parser.add_argument(
        "--pid",
        type=positive,
        action="append",
        default=[],
        help="a process of that server, to be measured; may be given several times",
    )
    parser.add_argument("--no-pin", action="store_true", help="let the kernel choose the cores")
    parser.add_argument(
        "--groups",
        default="X25519:X448",
        help="TLS groups that clients offer, the first with a key share; apps have X448:X25519, "
        "which costs more; default: X25519:X448",
    )
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    parser.add_argument("--quick", action="store_true", help="be done in 40 seconds")


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, quick: Mapping[str, Any]
) -> argparse.Namespace:
    """The options; with `--quick`, what is not said is as in `quick`."""
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**quick)
    return parser.parse_args(arguments)


def open_server(
    stack: ExitStack,
    options: argparse.Namespace,
    cores: Cores,
    twistd_options: Sequence[str] = (),
) -> Server:
    """The server that the options name, or one of its own that ends with `stack`."""
    allow_many_files()
    if options.address is not None:
        return Server(options.address, tuple(options.pid))
    say(f"starting an smpd with the {options.store} store")
    return stack.enter_context(
        OwnServer(cores, twistd_options, store=options.store, parent=options.directory)
    )


def allow_many_files() -> None:
    """Raises the limit of open files as far as it goes, for this process and its children."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run_benchmark(benchmark: Callable[[], int]) -> int:
    """Runs `benchmark`; its failures are one line on stderr, Ctrl-C and SIGTERM end it in order."""
    try:
        with ended_by_signals():
            return benchmark()
    except (
        ServerFailedError,
        DatabaseUnavailableError,
        WorkerFailedError,
        OSError,
    ) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130


def finish(faulty: bool) -> int:
    """The exit status."""
    return 1 if faulty else 0


def report(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints the figures of a benchmark, a line each, its faults, and, if asked, all as JSON."""
    print()
    for name, value in result.items():
        if name not in ("benchmark", "settings", "faults"):
            print(f"{name.replace('_', ' '):42} {value}")
    for fault in result["faults"]:
        print(f"FAULT: {fault}")
    if as_json:
        print(json.dumps(result))
    sys.stdout.flush()
