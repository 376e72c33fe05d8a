"""Commands of a command, as a table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from smpd.ctl.configuration import add_configuration_to

Arguments = Callable[[argparse.ArgumentParser], object]


class Action(NamedTuple):
    """A command, and what its help says.

    `arguments` add what it takes beside `--config`; `example` is what stands behind its name.
    """

    name: str
    run: Callable[[argparse.Namespace], None]
    summary: str
    description: str
    example: str = ""
    arguments: Sequence[Arguments] = ()


def add_actions(command: argparse.ArgumentParser, actions: Sequence[Action]) -> Any:
    """Adds them to a command, one of which has to be given; returns where more can be added."""
    commands = command.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for each in actions:
        action = commands.add_parser(
            each.name,
            help=each.summary,
            description=each.description,
            epilog=f"examples:\n  {command.prog} {each.name} {each.example}".rstrip(),
        )
        for add_argument in each.arguments:
            add_argument(action)
        add_configuration_to(action)
        action.set_defaults(command=each.run)
    return commands
