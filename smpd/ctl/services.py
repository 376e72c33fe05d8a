"""Which of the relay's onion services a command is for: the option ``--service``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Protocol, TypeVar

from smpd.ctl.errors import CommandError
from torcfg.onion_keys import is_onion_address


class Named(Protocol):
    """Something of an onion service."""

    @property
    def address(self) -> str:
        """The name of the onion service."""


N = TypeVar("N", bound=Named)


def add_service(action: argparse.ArgumentParser) -> None:
    """Adds the option."""
    action.add_argument(
        "--service",
        type=_onion_name,
        metavar="ONION",
        help="which onion service, by its name; needed where the relay has several",
    )


def _onion_name(text: str) -> str:
    name = text.removesuffix(".onion") + ".onion"
    if not is_onion_address(name):
        raise argparse.ArgumentTypeError("allowed: the name of an onion service, as in the address")
    return name


def chosen(found: Sequence[N], name: str | None, what: str) -> N | None:
    """That of the onion service `name`, which need not be said if there is one only.

    None where there is none at all; raises `CommandError` where it is not clear, or there is none
    of that name that is `what`.
    """
    if name is not None:
        for each in found:
            if each.address == name:
                return each
        raise CommandError(f"the relay has no onion service {name} {what}")
    if len(found) > 1:
        names = ", ".join(each.address for each in found)
        raise CommandError(f"say with --service which onion service: {names}")
    return found[0] if found else None
