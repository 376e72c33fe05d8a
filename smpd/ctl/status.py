"""`smpctl status`: how a relay is that runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from smpd.config import load
from smpd.ctl.configuration import add_configuration_to
from smpd.ctl.errors import CommandError
from smpd.ctl.running import ask, control_socket

_EXAMPLES = """\
examples:
  smpctl status
  smpctl status --json
"""
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_WIDTH: Final = 15


def add_to(commands: Any) -> None:
    """Adds the subcommand to the command line."""
    command = commands.add_parser(
        "status",
        help="show how the running relay is",
        description="Asks a relay that runs how it is: since when it runs, how many connections it "
        "has, and whether its onion service is published. The exit status is 1 if it does not run.",
        epilog=_EXAMPLES,
    )
    command.add_argument("--json", action="store_true", help="print it as JSON, for programs")
    add_configuration_to(command)
    command.set_defaults(command=_status)


def _status(arguments: argparse.Namespace) -> None:
    status = ask(control_socket(load(arguments.config)), "status")
    if arguments.json:
        print(json.dumps(status, indent=2))
        return
    try:
        lines = list(_lines(status))
    except (KeyError, TypeError, AttributeError):
        raise CommandError("the relay is of another version than smpctl: start it again") from None
    for name, value in lines:
        print(f"{name + ':':{_WIDTH}}{value}")


def _lines(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Relay", f"runs for {duration(status['running'])}"
    yield "Processes", str(status["processes"])
    yield "Connections", str(status["connections"])
    yield "  By socket", str(status["connections_by_unix"])
    if status["circuits"] is not None:
        yield "  Circuits", str(status["circuits"])
    for onion in status["onion"]:
        yield "Onion service", onion["host"]
        yield "  State", state_of(onion)
        if "clients" in onion:
            yield "  Clients", clients_of(onion)


def state_of(onion: Mapping[str, Any]) -> str:
    """How far an onion service is, in the words of a sentence."""
    if "since" not in onion:
        return str(onion["state"])
    detail = f" ({onion['detail']})" if onion["detail"] else ""
    return f"{onion['state']} for {duration(onion['since'])}{detail}"


def clients_of(onion: Mapping[str, Any]) -> str:
    """Who may reach it."""
    clients = onion["clients"]
    return "everybody" if clients is None else f"{clients} by name"


def duration(seconds: float) -> str:
    """Seconds, in the two largest units that count."""
    left = int(seconds)
    parts: list[str] = []
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
